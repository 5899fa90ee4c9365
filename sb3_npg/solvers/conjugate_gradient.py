"""Conjugate gradient on Fisher-vector products: the full Fisher, never formed."""

import math
from functools import partial
from typing import Any

import torch as th

from sb3_npg.checks import check_choice, check_flag, check_integer, check_number
from sb3_npg.solvers.base import FisherSolver, LazyFigures, Problem, Solution, fisher_chain
from sb3_npg.solvers.block_diagonal import BlockDiagonalSolver
from sb3_npg.solvers.construction import construct
from sb3_npg.solvers.diagonal import DiagonalSolver
from sb3_npg.solvers.ekfac import EKFACSolver
from sb3_npg.solvers.kfac import KFACSolver
from sb3_npg.solvers.memory import Memory

#: Approximations of F that can precondition conjugate gradient.
PRECONDITIONERS: dict[str, type[BlockDiagonalSolver]] = {
    "diagonal": DiagonalSolver,
    "ekfac": EKFACSolver,
    "kfac": KFACSolver,
}


class ConjugateGradientSolver(FisherSolver):
    """
    Solves (F + λI) x = g by conjugate gradient, with one Fisher-vector product per step.

    A preconditioner M ≈ F + λI, inverted at each step, turns the steps towards the directions that matter; the
    solution is still that of the full Fisher. With momentum the system is (F + λI) x = g + λμ x₋, where x₋ is the
    natural gradient of the previous update: it is carried over in directions that this rollout tells nothing about.

    Schulman et al. (2015), Trust Region Policy Optimization, appendix C; Martens (2010), Deep learning via
    Hessian-free optimization, sections 4.5 and 4.7; momentum: Goldshlager, Abrahamsen & Lin (2024), A
    Kaczmarz-inspired approach to accelerate the optimization of neural network wavefunctions (SPRING), section 3.

    :param max_steps: largest number of steps in a solve
    :param rtol: stop earlier if the residual's norm is at most this fraction of the right-hand side's
    :param preconditioner: "kfac", "ekfac", "diagonal", or None
    :param preconditioner_kwargs: arguments of the solver of that name
    :param warm_start: start at x₋ instead of zero, which costs one more product
    :param momentum: μ, in [0, 1); starts at μ x₋, which costs one more product. Above 0.95 it may diverge
    :raises ValueError: if an argument is unknown or out of range, or two of them contradict each other
    """

    def __init__(
        self,
        max_steps: int = 15,
        rtol: float = 0.01,
        preconditioner: str | None = None,
        preconditioner_kwargs: dict[str, Any] | None = None,
        warm_start: bool = False,
        momentum: float = 0.0,
    ):
        super().__init__()
        check_integer("fisher_solver_kwargs['max_steps']", max_steps, minimum=1)
        check_number("fisher_solver_kwargs['rtol']", rtol, minimum=0.0, below=1.0)
        check_flag("fisher_solver_kwargs['warm_start']", warm_start)
        check_number("fisher_solver_kwargs['momentum']", momentum, minimum=0.0, below=1.0)
        if warm_start and momentum > 0.0:
            raise ValueError(
                f"`fisher_solver_kwargs['warm_start']`={warm_start} starts at x₋ and "
                f"`fisher_solver_kwargs['momentum']`={momentum} at μ x₋. Give one of them."
            )
        self.max_steps = max_steps
        self.rtol = rtol
        self.warm_start = warm_start
        self.momentum = momentum
        self.preconditioner = _make_preconditioner(preconditioner, preconditioner_kwargs)
        self.memory = Memory(carries_over=warm_start or momentum > 0.0)

    def update(self, problem: Problem) -> None:
        """Let the preconditioner measure the curvature; the last natural gradient becomes x₋."""
        if self.preconditioner is not None:
            self.preconditioner.update(problem)
        if "latest" in self.memory.tensors:
            self.memory.tensors["previous"] = self.memory.tensors["latest"]

    def solve(self, problem: Problem, gradient: th.Tensor, damping: float) -> Solution:
        """Run conjugate gradient."""
        preconditioned = self.preconditioner and partial(self.preconditioner.apply_inverse, damping=damping)
        right, start = self._system(problem, gradient, damping)
        solve = partial(
            self.linalg.conjugate_gradient,
            problem.fisher_vector_product,
            max_steps=self.max_steps,
            rtol=self.rtol,
            preconditioner=preconditioned,
            shift=damping,
            chain=partial(fisher_chain, problem),
        )
        result = solve(right, x0=start)
        if start is not None and not float(gradient @ result.x) > 0.0:
            # What was carried over points downhill for this rollout, and more damping would only keep more of it.
            result = solve(gradient)
        if self.memory.carries_over and 0.0 < float(gradient @ result.x) < math.inf:
            self.memory.tensors["latest"] = result.x / problem.scale
        figures = LazyFigures(lambda: {"steps": float(result.steps), "condition": result.condition})
        return Solution(result.x, figures, result.product)

    def _system(self, problem: Problem, gradient: th.Tensor, damping: float) -> tuple[th.Tensor, th.Tensor | None]:
        """Return the right-hand side and where to start."""
        if not self.memory.has("previous", *gradient.shape):  # the first update, or other parameters act now
            return gradient, None
        previous = self.memory.tensors["previous"] * problem.scale
        if self.warm_start:
            return gradient, previous
        return gradient.add(previous, alpha=damping * self.momentum), self.momentum * previous


def _make_preconditioner(name: str | None, kwargs: dict[str, Any] | None) -> BlockDiagonalSolver | None:
    """Build the preconditioner, or complain about its arguments."""
    if name is None:
        if kwargs:
            raise ValueError(
                f"`fisher_solver_kwargs['preconditioner_kwargs']`={kwargs!r} has no preconditioner to go to. "
                f"Give fisher_solver_kwargs={{'preconditioner': ...}}, one of {sorted(PRECONDITIONERS)}."
            )
        return None
    check_choice("fisher_solver_kwargs['preconditioner']", name, tuple(sorted(PRECONDITIONERS)))
    return construct(PRECONDITIONERS[name], kwargs, "fisher_solver_kwargs['preconditioner_kwargs']", f"{name!r}")
