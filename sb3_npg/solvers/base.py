"""What a Fisher solver is: x ≈ (F + λI)⁻¹ g for a problem that it sees through two methods."""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch as th
from torch import nn


class Problem(Protocol):
    """What a solver may ask of a policy update. ``LocalProblem`` is one; a test can make another."""

    def fisher_vector_product(self, vector: th.Tensor) -> th.Tensor:
        """Return F v, undamped, for v of shape (p,)."""
        ...

    def dense_fisher(self) -> th.Tensor:
        """Return F, undamped, of shape (p, p)."""
        ...


class Solution(NamedTuple):
    """
    A natural gradient and how it was found.

    :param natural_gradient: x ≈ (F + λI)⁻¹ g, shape (p,)
    :param stats: figures for the log; ``{"steps": 10.0}`` appears as ``train/solver_steps``
    """

    natural_gradient: th.Tensor
    stats: dict[str, float]


class FisherSolver(nn.Module, ABC):
    """
    Approximates (F + λI)⁻¹ g, where F is the Fisher information matrix of the policy.

    A module, so that learnt curvature kept in buffers follows ``.to(device)`` and is saved with the
    agent. What can be recomputed stays in plain attributes, which are not saved.

    A solver of your own: subclass, implement :meth:`solve`, and register the class with
    ``FISHER_SOLVERS["my_solver"] = MySolver``. Keyword arguments of its constructor are what
    ``fisher_solver_kwargs`` may hold.
    """

    def check_size(self, n_parameters: int) -> None:
        """
        Refuse a policy that this solver cannot serve. Called once, before training.

        :param n_parameters: p, the number of parameters that act
        :raises ValueError: if the policy is too large for this solver
        """
        return

    def update(self, problem: Problem) -> None:
        """
        Look at the rollout's curvature, once per policy update. Matrix-free solvers need not.

        :param problem: the policy update at θ_old
        """
        return

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
