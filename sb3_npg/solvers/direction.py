"""A natural gradient that a step can be taken along, or a clean failure."""

import math
from typing import NamedTuple

import torch as th
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # torch exports it without saying so

from sb3_npg.numerics import NumericalFailure, all_finite, require_finite
from sb3_npg.solvers.base import FisherSolver, Problem

#: Multiples of the damping to try, in this order, while the solver fails.
DAMPING_RETRIES = (1.0, 10.0, 100.0, 1000.0)
#: What the retries multiply when the user asked for less damping than this.
SMALLEST_RETRY = 1e-5


class Direction(NamedTuple):
    """
    A usable natural gradient.

    :param natural_gradient: x, shape (p,)
    :param curvature: xᵀFx > 0, with the true, undamped Fisher
    :param damping: the λ that it was found with
    :param stats: the solver's figures for the log
    """

    natural_gradient: th.Tensor
    curvature: float
    damping: float
    stats: dict[str, float]


def find_direction(solver: FisherSolver, problem: Problem, gradient: th.Tensor, damping: float) -> Direction:
    """
    Solve (F + λI) x = g, with more and more damping while the solver fails or its answer is of no use.

    :param solver: the way to x
    :param problem: the policy update at θ_old
    :param gradient: g = ∇L(θ_old), shape (p,)
    :param damping: λ ≥ 0 to begin with
    :return: the first usable natural gradient
    :raises NumericalFailure: if the gradient is zero or not finite, or no damping helps
    """
    require_finite("the surrogate's gradient", gradient)
    if not bool(gradient.any()):
        raise NumericalFailure("the surrogate's gradient is zero")
    failure: Exception | None = None
    for multiple in DAMPING_RETRIES:
        trial = damping if multiple == 1.0 else multiple * max(damping, SMALLEST_RETRY)
        try:
            if multiple == 1.0:
                solver.update(problem)
            solution = solver.solve(problem, gradient, trial)
            curvature = _usable_curvature(problem, gradient, solution.natural_gradient)
            return Direction(solution.natural_gradient, curvature, trial, solution.stats)
        except (ArithmeticError, LinAlgError) as error:
            failure = error
    raise NumericalFailure(f"no natural gradient up to damping {trial:g}: {failure}")


def _usable_curvature(problem: Problem, gradient: th.Tensor, natural_gradient: th.Tensor) -> float:
    """Return xᵀFx, or fail if x is not finite, does not ascend (gᵀx ≤ 0) or moves the policy by no KL."""
    require_finite("the natural gradient", natural_gradient)
    if not float(gradient @ natural_gradient) > 0.0:
        raise NumericalFailure("the natural gradient does not ascend")
    fisher_product = problem.fisher_vector_product(natural_gradient)
    curvature = float(natural_gradient @ fisher_product)
    if not all_finite(fisher_product) or not 0.0 < curvature < math.inf:
        raise NumericalFailure(f"xᵀFx = {curvature:g} along the natural gradient is not positive")
    return curvature
