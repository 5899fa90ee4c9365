"""Diagonal Gaussians, squashed or not, and gSDE."""

import math
from collections.abc import Callable

import torch as th
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution, TanhBijector
from torch import nn

from sb3_npg.output_fisher.base import OutputFisher, unknown_inside
from sb3_npg.output_fisher.noise import StateDependentNoise

#: log |da/du| of a = tanh(u), from a and u, both of shape (n, action_dim).
LogSlope = Callable[[th.Tensor, th.Tensor], th.Tensor]


class GaussianFisher(OutputFisher):
    """
    Diagonal Gaussian with z = (μ, log σ): F_out = diag(1/σ², 2).

    Also used for every form of gSDE, where σ depends on the state: J then includes the Jacobian of log σ with respect
    to gSDE's parameters. SB3 stops the gradient at the features in σ(s) unless ``learn_features``; J stops there
    too. A tanh after the Gaussian is a bijection and changes neither Fisher nor KL.

    :param log_slope: log |da/du| of the tanh, if actions are squashed by one
    """

    def __init__(self, log_slope: LogSlope | None = None):
        self.log_slope = log_slope

    def parts(self, distribution: Distribution) -> tuple[th.Tensor, ...]:
        """Return μ and log σ."""
        normal = _normal(distribution)
        return normal.mean, normal.stddev.log()

    def is_defined(self, outputs: th.Tensor) -> th.Tensor:
        """Tell whether μ is finite, and σ finite and above zero in this precision. A boolean, shape ()."""
        mean, log_std = outputs.chunk(2, dim=1)
        std = log_std.exp()
        return (th.isfinite(mean) & (std > 0.0) & (std < math.inf)).all()

    def log_prob(self, outputs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Σ_d −(u − μ)²/(2σ²) − log σ − ½ log 2π, with u the action before its tanh; less the tanh's log |da/du|."""
        mean, log_std = outputs.chunk(2, dim=1)
        gaussian = actions if self.log_slope is None else TanhBijector.inverse(actions)
        each = -0.5 * ((gaussian - mean) * (-log_std).exp()).square() - log_std - 0.5 * math.log(2.0 * math.pi)
        if self.log_slope is not None:
            each = each - self.log_slope(actions, gaussian)
        return each.sum(dim=1)

    def entropy(self, outputs: th.Tensor) -> th.Tensor | None:
        """Σ_d log σ + ½ log 2πe; None for squashed actions."""
        if self.log_slope is not None:
            return None
        log_std = outputs.chunk(2, dim=1)[1]
        return (log_std + (0.5 + 0.5 * math.log(2.0 * math.pi))).sum(dim=1)

    def sample(self, outputs: th.Tensor, noise: th.Tensor | None = None) -> th.Tensor:
        """Return μ + σε, through the tanh if there is one; gSDE gives its own noise in the place of σε."""
        mean, log_std = outputs.chunk(2, dim=1)
        gaussian = mean + (log_std.exp() * th.empty_like(mean).normal_() if noise is None else noise)
        return gaussian if self.log_slope is None else gaussian.tanh()

    def noise_jacobian(self, distribution: Distribution, noise: nn.Parameter) -> th.Tensor | None:
        """
        Return ∂log σ / ∂log_std: 1 for a plain Gaussian with one log σ for each action, None with any other number;
        for gSDE see :class:`~sb3_npg.output_fisher.StateDependentNoise`.
        """
        mean = _normal(distribution).mean.detach()
        if not isinstance(distribution, StateDependentNoiseDistribution):
            return th.ones_like(mean).view(len(mean), 1, -1, 1) if noise.shape == mean.shape[1:] else None
        return StateDependentNoise(noise, distribution).jacobian(distribution._latent_sde.detach()).columns()

    def weights_at(self, outputs: th.Tensor) -> tuple[th.Tensor, tuple[int, ...]]:
        """Return (1/σ², 2)."""
        log_std = outputs.chunk(2, dim=1)[1]
        return th.cat([(-2.0 * log_std).exp(), th.full_like(log_std, 2.0)], dim=1), ()

    def root(self, outputs: th.Tensor) -> th.Tensor:
        """Return diag(1/σ, √2)."""
        log_std = outputs.chunk(2, dim=1)[1]
        return th.diag_embed(th.cat([(-log_std).exp(), th.full_like(log_std, 2.0**0.5)], dim=1))

    def kl(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        """Σ_d r + (e^(−2r) − 1)/2 + (Δμ)²/(2σ_new²), with r = log σ_new − log σ_old."""
        old_mean, old_log_std = old.chunk(2, dim=1)
        new_mean, new_log_std = new.chunk(2, dim=1)
        log_ratio = new_log_std - old_log_std
        # expm1 keeps the digits of a small KL that the textbook form cancels away.
        spread = log_ratio + 0.5 * th.expm1(-2.0 * log_ratio)
        shift = 0.5 * ((new_mean - old_mean) * (-new_log_std).exp()).square()
        return (spread + shift).sum(dim=1)


def _normal(distribution: Distribution) -> th.distributions.Normal:
    """Return the torch distribution inside a Gaussian one."""
    normal = distribution.distribution
    if not isinstance(normal, th.distributions.Normal):
        raise unknown_inside(distribution, "Normal")
    return normal
