"""
Slow and obvious mathematics to compare with. Uses SB3's ``log_prob`` and torch's distributions only, and
nothing of what it is a reference for.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch as th
from stable_baselines3.common.distributions import (
    Distribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from sb3_npg.local_problem import take_rows
from tests.cases import Observations

Parameters = Sequence[nn.Parameter]


def flat_gradient(scalar: th.Tensor, parameters: Parameters, create_graph: bool = False) -> th.Tensor:
    """Return the gradient of a scalar as one vector."""
    gradients = th.autograd.grad(
        scalar, parameters, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
    return th.cat([gradient.reshape(-1) for gradient in gradients])


def hessian(scalar: th.Tensor, parameters: Parameters) -> th.Tensor:
    """Return the Hessian of a scalar, one row at a time."""
    gradient = flat_gradient(scalar, parameters, create_graph=True)
    return th.stack([flat_gradient(entry, parameters) for entry in gradient])


def weighted_actions(distribution: Distribution) -> Iterator[tuple[float, th.Tensor]]:
    """
    Yield actions of one state and weights, such that Σ w f(a) = E[f(a)].

    Discrete actions are enumerated. Gaussian ones are the nodes of a Gauss–Hermite rule that is exact for
    polynomials of degree 5 in each dimension; a product of two scores is of degree 4.
    """
    inner = distribution.distribution
    if isinstance(inner, Normal):
        nodes, weights = np.polynomial.hermite_e.hermegauss(3)
        mean, std = inner.mean[0].detach(), inner.stddev[0].detach()
        squashed = isinstance(distribution, SquashedDiagGaussianDistribution) or (
            isinstance(distribution, StateDependentNoiseDistribution) and distribution.bijector is not None
        )
        for index in itertools.product(range(3), repeat=len(mean)):
            action = mean + std * th.as_tensor(nodes[list(index)])
            weight = float(np.prod(weights[list(index)] / weights.sum()))
            yield weight, (action.tanh() if squashed else action).unsqueeze(0)
        return
    probabilities = [part.detach()[0] for part in _marginals(distribution)]
    for index in itertools.product(*(range(len(part)) for part in probabilities)):
        weight = float(np.prod([float(part[i]) for part, i in zip(probabilities, index, strict=True)]))
        single = isinstance(inner, Categorical)
        yield weight, th.tensor([index[0]] if single else [list(index)], dtype=th.float64)


def _marginals(distribution: Distribution) -> list[th.Tensor]:
    inner = distribution.distribution
    if isinstance(inner, Bernoulli):
        return [th.stack([1 - inner.probs[:, i], inner.probs[:, i]], dim=1) for i in range(inner.probs.shape[1])]
    return [categorical.probs for categorical in (inner if isinstance(inner, list) else [inner])]  # type: ignore[attr-defined]


def score_fisher(policy: ActorCriticPolicy, observations: Observations, n: int, parameters: Parameters) -> th.Tensor:
    """Return E[∇log π ∇log πᵀ], one state and one action at a time."""
    p = sum(parameter.numel() for parameter in parameters)
    fisher = th.zeros(p, p, dtype=th.float64)
    for i in range(n):
        row = take_rows(observations, slice(i, i + 1))
        for weight, action in weighted_actions(policy.get_distribution(row)):
            score = flat_gradient(policy.get_distribution(row).log_prob(action).sum(), parameters)
            fisher += weight / n * th.outer(score, score)
    return fisher


def frozen(distribution: Distribution) -> list[th.distributions.Distribution]:
    """Return the torch distributions inside, as constants."""
    inner = distribution.distribution
    if isinstance(inner, Normal):
        return [Normal(inner.mean.detach(), inner.stddev.detach())]
    if isinstance(inner, Bernoulli):
        return [Bernoulli(logits=inner.logits.detach())]
    parts = inner if isinstance(inner, list) else [inner]
    return [Categorical(logits=part.logits.detach()) for part in parts]  # type: ignore[attr-defined]


def mean_kls(policy: ActorCriticPolicy, observations: Observations, n: int) -> tuple[th.Tensor, th.Tensor]:
    """Return mean KL(π_old ‖ π_θ) and mean KL(π_θ ‖ π_old) by torch, summed over dimensions, at θ_old."""
    old = frozen(policy.get_distribution(observations))
    inner = policy.get_distribution(observations).distribution
    new = inner if isinstance(inner, list) else [inner]
    forward = sum(kl_divergence(p, q).sum() for p, q in zip(old, new, strict=True))
    backward = sum(kl_divergence(q, p).sum() for p, q in zip(old, new, strict=True))
    return th.as_tensor(forward / n), th.as_tensor(backward / n)


def relative_error(value: th.Tensor, reference: th.Tensor) -> float:
    """Return ‖value − reference‖ / ‖reference‖."""
    return float((value - reference).norm() / reference.norm())
