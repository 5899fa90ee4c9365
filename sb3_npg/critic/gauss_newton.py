"""Damped Gauss–Newton steps on the value loss, with any of the Fisher solvers."""

import math
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_npg.checks import check_choice, check_integer, check_number
from sb3_npg.critic.problem import ProximalProblem, ValueProblem
from sb3_npg.critic.solver import CriticSolver
from sb3_npg.critic.values import make_values
from sb3_npg.linalg import LinearAlgebra
from sb3_npg.numerics import NumericalFailure
from sb3_npg.parameters import ParameterVector
from sb3_npg.policy_parts import PolicyParts, critic_modules, refresh_running_statistics, trained_modules
from sb3_npg.rollout import Samples
from sb3_npg.solvers import FISHER_SOLVERS, ScaledProblem, construct, find_direction, mean_eigenvalue

#: λ as a multiple of the mean eigenvalue, and ``min_gain``, up to γ = 0.99.
DEFAULT_DAMPING, DEFAULT_MIN_GAIN = 10.0, 0.3
#: Smallest σ that the last layer is measured in, as its first weights are of order one whatever the returns.
SMALLEST_UNIT = 0.1


class GaussNewtonSolver(CriticSolver):
    """
    Minimises ½ mean (V(s) − R)² + ½ λ‖S(w − w₀)‖² over the whole rollout, where w₀ are the critic's parameters
    after its intercept has moved, and the diagonal S puts the last layer in units of the returns' standard deviation.

    Each step is along (JᵀJ/N + λS²)⁻¹ (Jᵀ(R − V)/N − λS²(w − w₀)), shortened until the objective falls. Mostly one
    suffices; after one that was shortened, more are taken, until the next one promises little of what was gained: the
    harder a rollout is fitted, the more of its noise is. Before the first step V's intercept, the bias of
    ``policy.value_net``, moves by 1/(1 + damping) of the mean of R − V: a damped step in a direction of curvature one.
    An error that all states share does not tell one action from another, and must not be spread over the parameters
    that do.

    The damping is a multiple of the mean eigenvalue of S⁻¹JᵀJS⁻¹/N on the rollout, so it needs no tuning to the
    scale of rewards, observations or the network. It keeps the critic from fitting the noise of one rollout:
    directions with less curvature than λ hardly move. The critic is in evaluation mode; BatchNorm averages that belong
    only to it are refreshed on the rollout before the first step.

    Schulman et al. (2016), High-Dimensional Continuous Control Using Generalized Advantage Estimation, section 5;
    Martens (2010), Deep learning via Hessian-free optimization, section 4; Parikh and Boyd (2014), Proximal
    Algorithms, section 4.1.

    :param fisher_solver: how the system is solved: a key of ``sb3_npg.solvers.FISHER_SOLVERS``
    :param fisher_solver_kwargs: arguments of that solver; None: up to 10 products for "cg", its defaults for another.
        What they say of updates holds for the steps on one rollout: nothing is remembered from one to the next
    :param damping: λ as a multiple of the mean eigenvalue of S⁻¹JᵀJS⁻¹/N, > 0; by default it depends on γ, see
        :meth:`defaults`
    :param max_change: largest root mean square change of V that the quadratic model may predict for a step, as a
        multiple of the root mean square of R − V before the first step; > 0
    :param backtrack_max_iter: how often a step is halved before it is given up
    :param min_gain: a step after the first is taken if its predicted gain is at least this fraction of what those
        before it have gained; like the damping it depends on γ by default
    :raises ValueError: if an argument is unknown or out of range
    """

    n_updates = 8

    def __init__(
        self,
        fisher_solver: str = "cg",
        fisher_solver_kwargs: dict[str, Any] | None = None,
        damping: float = DEFAULT_DAMPING,
        max_change: float = 1.0,
        backtrack_max_iter: int = 5,
        min_gain: float = DEFAULT_MIN_GAIN,
    ):
        check_choice("critic_solver_kwargs['fisher_solver']", fisher_solver, tuple(sorted(FISHER_SOLVERS)))
        check_number("critic_solver_kwargs['damping']", damping, above=0.0)
        check_number("critic_solver_kwargs['max_change']", max_change, above=0.0)
        check_integer("critic_solver_kwargs['backtrack_max_iter']", backtrack_max_iter, minimum=0)
        check_number("critic_solver_kwargs['min_gain']", min_gain, minimum=0.0)
        if fisher_solver == "cg" and fisher_solver_kwargs is None:
            fisher_solver_kwargs = {"max_steps": 10}
        self.solver = construct(
            FISHER_SOLVERS[fisher_solver],
            fisher_solver_kwargs,
            "critic_solver_kwargs['fisher_solver_kwargs']",
            f"fisher_solver={fisher_solver!r}",
        )
        self.damping = damping
        self.max_change = max_change
        self.backtrack_max_iter = backtrack_max_iter
        self.min_gain = min_gain

    @classmethod
    def defaults(cls, gamma: float) -> dict[str, Any]:
        """
        Return a damping of 10 and a least gain of 0.3 up to γ = 0.99, and both in proportion to 1 − γ above: a
        hundredth of them at γ = 0.9999, at least a thousandth.

        The returns bootstrap on V, so an error of V persists from rollout to rollout: even an exact fit keeps the
        fraction 1 − (1 − γ)/(1 − γλ) of an error that all states share, with the λ of GAE. Damping delays each fit
        further, and so does stopping early; the longer the horizon, the less delay can be afforded.

        :param gamma: discount factor
        """
        part = min(1.0, max(1e-3, (1.0 - gamma) / 0.01))
        return {"damping": DEFAULT_DAMPING * part, "min_gain": DEFAULT_MIN_GAIN * part}

    def use(self, linalg: LinearAlgebra) -> None:
        """Let a backend run the linear algebra of the solver."""
        self.solver.use(linalg)

    def check_size(self, n_parameters: int, n_rows: int) -> None:
        """Refuse a critic or a rollout that the solver cannot handle."""
        try:
            self.solver.check_size(n_parameters, n_rows)
        except ValueError as error:
            raise ValueError(f"`critic_solver_kwargs` cannot serve this critic: {error}") from error

    def fit(
        self, policy: ActorCriticPolicy, parts: PolicyParts, rollout: Samples, n_updates: int, batch_size: int
    ) -> float:
        """Take up to ``n_updates`` steps; returns the loss before the first."""
        self.solver.to(policy.device).forget()  # the scale S is another one on each rollout
        if parts.critic is None:
            own = trained_modules(policy, critic_modules(policy, parts))
            refresh_running_statistics(policy.predict_values, own, rollout.observations, batch_size)
        values = make_values(policy, rollout.observations, ParameterVector(parts.critic_parameters), parts.critic)
        problem = ValueProblem(values, rollout.returns)
        scale = _scale_of(policy, problem)
        loss, left, eigenvalue = _fit_intercept(policy, problem, scale, self.damping)
        if not math.isfinite(loss):
            raise NumericalFailure("the critic's loss is not finite")
        objective = ProximalProblem(problem, scale, self.damping * eigenvalue)
        start = value = 0.5 * left
        for _ in range(n_updates):
            lower = self._step(objective, value, self.max_change * left**0.5, at_least=self.min_gain * (start - value))
            if not lower < value:
                break
            value = lower
            problem.refresh()
        return loss

    def _step(self, objective: ProximalProblem, value: float, reach: float, at_least: float) -> float:
        """Take one step within reach if its predicted gain exceeds ``at_least``; return the objective afterwards."""
        gradient = objective.gradient()
        # gᵀ(F + λS²)⁻¹g ≤ ‖S⁻¹g‖²/λ: no step can promise more than half of that.
        if at_least > 0.0 and 0.5 * float((gradient / objective.problem.scale).square().sum()) <= (
            at_least * objective.damping
        ):
            return value
        try:
            direction = find_direction(self.solver, objective.problem, gradient, objective.damping)
        except NumericalFailure:
            if bool(gradient.any()):
                raise
            return value  # at a stationary point
        if 0.5 * direction.slope <= at_least:
            return value
        vector = objective.regression.vector
        start = vector.get()
        # To first order, a step along x changes V by a mean square of xᵀFx.
        length = min(1.0, reach / direction.curvature**0.5)
        for _ in range(self.backtrack_max_iter + 1):
            vector.set(start.add(direction.natural_gradient, alpha=length))
            if (lower := objective.value()) < value:
                return lower
            length *= 0.5
        vector.set(start)
        return value


