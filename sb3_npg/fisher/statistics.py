"""
The statistics that block-diagonal approximations use: sums over the rows of a rollout, layer by layer.

The Jacobian of row n's output column c with respect to a layer's parameters is D_cn = Σ_t δ_cnt ã_ntᵀ, over the
positions t at which the layer is applied: one for a dense layer, one for each patch of a convolution, more if a layer
is used more than once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch as th

from sb3_npg.fisher.blocks import LayerBlock
from sb3_npg.fisher.chunks import LARGEST_TEMPORARY
from sb3_npg.fisher.columns import Columns

#: How to treat a layer that is applied at several positions: as independent applications, or as one application to the
#: mean of its inputs.
WeightSharing = Literal["expand", "reduce"]


class LayerRecord(NamedTuple):
    """
    A layer's inputs, and the derivatives with respect to its outputs, for n rows.

    With weight sharing "reduce" there is one position, with the mean of all inputs and the sum of all derivatives.

    :param block: the layer's place in the parameter vector
    :param inputs: ã, shape (n, T, a), the last coordinate one if there is a bias
    :param deltas: δ, derivative of each of c columns with respect to the layer's output, shape (c, n, T, g)
    """

    block: LayerBlock
    inputs: th.Tensor
    deltas: th.Tensor

    def to(self, dtype: th.dtype) -> "LayerRecord":
        """Return the record in another dtype."""
        return self._replace(inputs=self.inputs.to(dtype), deltas=self.deltas.to(dtype))


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
        Yield the records of all layers, a chunk of rows at a time. A single chunk is kept for the next call.

        :param columns: "exact", all columns of F_out's root; "propagated", one random sum of them; "sampled", the
            score of the action taken
        :param seed: of the random signs
        :param weight_sharing: "expand" keeps each position of a layer, "reduce" combines all of them into one
        """
        key = (columns, seed if columns == "propagated" else 0, weight_sharing)
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


def kronecker_factors(record: LayerRecord) -> tuple[th.Tensor, th.Tensor]:
    """
    Sum the Kronecker factors A and G of a layer over rows, so that ΣDDᵀ ≈ A ⊗ G / n.

    Several positions count as independent: A = Σ_t ã ãᵀ, G = Σ_t δ δᵀ / T. A reduced record has only one.

    Martens & Grosse (2015), section 3; Grosse & Martens (2016), A Kronecker-factored approximate Fisher matrix for
    convolution layers, section 3; Eschenhagen et al. (2023), Kronecker-Factored Approximate Curvature for Modern
    Neural Network Architectures, section 3.

    :param record: of n rows
    :return: A of shape (a, a) and G of shape (g, g)
    """
    _, inputs, deltas = record
    a, g = inputs.flatten(0, -2), deltas.flatten(0, -2)
    return a.T @ a, g.T @ g / inputs.shape[1]


def second_moments(record: LayerRecord) -> th.Tensor:
    """
    Sum (D_cn)² over rows and columns: n times the exact diagonal of the layer's block of F.

    :param record: of n rows
    :return: shape (g, a)
    """
    _, inputs, deltas = record
    _, n, n_positions, g = deltas.shape
    if n_positions == 1:
        return deltas[:, :, 0].square().sum(dim=0).T @ inputs[:, 0].square()
    total = inputs.new_zeros(g, inputs.shape[2])
    at_once = max(1, LARGEST_TEMPORARY // total.numel())
    for column in deltas:
        for start in range(0, n, at_once):
            rows = slice(start, start + at_once)
            total += jacobians(inputs[rows], column[rows]).square().sum(dim=0)
    return total


def squared_norms(record: LayerRecord) -> th.Tensor:
    """
    Sum ‖D_cn‖² over rows and columns: n times the trace of the layer's block of F.

    :param record: of n rows
    :return: shape ()
    """
    _, inputs, deltas = record
    if inputs.shape[1] > 1:
        return second_moments(record).sum()
    return (deltas[:, :, 0].square().sum(dim=(0, 2)) * inputs[:, 0].square().sum(dim=1)).sum()


def jacobians(inputs: th.Tensor, deltas: th.Tensor) -> th.Tensor:
    """
    Form D_cn = Σ_t δ_cnt ã_ntᵀ.

    :param inputs: ã, shape (n, T, a)
    :param deltas: δ, shape (c, n, T, g), or (n, T, g) for a single column
    :return: shape (c, n, g, a), or (n, g, a)
    """
    return deltas.mT @ inputs
