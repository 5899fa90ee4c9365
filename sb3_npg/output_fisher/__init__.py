"""
The Fisher information of an action distribution with respect to its own parameters, in closed form.

A policy maps a state to the *outputs* z of shape (k,): mean and log standard deviation of a Gaussian,
logits of a categorical or Bernoulli distribution. The Fisher of the policy's weights is then
F = E_s[Jᵀ F_out J] with J = ∂z/∂θ and F_out (k × k) the matrix of this package, the only one that depends on
SB3's distributions.

Amari (1998), Natural Gradient Works Efficiently in Learning, section 2;
Martens (2020), New Insights and Perspectives on the Natural Gradient Method, section 9.
"""

import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)

from sb3_npg.output_fisher.base import OutputFisher
from sb3_npg.output_fisher.discrete import BernoulliFisher, CategoricalFisher, MultiCategoricalFisher
from sb3_npg.output_fisher.gaussian import GaussianFisher, LogSlope
from sb3_npg.output_fisher.noise import ExplorationNoise, StateDependentNoise, make_noise
from sb3_npg.output_fisher.sampling import NoiseSampler, make_sampler

__all__ = [
    "BernoulliFisher",
    "CategoricalFisher",
    "ExplorationNoise",
    "GaussianFisher",
    "MultiCategoricalFisher",
    "NoiseSampler",
    "OutputFisher",
    "StateDependentNoise",
    "make_noise",
    "make_output_fisher",
    "make_sampler",
    "plain_output_fisher",
]

#: SB3's own distributions, whose densities and samples are known in closed form; a subclass may do otherwise.
_PLAIN = (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)


def make_output_fisher(distribution: Distribution) -> OutputFisher:
    """
    Choose the closed form that belongs to an SB3 distribution.

    :param distribution: what ``policy.get_distribution`` returns
    :return: its output Fisher
    :raises ValueError: if the distribution is of a kind whose Fisher is not known here
    """
    if isinstance(distribution, (DiagGaussianDistribution, StateDependentNoiseDistribution)):
        return GaussianFisher(_log_slope(distribution))
    if isinstance(distribution, CategoricalDistribution):
        return CategoricalFisher()
    if isinstance(distribution, MultiCategoricalDistribution):
        return MultiCategoricalFisher(distribution.action_dims)
    if isinstance(distribution, BernoulliDistribution):
        return BernoulliFisher()
    raise ValueError(
        f"`policy` acts by a {type(distribution).__name__}, whose Fisher information is not known. NPG knows SB3's "
        "Gaussian (squashed or not), gSDE, categorical, multi-categorical and Bernoulli distributions: derive yours "
        "from one of them. For action masks use sb3_contrib.MaskablePPO, for recurrent policies "
        "sb3_contrib.RecurrentPPO."
    )


def plain_output_fisher(distribution: Distribution) -> OutputFisher | None:
    """
    Choose the closed form of a distribution that is exactly one of SB3's.

    :param distribution: a policy's ``action_dist``
    :return: its output Fisher; None for a subclass, for an object with its own methods, and for gSDE that trains its
        features
    """
    own = any(callable(getattr(type(distribution), name, None)) for name in vars(distribution))
    known = type(distribution) in _PLAIN and not own and not getattr(distribution, "learn_features", False)
    return make_output_fisher(distribution) if known else None


def _log_slope(distribution: Distribution) -> LogSlope | None:
    """Return log |da/du| of a distribution's tanh as SB3 computes it, which differs where actions saturate."""
    if isinstance(distribution, SquashedDiagGaussianDistribution):
        epsilon = distribution.epsilon
        return lambda actions, _gaussian: th.log(1.0 - actions.square() + epsilon)
    bijector = getattr(distribution, "bijector", None)
    if bijector is None:
        return None
    return lambda _actions, gaussian: bijector.log_prob_correction(gaussian)
