"""A few damped Gauss–Newton steps on the value loss, by any solver that the policy step knows."""

from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_npg.checks import check_integer, check_number
from sb3_npg.critic.problem import ValueProblem
from sb3_npg.critic.solver import CriticSolver
from sb3_npg.critic.values import make_values
from sb3_npg.numerics import NumericalFailure, require_finite
from sb3_npg.parameters import ParameterVector
from sb3_npg.policy_parts import PolicyParts, criticising_modules, refresh_running_statistics
from sb3_npg.rollout import Samples
from sb3_npg.solvers import FISHER_SOLVERS, construct
from sb3_npg.solvers.direction import find_direction
from sb3_npg.solvers.scaling import mean_eigenvalue


class GaussNewtonSolver(CriticSolver):
    """
    Minimises mean (V(s) − R)² over the whole rollout by steps along (JᵀJ/N + λI)⁻¹ Jᵀ(R − V)/N.

    The damping is a multiple of the mean eigenvalue of JᵀJ/N, so it needs no tuning to the scale of rewards,
    observations or the network. It is what keeps the critic from fitting the noise of one rollout: directions with
    less curvature than λ hardly move. Each step is shortened until the loss falls. The critic is in evaluation mode,
    its own BatchNorm averages renewed on the rollout before the first step.

    Schulman et al. (2016), High-Dimensional Continuous Control Using Generalized Advantage Estimation, section 5;
    Martens (2010), Deep learning via Hessian-free optimization, section 4.

    :param fisher_solver: how the system is solved: a key of ``sb3_npg.solvers.FISHER_SOLVERS``
    :param fisher_solver_kwargs: arguments of that solver; None: up to 10 products for "cg", its defaults for another
    :param damping: λ as a multiple of the mean eigenvalue of JᵀJ/N, > 0
    :param max_change: largest root mean square change of V that the quadratic model may predict for a step, as a
        multiple of that of R − V; > 0
    :param backtrack_max_iter: number of times that a step is halved before it is given up
    :raises ValueError: if an argument is unknown or out of range
    """

    n_updates = 1

    def __init__(
        self,
        fisher_solver: str = "cg",
        fisher_solver_kwargs: dict[str, Any] | None = None,
        damping: float = 10.0,
        max_change: float = 1.0,
        backtrack_max_iter: int = 5,
    ):
        if not isinstance(fisher_solver, str) or fisher_solver not in FISHER_SOLVERS:
            raise ValueError(
                f"`critic_solver_kwargs['fisher_solver']`={fisher_solver!r} is unknown. "
                f"Choose one of {sorted(FISHER_SOLVERS)}."
            )
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

    def check_size(self, n_parameters: int, n_rows: int) -> None:
        """Refuse a critic or a rollout that the solver cannot serve."""
        self.solver.check_size(n_parameters, n_rows)

    def fit(
        self, policy: ActorCriticPolicy, parts: PolicyParts, rollout: Samples, n_updates: int, batch_size: int
    ) -> float:
        """Take up to ``n_updates`` steps; returns the loss before the first."""
        self.solver.to(policy.device)
        if parts.networks is None:
            own = criticising_modules(policy, parts)
            refresh_running_statistics(policy.predict_values, own, rollout.observations, batch_size)
        values = make_values(policy, rollout.observations, ParameterVector(parts.criticising), parts.networks)
        problem = ValueProblem(values, rollout.returns)
        losses = []
        for _ in range(n_updates):
            gradient = problem.gradient()
            losses.append(problem.loss())
            require_finite("the critic's loss", th.tensor(losses[-1]))
            if not self._step(problem, gradient, losses[-1]):
                break
            problem.refresh()
        return losses[0]

    def _step(self, problem: ValueProblem, gradient: th.Tensor, loss: float) -> bool:
        """Take one step, and tell whether there was one that makes the loss smaller."""
        try:
            damping = self.damping * mean_eigenvalue(problem.layers)
            direction = find_direction(self.solver, problem, gradient, damping)
        except NumericalFailure:
            if bool(gradient.any()):
                raise
            return False  # at a stationary point
        start = problem.vector.get()
        # The model's change of V along x has mean square xᵀFx.
        length = min(1.0, self.max_change * (loss / direction.curvature) ** 0.5)
        for _ in range(self.backtrack_max_iter + 1):
            problem.vector.set(start.add(direction.natural_gradient, alpha=length))
            if problem.loss() < loss:
                return True
            length *= 0.5
        problem.vector.set(start)
        return False
