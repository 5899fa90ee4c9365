"""A natural gradient that a step can be taken along, or a clean failure."""

import math
from typing import NamedTuple

import torch as th
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # torch exports it without saying so

from sb3_npg.numerics import NumericalFailure, all_finite, require_finite
from sb3_npg.solvers.base import FisherSolver, Problem
from sb3_npg.solvers.scaling import ScaledProblem, block_scale

#: Multiples of the damping to try, in this order, while the solver fails.
DAMPING_RETRIES = (1.0, 10.0, 100.0, 1000.0)
#: What the retries multiply when the user asked for less damping than this.
SMALLEST_RETRY = 1e-5


class Direction(NamedTuple):
    """
    A usable natural gradient.

    :param natural_gradient: x, shape (p,)
    :param curvature: xᵀFx > 0, with the true, undamped Fisher
    :param slope: gᵀx > 0, what L gains to first order
    :param damping: the λ that it was found with
    :param stats: the solver's figures for the log; "residual" is ‖g − (F + λI)x‖ / ‖g‖ with the true Fisher,
        whatever the solver takes for it
    """

    natural_gradient: th.Tensor
    curvature: float
    slope: float
    damping: float
    stats: dict[str, float]


def find_direction(
    solver: FisherSolver, problem: Problem, gradient: th.Tensor, damping: float, relative: bool = False
) -> Direction:
    """
    Solve (F + λI) x = g, with more and more damping while the solver fails or its answer is of no use.

    :param solver: the way to x
    :param problem: the policy update at θ_old
    :param gradient: g = ∇L(θ_old), shape (p,)
    :param damping: λ ≥ 0 to begin with
    :param relative: whether λ is a multiple of the mean eigenvalue of each layer's block
    :return: the first usable natural gradient
    :raises NumericalFailure: if the gradient is zero or not finite, or no damping helps
    """
    require_finite("the surrogate's gradient", gradient)
    if not bool(gradient.any()):
        raise NumericalFailure("the surrogate's gradient is zero")
    scale = block_scale(problem.layers) if relative else None
    if scale is not None:
        require_finite("the trace of the Fisher", scale)
    system = problem if scale is None else ScaledProblem(problem, scale)
    right = gradient if scale is None else gradient / scale
    failure: Exception | None = None
    for multiple in DAMPING_RETRIES:
        trial = damping if multiple == 1.0 else multiple * max(damping, SMALLEST_RETRY)
        try:
            if multiple == 1.0:
                solver.update(system)
            solution = solver.solve(system, right, trial)
            product = solution.product
            if product is None:
                product = system.fisher_vector_product(solution.natural_gradient)
            slope, curvature = _usable(right, solution.natural_gradient, product)
            residual = right - product - trial * solution.natural_gradient
            stats = {**solution.stats, "residual": float(residual.norm() / right.norm())}
            x = solution.natural_gradient if scale is None else solution.natural_gradient / scale
            require_finite("the natural gradient", x)
            return Direction(x, curvature, slope, trial, stats)
        except (ArithmeticError, LinAlgError) as error:
            failure = error
    raise NumericalFailure(f"no natural gradient up to damping {trial:g}: {failure}")


def _usable(gradient: th.Tensor, natural_gradient: th.Tensor, product: th.Tensor) -> tuple[float, float]:
    """Return gᵀx and xᵀFx, or fail if x is not finite, does not ascend or moves the policy by no KL."""
    require_finite("the natural gradient", natural_gradient)
    slope, curvature = float(gradient @ natural_gradient), float(natural_gradient @ product)
    if not slope > 0.0:
        raise NumericalFailure("the natural gradient does not ascend")
    if not all_finite(product) or not 0.0 < curvature < math.inf:
        raise NumericalFailure(f"xᵀFx = {curvature:g} along the natural gradient is not positive")
    return slope, curvature
