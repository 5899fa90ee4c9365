"""The interface of Fisher solvers: x ≈ (F + λI)⁻¹ g for a problem that is given by a few methods."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

import torch as th
from torch import nn

from sb3_npg.fisher import Block, Columns, DenseBlock, LayerRecord, WeightSharing
from sb3_npg.linalg import TORCH, FisherChain, LinearAlgebra
from sb3_npg.solvers.memory import Memory


class Sum(Protocol):
    """What can be summed over chunks of rows, and divided by the number of rows."""

    def __add__(self, other: Any, /) -> Any: ...

    def __truediv__(self, number: Any, /) -> Any: ...


S = TypeVar("S", bound=Sum)


class Layers(Protocol):
    """The Fisher of a policy layer by layer. ``LayeredFisher`` is one."""

    @property
    def blocks(self) -> Sequence[Block]:
        """The blocks, which cover the parameter vector once."""
        ...

    @property
    def n_rows(self) -> int:
        """N, the rows that F is a mean over."""
        ...

    def records(
        self, columns: Columns = "exact", seed: int = 0, weight_sharing: WeightSharing = "expand"
    ) -> Iterator[Sequence[LayerRecord]]:
        """Yield the records of all layers, a chunk of rows at a time."""
        ...

    def dense_block(self, block: DenseBlock) -> th.Tensor:
        """Return the Fisher of parameters that belong to no layer, shape (b, m, m)."""
        ...

    def scores(self, block: DenseBlock) -> th.Tensor:
        """Return each row's derivative of log π(a|s) with respect to such parameters, shape (N, size)."""
        ...


class Problem(Protocol):
    """What a solver may use of a policy update. ``LocalProblem`` is one such; a test can make another."""

    def fisher_vector_product(self, vector: th.Tensor) -> th.Tensor:
        """Return F v, undamped, for v of shape (p,)."""
        ...

    def dense_fisher(self) -> th.Tensor:
        """Return F, undamped, of shape (p, p)."""
        ...

    @property
    def layers(self) -> Layers:
        """F layer by layer."""
        ...

    @property
    def scale(self) -> th.Tensor | float:
        """The coordinates are the parameters times this: 1, or a tensor of shape (p,)."""
        ...


class LazyFigures(Mapping[str, float]):
    """
    Figures that are computed when one is first read, so that a GPU is not waited for earlier.

    :param make: computes all of them
    """

    def __init__(self, make: Callable[[], Mapping[str, float]]):
        self._make = make

    @cached_property
    def _made(self) -> Mapping[str, float]:
        return self._make()

    def __getitem__(self, name: str) -> float:
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


class Solution(NamedTuple):
    """
    A natural gradient and how it was found.

    :param natural_gradient: x ≈ (F + λI)⁻¹ g, shape (p,)
    :param stats: figures for the log; ``{"steps": 10.0}`` appears as ``train/solver_steps``
    :param product: F x, shape (p,), if the solver has it anyway; None to have it computed
    """

    natural_gradient: th.Tensor
    stats: Mapping[str, float]
    product: th.Tensor | None = None


class FisherSolver(nn.Module, ABC):
    """
    Approximates (F + λI)⁻¹ g, where F is the Fisher information matrix of the policy.

    A module, so that learnt curvature follows ``.to(device)`` and is saved with the agent. What can be
    recomputed stays in plain attributes, which are not saved.

    A solver of your own: subclass, implement :meth:`solve`, and register the class with
    ``FISHER_SOLVERS["my_solver"] = MySolver``. Keyword arguments of its constructor are what
    ``fisher_solver_kwargs`` may hold.
    """

    #: The backend that runs the solver's linear algebra.
    linalg: LinearAlgebra = TORCH

    def use(self, linalg: LinearAlgebra) -> None:
        """Let a backend run the linear algebra of this solver and of the solvers inside it."""
        for module in self.modules():
            if isinstance(module, FisherSolver):
                module.linalg = linalg

    def check_size(self, n_parameters: int, n_rows: int) -> None:
        """
        Refuse a policy or a rollout that this solver cannot handle. Called once, before training.

        :param n_parameters: p, the number of parameters that act
        :param n_rows: N, the rows of a rollout that the Fisher uses
        :raises ValueError: if one is too large for this solver
        """
        return

    def update(self, problem: Problem) -> None:
        """
        Measure the rollout's curvature, once per policy update. Matrix-free solvers need not.

        :param problem: the policy update at θ_old
        """
        return

    def remembers(self) -> bool:
        """Tell whether updates depend on earlier ones; if so, the solver's state is saved with the parameters."""
        return not all(isinstance(value, str) for value in self.state_dict().values())

    def forget(self) -> None:
        """Forget what earlier updates have left behind: the next one is as the first."""
        for module in self.modules():
            if isinstance(module, Memory):
                module.clear()

    def get_extra_state(self) -> str:
        """Return what kind of solver this is, which is saved along with what it has learnt."""
        return type(self).__name__

    def set_extra_state(self, state: str) -> None:
        """Nothing to restore: :meth:`load_state_dict` has compared the kinds."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """
        Restore what a saved solver had learnt; what a solver of another kind had learnt is ignored.

        :param state_dict: what :meth:`state_dict` returned
        :param strict: see torch
        :param assign: see torch
        :return: see torch
        """
        own = self.state_dict()
        return super().load_state_dict(state_dict if _kinds(state_dict) == _kinds(own) else own, strict, assign)

    @abstractmethod
    def solve(self, problem: Problem, gradient: th.Tensor, damping: float) -> Solution:
        """
        Solve (F + λI) x = g. May be called again with more damping after one :meth:`update`.

        Leaves no trace: parameters, gradients and random number generators stay as they were.

        :param problem: the policy update at θ_old
        :param gradient: g = ∇L(θ_old), shape (p,)
        :param damping: λ ≥ 0
        :return: natural gradient and figures for the log
        :raises ArithmeticError: if the system cannot be solved in this precision; more damping may help
        """


def fisher_chain(problem: Problem) -> FisherChain | None:
    """Return a problem's Fisher as a chain of layers; None if it is not one, or the problem has no such method."""
    make: Callable[[], FisherChain | None] | None = getattr(problem, "fisher_chain", None)
    return None if make is None else make()


def layer_chain(layers: Layers) -> FisherChain | None:
    """Return layers as a chain; None if they are not one, or have no such method."""
    make: Callable[[], FisherChain | None] | None = getattr(layers, "chain", None)
    return None if make is None else make()


def _kinds(state_dict: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the kind of solver in each entry of a state dict; None for entries of another type."""
    return {name: value if isinstance(value, str) else None for name, value in state_dict.items()}


def means_over_rows(
    layers: Layers,
    statistic: Callable[[LayerRecord], dict[str, S]],
    columns: Columns = "exact",
    seed: int = 0,
    weight_sharing: WeightSharing = "expand",
) -> dict[str, S]:
    """
    Sum a statistic of each layer's records over all rows, and divide by the number of rows.

    :param layers: the policy update, layer by layer
    :param statistic: record of some rows ↦ sums over these rows, by name
    :param columns: which columns are propagated backwards
    :param seed: of random columns
    :param weight_sharing: "expand" keeps each position of a layer, "reduce" combines all of them into one
    :return: the means, by names of the form layer.statistic
    """
    sums: dict[str, S] = {}
    for records in layers.records(columns, seed, weight_sharing):
        for record in records:
            for name, new in statistic(record).items():
                key = f"{record.block.name}.{name}"
                sums[key] = sums[key] + new if key in sums else new
    return {name: total / layers.n_rows for name, total in sums.items()}