def _scale_of(policy: ActorCriticPolicy, problem: ValueProblem) -> th.Tensor:
    """
    Return the diagonal of S: 1/σ for the last layer, else 1; σ is the returns' standard deviation.

    V varies by σ, so the last layer has to grow to about σ, while the layers before it are of order one. In θ itself
    the step of least norm would change all of them alike, and saturate their units.
    """
    scale = th.ones_like(problem.vector.get())
    last = getattr(policy, "value_net", None)
    if isinstance(last, th.nn.Linear):
        sigma = problem.returns.std(correction=0).clamp_min(SMALLEST_UNIT)
        for parameter in last.parameters():
            span = problem.vector.span_of(parameter)
            if span is not None:
                scale[span] = 1.0 / sigma
    return scale


def _fit_intercept(
    policy: ActorCriticPolicy, problem: ValueProblem, scale: th.Tensor, damping: float
) -> tuple[float, float, float]:
    """
    Move the last bias of V by itself, if it is one of the critic's parameters.

    :return: the loss before and after, and the mean eigenvalue of S⁻¹JᵀJS⁻¹/N before, in one read from the device
    """
    own = getattr(getattr(policy, "value_net", None), "bias", None)
    bias = next((tensor for tensor in problem.vector.tensors if tensor is own), None)
    eigenvalue = mean_eigenvalue(ScaledProblem(problem, scale).layers)
    residuals = problem.residuals()
    before = residuals.square().mean()
    if bias is None:
        loss, mean = th.stack([before, eigenvalue]).tolist()
        return loss, loss, mean
    start = bias.detach().clone()
    with th.no_grad():
        bias.add_(residuals.mean() / (1.0 + damping))
        loss, left, mean = th.stack([before, problem.loss(), eigenvalue]).tolist()
        if not left <= loss:  # a custom policy, which does more to V after this bias
            bias.copy_(start)
            left = loss
    problem.refresh()
    return loss, left, mean
