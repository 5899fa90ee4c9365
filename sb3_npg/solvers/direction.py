"""A natural gradient that a step can be taken along, or a clean failure."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch as th
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # torch exports it without saying so

from sb3_npg.numerics import NumericalFailure, require_finite
from sb3_npg.search_line import SearchLine
from sb3_npg.solvers.base import FisherSolver, LazyFigures, Problem, Solution
from sb3_npg.solvers.scaling import ScaledProblem, block_scale

#: Multiples of the damping to try, in this order, while the solver fails.
DAMPING_RETRIES = (1.0, 10.0, 100.0, 1000.0)
#: The damping that the retries multiply if the user asked for less than this.
SMALLEST_RETRY = 1e-5


class Direction(NamedTuple):
    """
    A usable natural gradient.

    :param natural_gradient: x, shape (p,)
    :param norm: ‖x‖
    :param curvature: xᵀFx > 0, with the true, undamped Fisher
    :param slope: gᵀx > 0, the gain in L to first order
    :param damping: the λ that it was found with
    :param stats: the solver's figures for the log; "residual" is ‖g − (F + λI)x‖ / ‖g‖ with the true Fisher,
        whatever approximation the solver uses
    """

    natural_gradient: th.Tensor
    norm: float
    curvature: float
    slope: float
    damping: float
    stats: Mapping[str, float]

    def predicted_kl(self, length: float) -> float:
        """Return the KL of the step βx to second order, ½β² xᵀFx in nats, for β = ``length``."""
        return 0.5 * length**2 * self.curvature


def find_direction(
    solver: FisherSolver,
    problem: Problem,
    gradient: th.Tensor,
    damping: float,
    relative: bool = False,
    line: SearchLine | None = None,
) -> Direction:
    """
    Solve (F + λI) x = g, with more and more damping while the solver fails or its answer is unusable.

    :param solver: finds x
    :param problem: the policy update at θ_old
    :param gradient: g = ∇L(θ_old), shape (p,)
    :param damping: λ ≥ 0 to begin with
    :param relative: whether λ is a multiple of the mean eigenvalue of each layer's block
    :param line: if given, takes the full step along x too, so that the figures of both are read together
    :return: the first usable natural gradient
    :raises NumericalFailure: if the gradient is zero or not finite, or no damping helps
    """
    system = _scaled(problem) if relative else problem
    right = gradient / system.scale
    failure: Exception | None = None
    try:
        solver.update(system)
    except (ArithmeticError, LinAlgError) as error:
        _require_slope(gradient)
        raise NumericalFailure(f"the curvature cannot be measured: {error}") from error
    for multiple in DAMPING_RETRIES:
        trial = damping if multiple == 1.0 else multiple * max(damping, SMALLEST_RETRY)
        try:
            return _usable(system, right, solver.solve(system, right, trial), trial, line)
        except (ArithmeticError, LinAlgError) as error:
            _require_slope(gradient)  # more damping would not help
            failure = error
            if line is not None:
                line.back()
    raise NumericalFailure(f"no natural gradient up to damping {trial:g}: {failure}")


def _scaled(problem: Problem) -> ScaledProblem:
    """Return a problem in the coordinates in which each block's mean eigenvalue is one."""
    scale = block_scale(problem.layers)
    require_finite("the trace of the Fisher", scale)
    return ScaledProblem(problem, scale)


def _require_slope(gradient: th.Tensor) -> None:
    """Fail if the gradient is zero or not finite."""
    largest = float(gradient.abs().max())
    if not math.isfinite(largest):
        raise NumericalFailure("the surrogate's gradient is not finite")
    if largest == 0.0:
        raise NumericalFailure("the surrogate's gradient is zero, as where all advantages are the same")


def _usable(
    system: Problem, right: th.Tensor, solution: Solution, damping: float, line: SearchLine | None
) -> Direction:
    """
    Return a solution as a direction in the parameters' own coordinates, after the full step along it.

    Raises if x is not finite, does not ascend or has no positive curvature. All is read from the device at once.
    """
    scaled = solution.natural_gradient
    product = system.fisher_vector_product(scaled) if solution.product is None else solution.product
    x = scaled / system.scale
    left = (right - product - damping * scaled).norm()
    figures = th.stack([right @ scaled, scaled @ product, x.norm(), left, right.norm()])
    ahead = figures[:0] if line is None else line.take(x, figures[1])
    slope, curvature, norm, left_norm, right_norm, *found = th.cat([figures, ahead]).tolist()
    if not (math.isfinite(slope) and math.isfinite(norm)):
        raise NumericalFailure("the natural gradient is not finite")
    if not slope > 0.0:
        raise NumericalFailure("the natural gradient does not ascend")
    if not 0.0 < curvature < math.inf:
        raise NumericalFailure(f"xᵀFx = {curvature:g} along the natural gradient is not positive")
    if line is not None:
        line.read(found, norm)
    residual = left_norm / right_norm if right_norm > 0.0 else math.nan
    stats = LazyFigures(lambda: {**solution.stats, "residual": residual})
    return Direction(x, norm, curvature, slope, damping, stats)
