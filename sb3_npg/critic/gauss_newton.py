"""Damped Gauss–Newton steps on the value loss, by any solver that the policy step knows."""

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
from sb3_npg.policy_parts import PolicyParts, criticising_modules, refresh_running_statistics
from sb3_npg.rollout import Samples
from sb3_npg.solvers import FISHER_SOLVERS, ScaledProblem, construct, find_direction, mean_eigenvalue

#: A step is not taken if it promises less than this part of what the steps before it have gained.
WORTHWHILE = 0.02


class GaussNewtonSolver(CriticSolver):
    """
    Minimises ½ mean (V(s) − R)² + ½ λ‖w − w₀‖² over the whole rollout, w₀ being the critic's parameters
    once its intercept has moved.

    Each step is along (JᵀJ/N + λI)⁻¹ (Jᵀ(R − V)/N − λ(w − w₀)), shortened until the objective falls. One or two do
    at the default damping; with less of it the objective is less like a quadratic one, and more are taken, until the
    next promises little. Before them V's intercept, the bias of ``policy.value_net``, takes up its part of the mean of
    R − V, 1/(1 + damping), as its own eigenvalue is one: what all states have in common tells no action from another,
    and must not be spread over what does.

    The damping is a multiple of the mean eigenvalue of JᵀJ/N as the rollout finds it, so it needs no tuning to the
    scale of rewards, observations or the network. It is what keeps the critic from fitting the noise of one rollout:
    directions with less curvature than λ hardly move. The critic is in evaluation mode, its own BatchNorm averages
    renewed on the rollout before the first step.

    Schulman et al. (2016), High-Dimensional Continuous Control Using Generalized Advantage Estimation, section 5;
    Martens (2010), Deep learning via Hessian-free optimization, section 4; Parikh and Boyd (2014), Proximal
    Algorithms, section 4.1.

    :param fisher_solver: how the system is solved: a key of ``sb3_npg.solvers.FISHER_SOLVERS``
    :param fisher_solver_kwargs: arguments of that solver; None: up to 10 products for "cg", its defaults for another
    :param damping: λ as a multiple of the mean eigenvalue of JᵀJ/N, > 0; ``NPG`` lets it follow γ, see ``defaults``
    :param max_change: largest root mean square change of V that the quadratic model may predict for a step, as a
        multiple of that of R − V before the first; > 0
    :param backtrack_max_iter: number of times that a step is halved before it is given up
    :raises ValueError: if an argument is unknown or out of range
    """

    n_updates = 8

    def __init__(
        self,
        fisher_solver: str = "cg",
        fisher_solver_kwargs: dict[str, Any] | None = None,
        damping: float = 10.0,
        max_change: float = 1.0,
        backtrack_max_iter: int = 5,
    ):
        check_choice("critic_solver_kwargs['fisher_solver']", fisher_solver, tuple(sorted(FISHER_SOLVERS)))
        check_number("critic_solver_kwargs['damping']", damping, above=0.0)
        check_number("critic_solver_kwargs['max_change']", max_change, above=0.0)
        check_integer("critic_solver_kwargs['backtrack_max_iter']", backtrack_max_iter, minimum=0)
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

    @classmethod
    def defaults(cls, gamma: float) -> dict[str, Any]:
        """
        Return a damping of 10 up to γ = 0.99, above it in proportion to 1 − γ: 0.1 at γ = 0.9999; 0.01 at least.

        The returns bootstrap on V, so what V lacks goes from rollout to rollout: one that is fitted exactly keeps
        1 − (1 − γ)/(1 − γλ) of an error that all states share, λ being that of GAE. Damping adds its own delay to
        each fit. The longer the horizon, the less of that is left to spare.

        :param gamma: discount factor
        """
        return {"damping": 10.0 * min(1.0, max(1e-3, (1.0 - gamma) / 0.01))}

    def use(self, linalg: LinearAlgebra) -> None:
        """Let a backend run the linear algebra of the solver."""
        self.solver.use(linalg)

    def check_size(self, n_parameters: int, n_rows: int) -> None:
        """Refuse a critic or a rollout that the solver cannot serve."""
        try:
            self.solver.check_size(n_parameters, n_rows)
        except ValueError as error:
            raise ValueError(f"`critic_solver_kwargs` cannot serve this critic: {error}") from error

    def fit(
        self, policy: ActorCriticPolicy, parts: PolicyParts, rollout: Samples, n_updates: int, batch_size: int
    ) -> float:
        """Take up to ``n_updates`` steps; returns the loss before the first."""
        self.solver.to(policy.device)
        if parts.critic is None:
            own = criticising_modules(policy, parts)
            refresh_running_statistics(policy.predict_values, own, rollout.observations, batch_size)
        values = make_values(policy, rollout.observations, ParameterVector(parts.criticising), parts.critic)
        problem = ValueProblem(values, rollout.returns)
        scale = _scale_of(policy, problem)
        loss, left, eigenvalue = _fit_intercept(policy, problem, scale, self.damping)
        if not math.isfinite(loss):
            raise NumericalFailure("the critic's loss is not finite")
        objective = ProximalProblem(problem, scale, self.damping * eigenvalue)
        start = value = 0.5 * left
        for _ in range(n_updates):
            lower = self._step(objective, value, self.max_change * left**0.5, at_least=WORTHWHILE * (start - value))
            if not lower < value:
                break
            value = lower
            problem.refresh()
        return loss

    def _step(self, objective: ProximalProblem, value: float, reach: float, at_least: float) -> float:
        """Take one step within reach that promises enough, and return the objective after it; as it was without one."""
        gradient = objective.gradient()
        # gᵀ(F + λI)⁻¹g ≤ ‖g‖²/λ: no step along any x can promise more.
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
        # The model's change of V along x has mean square xᵀFx.
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
    Return the diagonal of S: 1/σ for the last layer, which is so measured in returns' standard deviations, else 1.

    What V lacks is σ, so that the last layer has to come to about σ, while the layers before it are of order one. In
    θ itself the step of least norm would spread it over all of them alike, and saturate their units.
    """
    scale = th.ones_like(problem.vector.get())
    last = getattr(policy, "value_net", None)
    if isinstance(last, th.nn.Linear):
        sigma = problem.returns.std(correction=0).clamp_min(1.0)
        for parameter in last.parameters():
            span = problem.vector.span_of(parameter)
            if span is not None:
                scale[span] = 1.0 / sigma
    return scale


def _fit_intercept(
    policy: ActorCriticPolicy, problem: ValueProblem, scale: th.Tensor, damping: float
) -> tuple[float, float, float]:
    """
    Move the bias that V ends in by itself, if it is the critic's to move.

    :return: the loss before and after, and the mean eigenvalue of S⁻¹JᵀJS⁻¹/N before: one look at the device
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
        if not left <= loss:  # a policy of its own kind, which does more to V after this bias
            bias.copy_(start)
            left = loss
    problem.refresh()
    return loss, left, mean
