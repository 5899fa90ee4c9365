"""Regression of the value function on the rollout's returns. Leaves the action distribution as it is."""

from typing import Any

from sb3_npg.checks import check_choice
from sb3_npg.critic.gauss_newton import GaussNewtonSolver
from sb3_npg.critic.minibatches import MinibatchSolver
from sb3_npg.critic.problem import ValueProblem
from sb3_npg.critic.solver import CriticSolver
from sb3_npg.critic.values import make_values
from sb3_npg.solvers import construct

__all__ = [
    "CRITIC_SOLVERS",
    "CriticSolver",
    "GaussNewtonSolver",
    "MinibatchSolver",
    "ValueProblem",
    "make_critic_solver",
    "make_values",
]

#: Values of ``critic_solver``.
CRITIC_SOLVERS: dict[str, type[CriticSolver]] = {"adam": MinibatchSolver, "gauss_newton": GaussNewtonSolver}


def make_critic_solver(name: str, kwargs: dict[str, Any] | None, gamma: float) -> CriticSolver:
    """
    Build a critic solver.

    :param name: one of ``CRITIC_SOLVERS``
    :param kwargs: arguments of its constructor
    :param gamma: discount factor, on which the solver's defaults may depend
    :return: the solver
    :raises ValueError: if the name or an argument is unknown or out of range
    """
    check_choice("critic_solver", name, tuple(CRITIC_SOLVERS))
    argument, solver_class = "critic_solver_kwargs", CRITIC_SOLVERS[name]
    if kwargs is None or isinstance(kwargs, dict):
        kwargs = {**solver_class.defaults(gamma), **(kwargs or {})}
    return construct(solver_class, kwargs, argument, f"critic_solver={name!r}", own_name=argument)
