"""A natural gradient that a step can be taken along, or a clean failure."""

import math
from typing import NamedTuple

import torch as th
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # torch exports it without saying so

from sb3_npg.numerics import NumericalFailure, require_finite
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
    _require_slope(gradient)
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
            slope, curvature, residual = _usable(right, solution.natural_gradient, product, trial)
            stats = {**solution.stats, "residual": residual}
            if scale is None:
                return Direction(solution.natural_gradient, curvature, slope, trial, stats)
            x = solution.natural_gradient / scale
            require_finite("the natural gradient", x)
            return Direction(x, curvature, slope, trial, stats)
        except (ArithmeticError, LinAlgError) as error:
            failure = error
    raise NumericalFailure(f"no natural gradient up to damping {trial:g}: {failure}")


def _require_slope(gradient: th.Tensor) -> None:
    """Fail if the gradient is zero or not finite."""
    largest = float(gradient.abs().max())
    if not math.isfinite(largest):
        raise NumericalFailure("the surrogate's gradient is not finite")
    if largest == 0.0:
        raise NumericalFailure("the surrogate's gradient is zero")


def _usable(
    gradient: th.Tensor, natural_gradient: th.Tensor, product: th.Tensor, damping: float
) -> tuple[float, float, float]:
    """
    Return gᵀx, xᵀFx and the relative residual.

    Fails if x is not finite, does not ascend or moves the policy by no KL. A NaN or an infinity in a vector is one in
    its inner product too, so one look at the device tells all.
    """
    residual = gradient - product - damping * natural_gradient
    norms = residual.norm(), gradient.norm()
    slope, curvature, left, whole = th.stack([gradient @ natural_gradient, natural_gradient @ product, *norms]).tolist()
    if not math.isfinite(slope):
        raise NumericalFailure("the natural gradient is not finite")
    if not slope > 0.0:
        raise NumericalFailure("the natural gradient does not ascend")
    if not 0.0 < curvature < math.inf:
        raise NumericalFailure(f"xᵀFx = {curvature:g} along the natural gradient is not positive")
    return slope, curvature, left / whole if whole > 0.0 else math.nan
