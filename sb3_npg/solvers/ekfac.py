"""EKFAC: each layer's block of the Fisher in K-FAC's eigenbasis."""

import torch as th

from sb3_npg.fisher import Block, LayerBlock, LayerRecord, layer_blocks, second_moments
from sb3_npg.linalg import KroneckerSystem
from sb3_npg.solvers.base import Layers
from sb3_npg.solvers.kfac import KFACSolver


class EKFACSolver(KFACSolver):
    """
    Approximates each layer's block of F by Q diag(S) Qᵀ: K-FAC's eigenvectors Q, with the second moments S that F has
    along them.

    With exact columns it is never further from the block in Frobenius norm than K-FAC of the same rollout. Layers with
    a factor of more than ``largest_eigen`` rows, which is not decomposed, are treated as in K-FAC.

    George et al. (2018), Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis, section 3.

    :param columns: which columns of the outputs' Fisher are propagated backwards: "exact", all of them;
        "propagated", one random sum of them; "sampled", the score of the action taken
    :param decay: of the moving averages of A and G, and of S for as long as the eigenbasis stays
    :param statistics_interval: number of updates from one measurement of A, G and S to the next
    :param inverse_interval: number of updates from one eigenbasis to the next, if A and G are new; S is then measured
        anew
    :param weight_sharing: for a convolution, or a layer that is used more than once: "expand" treats its positions as
        independent, "reduce" as one application to the mean of its inputs. Affects only the basis; S is exact
    :param largest_eigen: layers with a factor of more rows than this are treated as in K-FAC
    :raises ValueError: if an argument is unknown or out of range
    """

    def _update_blocks(self, layers: Layers) -> None:
        super()._update_blocks(layers)
        missing = not all(self.memory.has(f"{block.name}.S", *block.shape) for block in self._small_layers())
        if self._due(self.statistics_interval) or missing:
            self._remember(self._measure(layers, self._rotated_moments))

    def _decompose(self) -> None:
        super()._decompose()
        self.memory.forget(f"{block.name}.S" for block in layer_blocks(self._blocks))

    def _rotated_moments(self, record: LayerRecord) -> dict[str, th.Tensor]:
        """Sum the squares of the rows' Jacobians in the eigenbasis."""
        if self._is_large(record.block):
            return {}
        a, g = self._eigenbasis(record.block)
        rotated = record._replace(inputs=record.inputs @ a.vectors, deltas=record.deltas @ g.vectors)
        return {"S": second_moments(rotated)}

    def _eigenvalues_of(self, block: Block) -> th.Tensor:
        if isinstance(block, LayerBlock) and not self._is_large(block):
            return self.memory.tensors[f"{block.name}.S"]
        return super()._eigenvalues_of(block)

    def _system(self, block: LayerBlock, right: th.Tensor) -> KroneckerSystem:
        return super()._system(block, right)._replace(values=self.memory.tensors[f"{block.name}.S"])

    def _small_layers(self) -> list[LayerBlock]:
        return [block for block in layer_blocks(self._blocks) if not self._is_large(block)]
