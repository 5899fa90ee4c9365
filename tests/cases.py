"""Policies to try the mathematics on: each action distribution × each kind of policy, small and in float64."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3.common.policies as sb3_policies
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_npg.local_problem import LocalProblem
from sb3_npg.policy_parts import split_policy

Observations = th.Tensor | dict[str, th.Tensor]


def in_float64(setattr_: Callable[..., None] = setattr) -> None:
    """SB3 casts every observation to float32; cast it back where the policies look the function up."""

    def widened(*args: Any, **kwargs: Any) -> Observations:
        processed = preprocess_obs(*args, **kwargs)
        if isinstance(processed, dict):
            return {key: tensor.double() for key, tensor in processed.items()}
        return processed.double()

    setattr_(sb3_policies, "preprocess_obs", widened)


class SmallCnn(BaseFeaturesExtractor):
    """Two convolutions: NatureCNN's structure at a size whose Fisher can be formed."""

    def __init__(self, observation_space: gym.Space[Any], features_dim: int = 4):
        super().__init__(observation_space, features_dim)
        channels = (observation_space.shape or (1,))[0]
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 2, 3, stride=2), nn.ReLU(), nn.Conv2d(2, 2, 2), nn.ReLU(), nn.Flatten()
        )
        self.value_projection = nn.Linear(2 * 2 * 2, features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.value_projection(self.layers(observations)).tanh()


class LayersOnly(BaseFeaturesExtractor):
    """A convolution and a linear layer, and nothing between layers, as in SB3's guide to custom extractors."""

    def __init__(self, observation_space: gym.Space[Any], features_dim: int = 3):
        super().__init__(observation_space, features_dim)
        channels = (observation_space.shape or (1,))[0]
        self.cnn = nn.Sequential(nn.Conv2d(channels, 2, 3, stride=2), nn.Tanh(), nn.Flatten())
        self.linear = nn.Sequential(nn.Linear(2 * 3 * 3, features_dim), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.linear(self.cnn(observations))


class SmallNaturePolicy(ActorCriticCnnPolicy):
    """NatureCNN with layers of a size whose Fisher can be formed."""

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        extractor = super().make_features_extractor()
        extractor.cnn = nn.Sequential(
            nn.Conv2d(1, 2, (5, 6), stride=(4, 5), padding=(1, 0)),
            nn.ReLU(),
            nn.Conv2d(2, 3, 2, stride=2, dilation=(1, 2)),
            nn.Tanh(),
            nn.Flatten(),
        )
        # Bounded features: squashed actions far out are not told apart in double precision.
        extractor.linear = nn.Sequential(nn.Linear(3 * 4 * 3, 4), nn.Tanh())
        return extractor


class ValueNamedExtractor(BaseFeaturesExtractor):
    """Features through a layer called ``value_…``, which acts all the same."""

    def __init__(self, observation_space: gym.Space[Any], features_dim: int = 4):
        super().__init__(observation_space, features_dim)
        self.value_attention = nn.Linear(observation_space.shape[0], features_dim)  # type: ignore[index]
        self.unused = nn.Linear(2, 2)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.value_attention(observations).tanh()


class SquashedPolicy(ActorCriticPolicy):
    """A custom policy that squashes a plain Gaussian."""

    def _build(self, lr_schedule: Any) -> None:
        self.action_dist = SquashedDiagGaussianDistribution(self.action_dist.action_dim)  # type: ignore[attr-defined]
        super()._build(lr_schedule)


class LearnFeaturesPolicy(ActorCriticPolicy):
    """gSDE whose noise also trains the features."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_dist.learn_features = True  # type: ignore[attr-defined]


@dataclass(frozen=True)
class DistributionCase:
    """An action space and what makes a policy act in it by some distribution."""

    action_space: gym.Space[Any]
    kwargs: dict[str, Any] = field(default_factory=dict)
    mixin: type | None = None


@dataclass(frozen=True)
class PolicyCase:
    """A kind of policy."""

    policy: type[ActorCriticPolicy]
    observation_space: gym.Space[Any]
    kwargs: dict[str, Any]


def _box(*shape: int) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, shape, np.float32)


def _gsde(**kwargs: Any) -> dict[str, Any]:
    return {"use_sde": True, "log_std_init": -1.0, **kwargs}


DISTRIBUTIONS: dict[str, DistributionCase] = {
    "Gaussian": DistributionCase(_box(2)),
    "squashed Gaussian": DistributionCase(_box(2), mixin=SquashedPolicy),
    "gSDE": DistributionCase(_box(2), _gsde()),
    "gSDE full_std=False": DistributionCase(_box(2), _gsde(full_std=False)),
    "gSDE use_expln": DistributionCase(_box(2), _gsde(use_expln=True)),
    "gSDE squash_output": DistributionCase(_box(2), _gsde(squash_output=True)),
    "gSDE learn_features": DistributionCase(_box(2), _gsde(), mixin=LearnFeaturesPolicy),
    "categorical": DistributionCase(spaces.Discrete(4)),
    "multi-categorical": DistributionCase(spaces.MultiDiscrete([3, 2])),
    "Bernoulli": DistributionCase(spaces.MultiBinary(3)),
}

_IMAGES = spaces.Box(0, 255, (3, 8, 8), np.uint8)
_LARGE_IMAGES, _FOUR = spaces.Box(0, 255, (1, 36, 36), np.uint8), {"features_dim": 4}
_DICT = spaces.Dict({"value_vector": _box(2), "kind": spaces.Discrete(3), "flags": spaces.MultiBinary(2)})

POLICIES: dict[str, PolicyCase] = {
    "Mlp": PolicyCase(ActorCriticPolicy, _box(3), {"net_arch": {"pi": [5, 4], "vf": [3]}}),
    "Mlp, net_arch=[]": PolicyCase(ActorCriticPolicy, _box(3), {"net_arch": []}),
    "Mlp, ReLU, discrete observation": PolicyCase(
        ActorCriticPolicy, spaces.Discrete(3), {"net_arch": [4], "activation_fn": nn.ReLU}
    ),
    "custom extractor, shared": PolicyCase(
        ActorCriticPolicy, _box(3), {"features_extractor_class": ValueNamedExtractor, "net_arch": [4]}
    ),
    "custom extractor, not shared": PolicyCase(
        ActorCriticPolicy,
        _box(3),
        {"features_extractor_class": ValueNamedExtractor, "net_arch": [4], "share_features_extractor": False},
    ),
    "Cnn": PolicyCase(ActorCriticCnnPolicy, _IMAGES, {"features_extractor_class": SmallCnn, "net_arch": []}),
    "Cnn of layers, not shared": PolicyCase(
        ActorCriticCnnPolicy,
        _IMAGES,
        {"features_extractor_class": LayersOnly, "net_arch": [], "share_features_extractor": False},
    ),
    "NatureCNN": PolicyCase(SmallNaturePolicy, _LARGE_IMAGES, {"net_arch": [], "features_extractor_kwargs": _FOUR}),
    "NatureCNN, not shared": PolicyCase(
        SmallNaturePolicy,
        _LARGE_IMAGES,
        {"net_arch": [3], "features_extractor_kwargs": _FOUR, "share_features_extractor": False},
    ),
    "MultiInput": PolicyCase(MultiInputActorCriticPolicy, _DICT, {"net_arch": [4]}),
}


def make_policy(distribution: str, policy: str, seed: int = 0) -> ActorCriticPolicy:
    """Build a policy in float64 whose weights are all of order one, so that no block of F is negligible."""
    th.manual_seed(seed)
    case, kind = DISTRIBUTIONS[distribution], POLICIES[policy]
    bases = (kind.policy,) if case.mixin is None else (case.mixin, kind.policy)
    policy_class = kind.policy if case.mixin is None else type("CustomPolicy", bases, {})
    made: ActorCriticPolicy = policy_class(
        kind.observation_space, case.action_space, lambda _: 1e-3, **kind.kwargs, **case.kwargs
    )
    made.double()
    with th.no_grad():
        for name, parameter in made.named_parameters():
            offset = -0.5 if name == "log_std" else 0.0
            parameter.copy_(0.5 * th.randn_like(parameter) + offset)
    if made.use_sde:
        made.reset_noise()
    made.set_training_mode(False)
    return made


def make_observations(space: gym.Space[Any], n: int, seed: int = 0) -> Observations:
    """Draw n observations in the form in which a rollout buffer returns them."""
    space.seed(seed)
    rows = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: th.as_tensor(np.stack([np.atleast_1d(row[key]) for row in rows])) for key in space.spaces}
    return th.as_tensor(np.stack([np.atleast_1d(row) for row in rows]))


@th.no_grad()
def make_actions(policy: ActorCriticPolicy, observations: Observations) -> th.Tensor:
    """Draw the policy's actions in the form in which ``LocalProblem`` takes them."""
    return policy.get_distribution(observations).get_actions()


def make_problem(
    distribution: str, policy: str, n: int = 6, seed: int = 0, *, fast_paths: bool = True, **kwargs: Any
) -> LocalProblem:
    """Freeze a policy update on n random rows. Call ``in_float64`` first."""
    made = make_policy(distribution, policy, seed)
    observations = make_observations(POLICIES[policy].observation_space, n, seed)
    actions = make_actions(made, observations)
    parts = split_policy(made, observations, fast_paths)
    return LocalProblem(made, observations, actions, th.randn(n, dtype=th.float64), parts=parts, **kwargs)
