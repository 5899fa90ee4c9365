"""The last Jacobian of a network, kept as long as it holds."""

import torch as th

from sb3_npg.fisher.chunks import split_rows
from sb3_npg.fisher.feed_forward import FeedForward, FeedForwardJacobian
from sb3_npg.parameters import ParameterVector


class KeptJacobian:
    """
    The Jacobians of a network on the rows of a rollout; the last one is kept until the parameters move.

    :param network: the network
    :param inputs: what it is applied to, N rows
    :param parameters: θ
    """

    def __init__(self, network: FeedForward, inputs: th.Tensor, parameters: ParameterVector):
        self.network = network
        self.inputs = inputs
        self.parameters = parameters
        self._kept: tuple[slice, FeedForwardJacobian] | None = None

    def holds(self, rows: slice) -> bool:
        """Tell whether the Jacobian of some rows is kept and still valid."""
        return self._kept is not None and self._kept[0] == rows and self._kept[1].is_current()

    def of(self, rows: slice) -> FeedForwardJacobian:
        """Return the Jacobian of some rows at the present parameters."""
        if self._kept is None or not self.holds(rows):
            self._kept = None  # free its memory first
            self._kept = rows, FeedForwardJacobian(self.network, self.inputs[rows], self.parameters)
        return self._kept[1]

    def record_chunks(self, chunk_rows: int, memory_budget: int) -> list[slice]:
        """
        Cut the rows so that the records of a chunk, position by position, fit into ``memory_budget`` bytes.

        :param chunk_rows: largest number of rows to differentiate at once
        :param memory_budget: bytes
        """
        n_outputs = len(self.network.layers[-1].linear.weight)
        per_row = self.network.record_bytes_per_row(self.inputs.shape[1:], n_outputs)
        return split_rows(len(self.inputs), max(1, min(chunk_rows, memory_budget // per_row)))

    def rows_within(self, memory_budget: int) -> int:
        """Return for how many rows the activations fit into ``memory_budget`` bytes."""
        return max(1, min(len(self.inputs), memory_budget // self.network.bytes_per_row(self.inputs.shape[1:])))
