"""
Damping relative to each block's own scale, as absolute damping in scaled coordinates.

The Fisher of a fresh policy has mean eigenvalues of 1e-8 to 1e-4 in the hidden layers and of 1e-2 to 4 in the last:
with one λ for all, the former would take plain gradient steps. In the coordinates Sθ, with S diagonal and constant on
each block, F becomes S⁻¹FS⁻¹; with the square roots of the blocks' mean eigenvalues for S, each block has the mean
eigenvalue one, and (S⁻¹FS⁻¹ + εI) is (F + Λ) with Λ_l = ε tr(F_l)/P_l. So relative damping works with
every solver as it is.
"""

from collections.abc import Iterator, Sequence

import torch as th

from sb3_npg.fisher import Block, Columns, DenseBlock, LayerRecord, WeightSharing, dense_blocks, squared_norms
from sb3_npg.linalg import FisherChain
from sb3_npg.solvers.base import Layers, Problem, fisher_chain, means_over_rows

#: Smallest mean eigenvalue, relative to the largest, that a block is scaled by.
_FLOOR = 1e-8


class ScaledProblem:
    """
    A policy update in the coordinates Sθ.

    :param problem: the update
    :param scale: diagonal of S, constant on each block, shape (p,)
    """

    def __init__(self, problem: Problem, scale: th.Tensor):
        self.problem = problem
        self.scale = scale

    def fisher_vector_product(self, vector: th.Tensor) -> th.Tensor:
        """Return S⁻¹FS⁻¹ v, shape (p,)."""
        return self.problem.fisher_vector_product(vector / self.scale).div_(self.scale)

    def fisher_chain(self) -> FisherChain | None:
        """Return S⁻¹FS⁻¹ as a chain of layers; None if F is not one."""
        chain = fisher_chain(self.problem)
        return None if chain is None else chain._replace(scale=1.0 / self.scale)

    def dense_fisher(self) -> th.Tensor:
        """Return S⁻¹FS⁻¹, shape (p, p)."""
        return self.problem.dense_fisher() / self.scale / self.scale.unsqueeze(1)

    @property
    def layers(self) -> "ScaledLayers":
        """The blocks of S⁻¹FS⁻¹."""
        return ScaledLayers(self.problem.layers, self.scale)


class ScaledLayers:
    """
    The blocks of S⁻¹FS⁻¹.

    :param layers: the blocks of F
    :param scale: diagonal of S, constant on each block, shape (p,)
    """

    def __init__(self, layers: Layers, scale: th.Tensor):
        self.layers = layers
        self.scale = scale

    @property
    def blocks(self) -> Sequence[Block]:
        """The blocks, which cover the parameter vector once."""
        return self.layers.blocks

    @property
    def n_rows(self) -> int:
        """N, the rows that F is a mean over."""
        return self.layers.n_rows

    def records(
        self, columns: Columns = "exact", seed: int = 0, weight_sharing: WeightSharing = "expand"
    ) -> Iterator[Sequence[LayerRecord]]:
        """Yield the records of all layers, a chunk of rows at a time."""
        for records in self.layers.records(columns, seed, weight_sharing):
            yield [record._replace(deltas=record.deltas / self._scale_of(record.block)) for record in records]

    def dense_block(self, block: DenseBlock) -> th.Tensor:
        """Return the Fisher of parameters that belong to no layer, shape (b, m, m)."""
        return self.layers.dense_block(block) / self._scale_of(block) ** 2

    def scores(self, block: DenseBlock) -> th.Tensor:
        """Return each row's derivative of log π(a|s) with respect to such parameters, shape (N, size)."""
        return self.layers.scores(block) / self._scale_of(block)

    def _scale_of(self, block: Block) -> th.Tensor:
        return block.gather(self.scale)[0, 0]


def block_scale(layers: Layers) -> th.Tensor:
    """
    Find the scale in which each block's mean eigenvalue is one.

    A block without curvature, such as a layer behind dead units, has no scale of its own and gets the floor.

    :param layers: the blocks of F
    :return: √(tr(F_l) / P_l) for each parameter of each block, shape (p,)
    """
    means = [trace / block.size for trace, block in zip(block_traces(layers), layers.blocks, strict=True)]
    largest = th.stack(means).max()
    floor = _FLOOR * largest if float(largest) > 0.0 else 1.0
    scale = largest.new_empty(sum(block.size for block in layers.blocks))
    for place, mean in zip(layers.blocks, means, strict=True):
        place.scatter(mean.clamp_min(floor).sqrt().expand_as(place.gather(scale)), scale)
    return scale


def mean_eigenvalue(layers: Layers) -> th.Tensor:
    """Return tr(F) / p, the mean of all eigenvalues of F, shape ()."""
    return th.stack(block_traces(layers)).sum() / sum(block.size for block in layers.blocks)


def block_traces(layers: Layers) -> list[th.Tensor]:
    """Return tr(F_l) of each block, in their order."""
    traces = means_over_rows(layers, lambda record: {"trace": squared_norms(record)})
    for block in dense_blocks(layers.blocks):
        traces[f"{block.name}.trace"] = layers.dense_block(block).diagonal(dim1=1, dim2=2).sum()
    return [traces[f"{block.name}.trace"] for block in layers.blocks]
