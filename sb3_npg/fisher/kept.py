"""What is kept from one call to the next, as long as it holds: a chunk's records, the last Jacobian."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch as th

from sb3_npg.fisher.chunks import split_rows
from sb3_npg.fisher.columns import Columns
from sb3_npg.fisher.feed_forward import FeedForward, FeedForwardJacobian
from sb3_npg.fisher.statistics import LayerRecord, WeightSharing
from sb3_npg.parameters import ParameterVector


class ChunkedRecords(ABC):
    """
    The records of a policy's layers, a chunk of rows at a time.

    :param chunks: the slices that make up the N rows
    """

    def __init__(self, chunks: Sequence[slice]):
        self.chunks = chunks
        self._kept: tuple[tuple[str, int, str], list[LayerRecord]] | None = None

    def records(
        self, columns: Columns = "exact", seed: int = 0, weight_sharing: WeightSharing = "expand"
    ) -> Iterator[list[LayerRecord]]:
        """
        Yield the records of all layers, a chunk of rows at a time. One chunk is kept and serves the next call too.

        :param columns: "exact", all columns of F_out's root; "propagated", one random sum of them; "sampled", the
            score of the action taken
        :param seed: of the random signs
        :param weight_sharing: "expand" for each position of a layer, "reduce" for all of them together
        """
        key = (columns, seed, weight_sharing)
        if self._kept is not None and self._kept[0] == key:
            yield self._kept[1]
            return
        generator = th.Generator().manual_seed(seed)
        for rows in self.chunks:
            records = self._records_of(rows, columns, generator, weight_sharing)
            if len(self.chunks) == 1:
                self._kept = key, records
            yield records

    @abstractmethod
    def _records_of(
        self, rows: slice, columns: Columns, generator: th.Generator, weight_sharing: WeightSharing
    ) -> list[LayerRecord]:
        """Return the records of some rows."""


class KeptJacobian:
    """
    The Jacobians of a network on the rows of a rollout, of which the last is kept while the parameters stay.

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
        """Tell whether the Jacobian of some rows is at hand."""
        return self._kept is not None and self._kept[0] == rows and self._kept[1].is_current()

    def of(self, rows: slice) -> FeedForwardJacobian:
        """Return the Jacobian of some rows at the present parameters."""
        if self._kept is None or not self.holds(rows):
            self._kept = None  # free its memory first
            self._kept = rows, FeedForwardJacobian(self.network, self.inputs[rows], self.parameters)
        return self._kept[1]

    def record_chunks(self, chunk_rows: int, memory_budget: int) -> list[slice]:
        """
        Cut the rows so that the records of a chunk, position by position, fit into so many bytes.

        :param chunk_rows: largest number of rows to differentiate at once
        :param memory_budget: bytes
        """
        n_outputs = len(self.network.layers[-1].linear.weight)
        per_row = self.network.record_bytes_per_row(self.inputs.shape[1:], n_outputs)
        return split_rows(len(self.inputs), max(1, min(chunk_rows, memory_budget // per_row)))

    def rows_within(self, memory_budget: int) -> int:
        """Return how many rows' activations fit into so many bytes."""
        return max(1, min(len(self.inputs), memory_budget // self.network.bytes_per_row(self.inputs.shape[1:])))
