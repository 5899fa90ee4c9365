"""The diagonal of the Fisher."""

import torch as th

from sb3_npg.fisher import Block, Columns, dense_blocks, second_moments
from sb3_npg.solvers.base import Layers
from sb3_npg.solvers.block_diagonal import BlockDiagonalSolver


class DiagonalSolver(BlockDiagonalSolver):
    """
    Approximates F by its diagonal, x = g / (diag F + λ); with exact columns the diagonal is exact.

    Cheap, but blind to how parameters act together: the result depends on how the network is parametrised.

    Becker & LeCun (1988), Improving the Convergence of Back-Propagation Learning with Second Order Methods.

    :param columns: which columns of the outputs' Fisher are propagated backwards: "exact", all of them;
        "propagated", one random sum of them; "sampled", the score of the action taken
    :param decay: of the moving average over updates; 0 uses only the newest rollout
    :param statistics_interval: number of updates from one measurement to the next
    :raises ValueError: if an argument is unknown or out of range
    """

    def __init__(self, columns: Columns = "exact", decay: float = 0.0, statistics_interval: int = 1):
        super().__init__(columns, decay, statistics_interval)

    def _update_blocks(self, layers: Layers) -> None:
        known = all(self.memory.has(f"{block.name}.diagonal", *block.shape) for block in self._blocks)
        if known and not self._due(self.statistics_interval):
            return
        measured = self._measure(layers, lambda record: {"diagonal": second_moments(record)})
        for block in dense_blocks(self._blocks):
            measured[f"{block.name}.diagonal"] = layers.dense_block(block).diagonal(dim1=1, dim2=2)
        self._remember(measured)

    def _solve_block(self, block: Block, right: th.Tensor, damping: float) -> th.Tensor:
        return right / (self._eigenvalues_of(block) + damping)

    def _eigenvalues_of(self, block: Block) -> th.Tensor:
        return self.memory.tensors[f"{block.name}.diagonal"]
