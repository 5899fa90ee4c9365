"""How the parameter vector is cut into the blocks of a block-diagonal Fisher."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch as th


@dataclass(frozen=True, eq=False)
class LayerBlock:
    """
    The parameters of a linear map s = W a + b that is applied once or several times to each row.

    As a matrix they have the shape (g, a): one row for each output, and the bias as the last column, for an
    input coordinate that is always one.

    :param name: of the module
    :param weight: where W lies in the parameter vector; None if it does not act
    :param bias: where b lies; None if it does not act
    :param n_outputs: g
    """

    name: str
    weight: slice | None
    bias: slice | None
    n_outputs: int

    @classmethod
    def of(cls, module: str, weight: slice | None, bias: slice | None, n_outputs: int) -> "LayerBlock":
        """Return the block of a module; its name says so if only the weight or only the bias acts."""
        alone = "" if weight and bias else ".weight" if weight else ".bias"
        return cls(module + alone, weight, bias, n_outputs)

    @cached_property
    def size(self) -> int:
        """Number of parameters."""
        return sum(span_length(span) for span in (self.weight, self.bias) if span is not None)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Shape (g, a) of the block as a matrix."""
        return self.n_outputs, self.size // self.n_outputs

    def gather(self, vector: th.Tensor) -> th.Tensor:
        """Return the block of a parameter vector as a matrix of shape (g, a)."""
        spans = [span for span in (self.weight, self.bias) if span is not None]
        return th.cat([vector[span].view(self.n_outputs, -1) for span in spans], dim=1)

    def scatter(self, matrix: th.Tensor, vector: th.Tensor) -> None:
        """Write a matrix of shape (g, a) into its place in a parameter vector."""
        columns = matrix.shape[1] - (self.bias is not None)
        if self.weight is not None:
            vector[self.weight].view(self.n_outputs, -1).copy_(matrix[:, :columns])
        if self.bias is not None:
            vector[self.bias] = matrix[:, columns]


@dataclass(frozen=True, eq=False)
class DenseBlock:
    """
    Parameters that belong to no layer, as b groups of m. Each group's Fisher is formed: only the diagonal if m = 1.

    :param name: of the parameter
    :param span: where it lies in the parameter vector, as a matrix of m rows and b columns
    :param n_groups: b
    :param note: tells the user how the parameters are treated; None for the noise, which has a closed form
    """

    name: str
    span: slice
    n_groups: int
    note: str | None = None

    @cached_property
    def size(self) -> int:
        """Number of parameters."""
        return span_length(self.span)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Shape (b, m) of the block as a matrix, one group a row."""
        return self.n_groups, self.size // self.n_groups

    def gather(self, vector: th.Tensor) -> th.Tensor:
        """Return the block of a parameter vector, one group a row: shape (b, m)."""
        return vector[self.span].view(-1, self.n_groups).T

    def scatter(self, matrix: th.Tensor, vector: th.Tensor) -> None:
        """Write a matrix of shape (b, m) into its place in a parameter vector."""
        vector[self.span] = matrix.T.reshape(-1)


Block = LayerBlock | DenseBlock


def layer_blocks(blocks: Sequence[Block]) -> list[LayerBlock]:
    """Return the blocks that are layers."""
    return [block for block in blocks if isinstance(block, LayerBlock)]


def dense_blocks(blocks: Sequence[Block]) -> list[DenseBlock]:
    """Return the blocks that are formed."""
    return [block for block in blocks if isinstance(block, DenseBlock)]


def span_length(span: slice) -> int:
    """Return how many entries a slice of a vector has."""
    return int(span.stop) - int(span.start)
