"""How far to go along the natural gradient: step length, backtracking, and damping adapted to the measured KL."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_npg.numerics import NumericalFailure

#: What adaptive damping is multiplied or divided by, and the largest multiple; the smallest is its inverse.
DAMPING_STEP, LARGEST_DAMPING_FACTOR = 1.5, 1e4


class StepRule(ABC):
    """How long a step along x is, and how much KL the line search allows."""

    @abstractmethod
    def length(self, progress_remaining: float) -> Callable[[th.Tensor], th.Tensor]:
        """
        Return β as a function of xᵀFx, both of shape ().

        :param progress_remaining: falls from 1 to 0 during training
        :raises NumericalFailure: if the schedule is NaN there
        """

    @abstractmethod
    def kl_limit(self, progress_remaining: float) -> float:
        """Return the largest mean KL(π_old ‖ π_θ) in nats that the line search accepts."""


class TrustRegion(StepRule):
    """
    The longest step whose modelled KL stays within δ: β = √(2δ / xᵀFx).

    To second order the mean KL of a step βx is ½β² xᵀFx. F is the true, undamped Fisher whichever solver
    found x, so δ is a KL for every solver.

    Schulman et al. (2015), Trust Region Policy Optimization, appendix C.

    :param target_kl: δ in nats, as a function of the progress remaining
    """

    def __init__(self, target_kl: Schedule):
        self.target_kl = target_kl

    def length(self, progress_remaining: float) -> Callable[[th.Tensor], th.Tensor]:
        """Return xᵀFx ↦ √(2δ / xᵀFx)."""
        target_kl = _scheduled("target_kl", self.target_kl, progress_remaining)
        return lambda curvature: (2.0 * target_kl / curvature).sqrt()

    def kl_limit(self, progress_remaining: float) -> float:
        """Return δ."""
        return self.target_kl(progress_remaining)


class FixedStep(StepRule):
    """
    The same multiple of the natural gradient at every update: β = α.

    Kakade (2001), A Natural Policy Gradient, section 2.

    :param step_size: α, as a function of the progress remaining
    """

    def __init__(self, step_size: Schedule):
        self.step_size = step_size

    def length(self, progress_remaining: float) -> Callable[[th.Tensor], th.Tensor]:
        """Return xᵀFx ↦ α."""
        step_size = _scheduled("step_size", self.step_size, progress_remaining)
        return lambda curvature: step_size * th.ones_like(curvature)

    def kl_limit(self, progress_remaining: float) -> float:
        """Return infinity: a fixed step has no trust region."""
        return math.inf


def _scheduled(name: str, schedule: Schedule, progress_remaining: float) -> float:
    """Return an argument's value at some progress, at least 0."""
    value = schedule(progress_remaining)
    if math.isnan(value):
        raise NumericalFailure(f"`{name}` is NaN at a progress of {progress_remaining:g}")
    return max(value, 0.0)


class Evaluation(NamedTuple):
    """
    A policy against the policy that collected the data.

    :param before: L(θ_old)
    :param surrogate: L(θ)
    :param mean_kl: mean KL(π_old ‖ π_θ) in nats
    """

    before: float
    surrogate: float
    mean_kl: float


class Line(Protocol):
    """A step to be shortened. ``SearchLine`` of a ``LocalProblem`` is one."""

    def go(self, coefficient: float) -> Sequence[float]:
        """Move to θ_old + cβx, c = 1 first, and return the numbers of an :class:`Evaluation` there."""
        ...

    def back(self) -> None:
        """Move back to θ_old, bit for bit."""
        ...


class LineSearch(NamedTuple):
    """
    Where the step ended.

    :param accepted: whether the parameters moved
    :param coefficient: c of the step cβx; 0 if the parameters stay
    :param steps: number of trials
    :param surrogate: L at the end
    :param improvement: L at the end minus L at the start
    :param mean_kl: mean KL(π_old ‖ π_θ) in nats of the step taken; 0 if the parameters stay
    :param first_mean_kl: the same, of the full step
    """

    accepted: bool
    coefficient: float
    steps: int
    surrogate: float
    improvement: float
    mean_kl: float
    first_mean_kl: float


def backtrack(line: Line, kl_limit: float, shrinking_factor: float, max_iter: int) -> LineSearch:
    """
    Take the longest of the steps cβx, c = 1, ρ, ρ², …, that improves L and keeps the mean KL within its limit.

    If none does, the parameters are put back bit for bit. With ``max_iter`` = 0 there is no search: the full
    step is taken, unless L or KL is not finite there.

    :param line: θ_old + cβx
    :param kl_limit: largest mean KL in nats
    :param shrinking_factor: ρ, between 0 and 1
    :param max_iter: number of trials
    :return: where the step ended
    :raises NumericalFailure: if, without a search, the full step leads to a NaN or an infinity
    """
    first_mean_kl = math.nan
    for trial in range(max(max_iter, 1)):
        coefficient = shrinking_factor**trial
        now = Evaluation(*line.go(coefficient))
        first_mean_kl = now.mean_kl if trial == 0 else first_mean_kl
        finite = math.isfinite(now.surrogate) and math.isfinite(now.mean_kl)
        improves = now.surrogate > now.before and now.mean_kl <= kl_limit
        if finite and (improves or max_iter == 0):
            improvement = now.surrogate - now.before
            return LineSearch(True, coefficient, trial + 1, now.surrogate, improvement, now.mean_kl, first_mean_kl)
    line.back()
    if max_iter == 0:
        raise NumericalFailure("the policy after the full step is not finite")
    return LineSearch(False, 0.0, max_iter, now.before, 0.0, 0.0, first_mean_kl)


def increased_damping_factor(factor: float) -> float:
    """
    Return a larger damping factor, after a step that failed or cost far more KL than predicted.

    :param factor: present multiple of the damping that the user asked for
    """
    return min(factor * DAMPING_STEP, LARGEST_DAMPING_FACTOR)


def adapted_damping_factor(factor: float, search: LineSearch, predicted_kl: float) -> float:
    """
    Levenberg–Marquardt control of the damping by how well the quadratic model predicts the KL.

    More damping when the full step costs over 1.5 times the KL predicted, or when the line search rejects every
    step; less when the prediction holds within a fifth and the full step is taken, which a line search in a trust
    region allows only if it costs no more than predicted.

    After Martens (2010), Deep learning via Hessian-free optimization, section 4.1, with the KL instead
    of the loss: the KL does not have the sampling noise of the advantages.

    :param factor: present multiple of the damping that the user asked for
    :param search: where the step ended
    :param predicted_kl: ½β² xᵀFx of the full step, in nats
    :return: the factor for the next update
    """
    ratio = search.first_mean_kl / predicted_kl if predicted_kl > 0.0 else math.inf
    if not search.accepted or not ratio <= 1.5:
        return increased_damping_factor(factor)
    if 0.8 < ratio < 1.2 and search.steps == 1:
        return max(factor / DAMPING_STEP, 1.0 / LARGEST_DAMPING_FACTOR)
    return factor
