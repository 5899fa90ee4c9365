"""SB3's exploration noise of continuous actions: log σ(s) as a function of one parameter, and its derivative."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch as th
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    Distribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
from torch import nn


class ExplorationNoise(ABC):
    """
    The part of a Gaussian policy that sets σ.

    :param parameter: the policy's ``log_std``
    """

    def __init__(self, parameter: nn.Parameter):
        self.parameter = parameter

    @abstractmethod
    def log_std(self, features: th.Tensor) -> th.Tensor:
        """
        Return log σ.

        :param features: what goes into the policy's last layer, shape (n, d)
        :return: shape (n, action_dim)
        """

    @abstractmethod
    def jacobian(self, features: th.Tensor) -> "FreeNoiseJacobian | StateDependentNoiseJacobian":
        """Return ∂log σ / ∂parameter for features of shape (n, d)."""

    def draw(self, features: th.Tensor) -> th.Tensor | None:
        """Return noise from gSDE's present exploration matrices, shape (n, action_dim); None to draw it afresh."""
        return None


class FreeNoise(ExplorationNoise):
    """log σ is the parameter itself, shape (action_dim,), whatever the state."""

    def log_std(self, features: th.Tensor) -> th.Tensor:
        """Return the parameter for each row."""
        return self.parameter.expand(len(features), -1)

    def jacobian(self, features: th.Tensor) -> "FreeNoiseJacobian":
        """Return the identity, for each row."""
        return FreeNoiseJacobian(self.parameter.detach(), len(features))


class StateDependentNoise(ExplorationNoise):
    """
    gSDE: σ² = h²ᵀS² + ε with features h, at which SB3 stops the gradient, and S a function of the parameter ls.

    Raffin, Kober & Stulp (2022), Smooth Exploration for Robotic Reinforcement Learning, section 3.

    :param parameter: ls, shape (d, action_dim), or (d, 1) if all actions share one column
    :param distribution: the policy's
    """

    def __init__(self, parameter: nn.Parameter, distribution: StateDependentNoiseDistribution):
        super().__init__(parameter)
        self.distribution = distribution

    def log_std(self, features: th.Tensor) -> th.Tensor:
        """Return ½ log(h²ᵀS² + ε)."""
        std = self.distribution.get_std(self.parameter)
        return 0.5 * th.log(features.detach().square() @ std.square() + self.distribution.epsilon)

    @th.no_grad()
    def jacobian(self, features: th.Tensor) -> "StateDependentNoiseJacobian":
        """Return h² S∘dS/dls / σ²."""
        with th.enable_grad():
            shape = (len(self.parameter), self.distribution.action_dim)
            log_std = self.parameter.detach().expand(shape).clone().requires_grad_()
            std = self.distribution.get_std(log_std)
            (slope,) = th.autograd.grad(std.sum(), log_std)
        squares = features.square()
        variance = squares @ std.square() + self.distribution.epsilon
        return StateDependentNoiseJacobian(squares, std.detach() * slope, variance, self.distribution.full_std)

    def draw(self, features: th.Tensor) -> th.Tensor | None:
        """Return the features times the exploration matrices."""
        return self.distribution.get_noise(features)


class FreeNoiseJacobian(NamedTuple):
    """
    The identity on each row.

    :param parameter: log σ, shape (k,)
    :param n_rows: n
    """

    parameter: th.Tensor
    n_rows: int

    def push(self, direction: th.Tensor) -> th.Tensor:
        """Return the direction for each row, shape (n, k)."""
        return direction.expand(self.n_rows, -1)

    def pull(self, cotangent: th.Tensor) -> th.Tensor:
        """Sum over rows, shape (k,)."""
        return cotangent.sum(dim=0)

    @property
    def n_groups(self) -> int:
        """Number of groups, k: every σ is free."""
        return len(self.parameter)

    def columns(self) -> th.Tensor:
        """Return ones of shape (n, 1, k, 1)."""
        return self.parameter.new_ones(1, 1, 1, 1).expand(self.n_rows, 1, len(self.parameter), 1)

    def fisher(self) -> th.Tensor:
        """Return 2 for each action, shape (k, 1, 1)."""
        return self.parameter.new_full((len(self.parameter), 1, 1), 2.0)


class StateDependentNoiseJacobian(NamedTuple):
    """
    ∂log σ_nj / ∂ls_ij = h_ni² (S∘dS/dls)_ij / σ_nj².

    :param squares: h², shape (n, d)
    :param slope: S∘dS/dls, shape (d, k)
    :param variance: σ², shape (n, k)
    :param full_std: whether each action has its own column in the parameter, instead of all sharing one
    """

    squares: th.Tensor
    slope: th.Tensor
    variance: th.Tensor
    full_std: bool

    def push(self, direction: th.Tensor) -> th.Tensor:
        """Return ∂log σ, shape (n, k), for a direction of the parameter's size."""
        shape = (len(self.slope), -1)
        return (self.squares @ (self.slope * direction.view(shape))).div_(self.variance)

    def pull(self, cotangent: th.Tensor) -> th.Tensor:
        """Return the derivative with respect to the parameter, in its shape."""
        derivative = self.slope * (self.squares.T @ (cotangent / self.variance))
        return derivative if self.full_std else derivative.sum(dim=1, keepdim=True)

    @property
    def n_groups(self) -> int:
        """Number of groups: k, or 1 if all actions share a column."""
        return self.slope.shape[1] if self.full_std else 1

    def columns(self) -> th.Tensor:
        """Return the whole Jacobian, shape (n, d, k, 1), or (n, d, 1, k) if all actions share a column."""
        full = self.squares.unsqueeze(2) * self.slope / self.variance.unsqueeze(1)
        return full.unsqueeze(3) if self.full_std else full.unsqueeze(2)

    def fisher(self) -> th.Tensor:
        """Return (2/n) Σ_n Σ_r J_r J_rᵀ, shape (k, d, d), or (1, d, d) if all actions share a column."""
        flat = self.columns().permute(2, 1, 0, 3).flatten(2)  # (b, m, n·r)
        return 2.0 * flat @ flat.mT / len(self.squares)


def make_noise(distribution: Distribution, parameter: object) -> ExplorationNoise | None:
    """
    Choose the noise that belongs to one of SB3's own distributions.

    :param distribution: a policy's ``action_dist``
    :param parameter: the policy's ``log_std``, if it has one
    :return: the noise; None if the distribution has none, or the parameter another shape than SB3 gives it
    """
    if not isinstance(parameter, nn.Parameter):
        return None
    if isinstance(distribution, DiagGaussianDistribution):
        own = type(distribution) in (DiagGaussianDistribution, SquashedDiagGaussianDistribution)
        return FreeNoise(parameter) if own and parameter.shape == (distribution.action_dim,) else None
    if isinstance(distribution, StateDependentNoiseDistribution):
        return StateDependentNoise(parameter, distribution)
    return None
