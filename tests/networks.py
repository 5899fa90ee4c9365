"""Networks whose layers are of every kind, as features extractors of small policies in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_npg.local_problem import LocalProblem
from sb3_npg.policy_parts import split_policy
from tests.cases import DISTRIBUTIONS, make_actions
from tests.reference import Layer, Parameters, single_layers


class Twice(nn.Module):
    """One layer, applied two times."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.layer(self.layer(x).tanh()).tanh()


class Pair(nn.Module):
    """Two layers that share parameters."""

    def __init__(self, *shared: str):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        for name in shared:
            setattr(self.second, name, getattr(self.first, name))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.second(self.first(x).tanh()).tanh()


def frozen(layer: nn.Module, *names: str) -> nn.Module:
    """Freeze some parameters of a layer."""
    for name in names:
        getattr(layer, name).requires_grad_(False)
    return layer


def convolution(*args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    """Build images ↦ features by one convolution, with a nonlinearity."""
    return lambda: nn.Sequential(nn.Conv2d(2, 2, *args, **kwargs), nn.Tanh(), nn.Flatten())


def one_by_one(module: nn.Module) -> list[Layer]:
    """Take every layer for itself."""
    return single_layers(module, [parameter for parameter in module.parameters() if parameter.requires_grad])


def all_shared(pair: Any) -> list[Layer]:
    """Take two layers for one."""
    return [Layer((pair.first, pair.second), pair.first.weight, pair.first.bias)]


def weight_shared(pair: Any) -> list[Layer]:
    """Take the weight for one layer and the biases for two."""
    both, first, second = (pair.first, pair.second), pair.first, pair.second
    return [Layer(both, first.weight, None), Layer((first,), None, first.bias), Layer((second,), None, second.bias)]


def bias_shared(pair: Any) -> list[Layer]:
    """Take the bias for one layer and the weights for two."""
    both, first, second = (pair.first, pair.second), pair.first, pair.second
    return [Layer((first,), first.weight, None), Layer((second,), second.weight, None), Layer(both, None, first.bias)]


@dataclass(frozen=True)
class Network:
    """
    A network and the layers that it ought to be seen as.

    :param build: builds it
    :param shape: of an observation
    :param layers: of what was built
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3,)
    layers: Callable[[Any], list[Layer]] = one_by_one


#: Networks in which every Linear and Conv2d is treated as a layer.
NETWORKS: dict[str, Network] = {
    "Linear": Network(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh())),
    "no bias": Network(lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh())),
    "frozen weight": Network(lambda: nn.Sequential(frozen(nn.Linear(3, 4), "weight"), nn.Tanh())),
    "frozen bias": Network(lambda: nn.Sequential(frozen(nn.Linear(3, 4), "bias"), nn.Tanh())),
    "frozen layer": Network(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), frozen(nn.Linear(4, 3), "weight", "bias"))
    ),
    "in place": Network(
        lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 3), nn.ELU(inplace=True))
    ),
    "at every position": Network(lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Flatten()), (4, 3)),
    "used twice": Network(lambda: Twice(nn.Linear(3, 3))),
    "convolution used twice": Network(
        lambda: nn.Sequential(Twice(nn.Conv2d(2, 2, 3, padding=1)), nn.Flatten()), (2, 3, 3)
    ),
    "shared weight and bias": Network(lambda: Pair("weight", "bias"), layers=all_shared),
    "shared weight": Network(lambda: Pair("weight"), layers=weight_shared),
    "shared bias": Network(lambda: Pair("bias"), layers=bias_shared),
    "convolution": Network(convolution(3), (2, 4, 4)),
    "two convolutions": Network(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.Tanh(), nn.Flatten()), (2, 4, 4)
    ),
    "convolution, no bias": Network(convolution(3, bias=False), (2, 4, 4)),
    "convolution, stride": Network(convolution(3, stride=2), (2, 6, 5)),
    "convolution, padding": Network(convolution(3, padding=1), (2, 3, 4)),
    "convolution, dilation": Network(convolution(2, dilation=2), (2, 4, 4)),
    "convolution, all at once": Network(convolution((2, 3), stride=(2, 1), padding=(1, 2), dilation=(2, 1)), (2, 4, 3)),
    "convolution, padding='same'": Network(convolution((2, 3), padding="same"), (2, 3, 3)),
    "convolution, circular padding": Network(convolution(3, padding=1, padding_mode="circular"), (2, 3, 3)),
    "convolution, reflected padding": Network(convolution(3, padding=(1, 2), padding_mode="reflect"), (2, 3, 4)),
    "convolution, 1 × 1": Network(convolution(1), (2, 2, 3)),
}


class Extractor(BaseFeaturesExtractor):
    """A network as a features extractor."""

    def __init__(self, observation_space: gym.Space[Any], build: Callable[[], nn.Module]):
        network = build()
        with th.no_grad():
            example = th.zeros(1, *(observation_space.shape or ()))
            super().__init__(observation_space, network(example).shape[1])
        self.network = network

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features: th.Tensor = self.network(observations)
        return features


def make_network_policy(
    build: Callable[[], nn.Module], shape: tuple[int, ...], distribution: str = "Gaussian", seed: int = 0, **kwargs: Any
) -> ActorCriticPolicy:
    """Build a policy in float64 around a network, its weights of order one."""
    th.manual_seed(seed)
    case = DISTRIBUTIONS[distribution]
    policy = ActorCriticPolicy(
        spaces.Box(-1.0, 1.0, shape, np.float32),
        case.action_space,
        lambda _: 1e-3,
        features_extractor_class=Extractor,
        features_extractor_kwargs={"build": build},
        **{"net_arch": [], **case.kwargs, **kwargs},
    ).double()
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(0.5 * th.randn_like(parameter))
    policy.set_training_mode(False)
    if policy.use_sde:
        policy.reset_noise()
    return policy


def make_observations(shape: tuple[int, ...], n: int, seed: int = 0) -> th.Tensor:
    """Draw n observations."""
    return th.rand(n, *shape, generator=th.Generator().manual_seed(seed)) * 2.0 - 1.0


def freeze_problem(policy: ActorCriticPolicy, observations: th.Tensor, **kwargs: Any) -> LocalProblem:
    """Freeze an update of a policy that acts on some observations, through autograd."""
    actions, advantages = make_actions(policy, observations), th.randn(len(observations), dtype=th.float64)
    parts = split_policy(policy, observations, fast_paths=False)
    return LocalProblem(policy, observations, actions, advantages, parts=parts, **kwargs)


def make_network_problem(
    name: str, distribution: str = "Gaussian", n: int = 4, seed: int = 0, **kwargs: Any
) -> LocalProblem:
    """Freeze an update of a policy around one of :data:`NETWORKS`. Call ``in_float64`` first."""
    network = NETWORKS[name]
    policy = make_network_policy(network.build, network.shape, distribution, seed)
    return freeze_problem(policy, make_observations(network.shape, n, seed), **kwargs)


def expected_layers(problem: LocalProblem, name: str) -> list[Layer]:
    """Return the layers that a policy around one of :data:`NETWORKS` ought to be seen as."""
    policy: Any = problem.policy
    acting: Parameters = problem.parameters
    return [*NETWORKS[name].layers(policy.features_extractor.network), *single_layers(policy.action_net, acting)]
