"""F·v, the dense F and its diagonal over the rows of a rollout, given their outputs and J as two linear maps."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

import torch as th

from sb3_npg.fisher.autograd import Linearization, pull_all
from sb3_npg.fisher.chunks import LARGEST_TEMPORARY, split_rows
from sb3_npg.linalg import FisherChain, output_product
from sb3_npg.parameters import ParameterVector

#: Rows of S in one batched backward pass, and passes in one product SᵀS.
_ROWS_AT_ONCE = 256
_BLOCKS_AT_ONCE = 8


class OutputMetric(Protocol):
    """F_out of the outputs, row by row: in numbers, and its root."""

    def weights_at(self, outputs: th.Tensor) -> tuple[th.Tensor, tuple[int, ...]]:
        """Return F_out as the weights, shape (n, k), and groups of :func:`~sb3_npg.linalg.output_product`."""
        ...

    def root(self, outputs: th.Tensor) -> th.Tensor:
        """Return B with B Bᵀ = F_out, shape (n, k, r)."""
        ...


class UnitMetric:
    """The identity for one output: F_out of the mean of a Gaussian with standard deviation one."""

    def weights_at(self, outputs: th.Tensor) -> tuple[th.Tensor, tuple[int, ...]]:
        """Return ones, shape (n, 1)."""
        return th.ones_like(outputs), ()

    def root(self, outputs: th.Tensor) -> th.Tensor:
        """Return ones, shape (n, 1, 1)."""
        return th.ones_like(outputs).unsqueeze(2)


class Jacobian(Protocol):
    """J = ∂z/∂θ of some rows as two linear maps."""

    @property
    def outputs(self) -> th.Tensor:
        """The outputs z, shape (n, k)."""
        ...

    def push(self, vector: th.Tensor) -> th.Tensor:
        """Return J v, shape (n, k), for v of shape (p,)."""
        ...

    def pull(self, cotangent: th.Tensor) -> th.Tensor:
        """Return Jᵀ u, shape (p,), for u of shape (n, k)."""
        ...


class OutputModel(NamedTuple):
    """
    The outputs of N rows as a function of the parameters, and the metric on them.

    :param outputs: rows ↦ z of shape (n, k), with their graph
    :param n_rows: N
    :param parameters: θ
    :param metric: F_out
    :param linearize: rows ↦ J, if there is a faster way than through the graph of z
    """

    outputs: Callable[[slice], th.Tensor]
    n_rows: int
    parameters: ParameterVector
    metric: OutputMetric
    linearize: Callable[[slice], Jacobian] | None = None

    def jacobian(self, rows: slice) -> Jacobian:
        """Return J of some rows."""
        if self.linearize is not None:
            return self.linearize(rows)
        with th.enable_grad():
            return Linearization(self.outputs(rows), self.parameters)


class _LinearMaps(NamedTuple):
    """J and F_out of some rows."""

    jacobian: Jacobian
    metric: Callable[[th.Tensor], th.Tensor]


class RolloutFisher:
    """
    F = (1/N) Σ_n J_nᵀ F_out,n J_n of a policy given by its outputs: positive semi-definite by construction.

    Rows are taken ``chunk_rows`` at a time. When one chunk holds all rows, its graph is kept and shared
    by all products; otherwise each product builds and frees the graph of one chunk after the other.
    Products use the parameters at the time of the call or, with a kept graph, of the first call:
    once the parameters have moved, autograd raises an error.

    :param model: the outputs of the rows and their metric
    :param chunk_rows: largest number of rows to differentiate at once
    """

    def __init__(self, model: OutputModel, chunk_rows: int):
        self.model = model
        self.chunks = split_rows(model.n_rows, chunk_rows)
        self._chunk_rows = chunk_rows
        self._kept: _LinearMaps | None = None

    def _linear_maps(self) -> Iterator[_LinearMaps]:
        if len(self.chunks) > 1:
            yield from map(self._linear_maps_of, self.chunks)
            return
        if self._kept is None:
            self._kept = self._linear_maps_of(self.chunks[0])
        yield self._kept

    def _linear_maps_of(self, rows: slice) -> _LinearMaps:
        jacobian = self.model.jacobian(rows)
        return _LinearMaps(jacobian, partial(output_product, *self.model.metric.weights_at(jacobian.outputs.detach())))

    def product(self, vector: th.Tensor) -> th.Tensor:
        """
        Multiply by the Fisher.

        :param vector: v, shape (p,)
        :return: F v, shape (p,)
        """
        products = (jacobian.pull(metric(jacobian.push(vector))) for jacobian, metric in self._linear_maps())
        return functools.reduce(th.add, products).div_(self.model.n_rows)

    def chain(self) -> FisherChain | None:
        """Return the Fisher as a chain of layers; None if it is not one, or if the rows are in several chunks."""
        if len(self.chunks) > 1:
            return None
        jacobian = self.model.jacobian(self.chunks[0]) if self._kept is None else self._kept.jacobian
        make: Callable[[OutputMetric], FisherChain | None] | None = getattr(jacobian, "chain", None)
        return None if make is None else make(self.model.metric)

    def dense(self) -> th.Tensor:
        """Form the Fisher, shape (p, p): F = SᵀS/N, where the rows of S are the columns of Jᵀ_n B_n."""
        p = len(self.model.parameters)
        fisher = self.model.parameters.new_zeros(p, p)
        blocks = self.root_rows()
        while block := list(itertools.islice(blocks, _BLOCKS_AT_ONCE)):
            _add_gram(fisher, th.cat(block, dim=1))
        fisher.triu_()
        return (fisher + fisher.triu(1).T).div_(self.model.n_rows)

    def diagonal(self) -> th.Tensor:
        """Form the diagonal of the Fisher, shape (p,)."""
        diagonal = self.model.parameters.new_zeros(len(self.model.parameters))
        for scores in self.root_rows():
            diagonal += scores.square().sum(dim=(0, 1)) / self.model.n_rows
        return diagonal

    def root_rows(self) -> Iterator[th.Tensor]:
        """Yield blocks of S, F = SᵀS/N, each of shape (r, rows, p) for the r columns of F_out's root."""
        parameters = self.model.parameters
        at_once = max(1, min(_ROWS_AT_ONCE, LARGEST_TEMPORARY // len(parameters)))
        with th.no_grad():
            rank = self.model.metric.root(self.model.outputs(slice(0, 1))).shape[2]
        if rank == 0:  # a single action: nothing to tell apart
            return
        # A cotangent passes through all n rows of its batch: r·n² rows are differentiated at once.
        largest = min(at_once // rank, math.isqrt(self._chunk_rows // rank))
        for rows in split_rows(self.model.n_rows, max(1, largest)):
            with th.enable_grad():
                outputs = self.model.outputs(rows)
            with th.no_grad():
                root = self.model.metric.root(outputs.detach())
            n, k, r = root.shape
            # A row's cotangents are zero in every other row, so one batched backward pass suffices for all.
            cotangents = outputs.new_zeros(r, n, n, k)
            each = th.arange(n, device=outputs.device)
            cotangents[:, each, each] = root.permute(2, 0, 1)
            yield pull_all(outputs, parameters, cotangents.view(r * n, n, k)).view(r, n, -1)


def _add_gram(matrix: th.Tensor, scores: th.Tensor, n_strips: int = 8) -> None:
    """
    Add the upper triangle of SᵀS to a matrix, strip by strip; entries below the diagonal are meaningless.

    A column of F_out's root that moves few parameters, such as that of a free log_std, is multiplied only for these.

    :param matrix: shape (p, p)
    :param scores: rows of S, shape (r, n, p)
    :param n_strips: more of them waste less of the lower triangle
    """
    touched = (scores != 0).any(dim=1)
    p = touched.shape[1]
    few = 2 * touched.sum(dim=1) < p
    if bool(few.any()):
        (places,) = touched[few].any(dim=0).nonzero(as_tuple=True)
        part = scores[few][:, :, places].flatten(0, 1)
        matrix[places.unsqueeze(1), places] += part.T @ part
    rows = scores[~few].flatten(0, 1)
    step = -(-p // n_strips)
    for start in range(0, p, step):
        strip = slice(start, start + step)
        matrix[strip, start:].addmm_(rows[:, strip].T, rows[:, start:])
