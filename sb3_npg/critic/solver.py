"""The interface of critic solvers."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_npg.linalg import LinearAlgebra
from sb3_npg.policy_parts import PolicyParts
from sb3_npg.rollout import Samples


class CriticSolver(ABC):
    """
    Regresses the value function on a rollout's returns.

    ``n_updates`` is the default amount of work, in the solver's own units such as epochs or steps.
    """

    n_updates: ClassVar[int]

    @classmethod
    def defaults(cls, gamma: float) -> dict[str, Any]:
        """
        Return defaults for those arguments of the constructor that depend on the discount factor.

        :param gamma: discount factor
        """
        return {}

    def use(self, linalg: LinearAlgebra) -> None:
        """Let a backend run the linear algebra, if there is any."""
        return

    def check_size(self, n_parameters: int, n_rows: int) -> None:
        """
        Refuse a critic or a rollout that this solver cannot handle. Called once, before training.

        :param n_parameters: number of the critic's parameters
        :param n_rows: rows of a rollout
        :raises ValueError: if one is too large for this solver
        """
        return

    @abstractmethod
    def fit(
        self, policy: ActorCriticPolicy, parts: PolicyParts, rollout: Samples, n_updates: int, batch_size: int
    ) -> float:
        """
        Fit the value function, moving only the critic's parameters.

        :param policy: SB3 actor-critic policy, in evaluation mode
        :param parts: its actor and its critic; the critic has parameters
        :param rollout: all rows of the rollout
        :param n_updates: how much to do, in the solver's own units, at least 1
        :param batch_size: rows in a minibatch, if the solver uses any
        :return: mean (V(s) − R)² before or during the fit
        :raises NumericalFailure: if a loss or a parameter is not finite at the end
        """
