"""Small agents and environments for the tests that train, and what those tests look at."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnv,
    IdentityEnvBox,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_npg import NPG

#: Steps in a rollout unless a test says otherwise.
N_STEPS = 32


class TargetEnv(gym.Env[Any, Any]):
    """
    Shows a random observation, and pays for actions whose mean is near a part of it.

    :param observation_space: a Box, or a Dict with a Box under "vector"
    :param action_space: any
    """

    def __init__(
        self, observation_space: gym.Space[Any] | None = None, action_space: gym.Space[Any] | None = None
    ) -> None:
        self.observation_space = (
            spaces.Box(-1.0, 1.0, (3,), np.float32) if observation_space is None else observation_space
        )
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32) if action_space is None else action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.n_steps = 0
        self.observation = self.observation_space.sample()
        return self.observation, {}

    def step(self, action: Any) -> Any:
        vector = self.observation["vector"] if isinstance(self.observation, dict) else self.observation
        reward = -float(np.square(np.mean(action) - np.ravel(vector)[0]))
        self.n_steps += 1
        self.observation = self.observation_space.sample()
        return self.observation, reward, False, self.n_steps >= 10, {}


def dict_space() -> spaces.Dict:
    """Return a space of a vector and a kind."""
    return spaces.Dict({"vector": spaces.Box(-1.0, 1.0, (2,), np.float32), "kind": spaces.Discrete(3)})


def image_in_dict_env() -> SimpleMultiObsEnv:
    """Build SB3's environment of a vector and an image, which it draws by numpy's global generator."""
    np.random.seed(0)
    return SimpleMultiObsEnv()


ENVIRONMENTS: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "Box": lambda: IdentityEnvBox(eps=0.5, ep_length=10),
    "Discrete": lambda: IdentityEnv(3, ep_length=10),
    "MultiDiscrete": lambda: IdentityEnvMultiDiscrete(3, ep_length=10),
    "MultiBinary": lambda: IdentityEnvMultiBinary(3, ep_length=10),
    "vector": TargetEnv,
    "matrix of actions": lambda: TargetEnv(action_space=spaces.Box(-1.0, 1.0, (2, 2), np.float32)),
    "Dict": lambda: TargetEnv(dict_space()),
    "image": lambda: FakeImageEnv(screen_height=36, screen_width=36),
    "image, Box": lambda: FakeImageEnv(screen_height=36, screen_width=36, discrete=False),
    "image in a Dict": image_in_dict_env,
}
#: The environments that differ in the kind of action.
ACTION_SPACES = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")
#: What reads the observations of the environments that "MlpPolicy" does not read.
POLICIES = {
    "Dict": "MultiInputPolicy",
    "image": "CnnPolicy",
    "image, Box": "CnnPolicy",
    "image in a Dict": "MultiInputPolicy",
}


class NormalizingExtractor(BaseFeaturesExtractor):
    """Batch normalisation of the observations, a layer, and dropout."""

    def __init__(self, observation_space: gym.Space[Any], features_dim: int = 8, momentum: float = 0.1):
        super().__init__(observation_space, features_dim)
        n_observations = int(np.prod(observation_space.shape or ()))
        self.normalize = nn.BatchNorm1d(n_observations, momentum=momentum)
        self.linear = nn.Linear(n_observations, features_dim)
        self.dropout = nn.Dropout(0.5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.dropout(self.linear(self.normalize(observations)).tanh())


def seeded(environment: gym.Env[Any, Any], seed: int = 0) -> gym.Env[Any, Any]:
    """Seed the spaces, which the environments of these tests draw their observations from."""
    environment.observation_space.seed(seed)
    environment.action_space.seed(seed)
    return environment


def make_env(name: str = "vector", n_envs: int = 1, seed: int = 0) -> DummyVecEnv:
    """Build environments that send the same observations each time they are built."""
    return DummyVecEnv([lambda i=i: Monitor(seeded(ENVIRONMENTS[name](), seed + i)) for i in range(n_envs)])


def make_agent(env: Any = "vector", policy: Any = None, **kwargs: Any) -> NPG:
    """Build an agent of short rollouts, by the name of its environment or for an environment."""
    settings = {"n_steps": N_STEPS, "batch_size": N_STEPS, "n_critic_updates": 2, "seed": 0, "device": "cpu"}
    if isinstance(env, str):
        policy, env = policy or POLICIES.get(env, "MlpPolicy"), make_env(env)
    return NPG(policy or "MlpPolicy", env, **{**settings, **kwargs})


def snapshot(agent: NPG) -> dict[str, Any]:
    """Copy all that training moves: parameters, buffers, optimizer."""
    return copy.deepcopy({"policy": agent.policy.state_dict(), "optimizer": agent.policy.optimizer.state_dict()})


def same(one: Any, other: Any) -> bool:
    """Tell whether two nests of tensors and numbers are equal bit for bit."""
    if isinstance(one, th.Tensor):
        return one.dtype == other.dtype and th.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def parameters(agent: NPG, *, critic: bool) -> dict[str, th.Tensor]:
    """Copy the actor's parameters, or the critic's, told apart by the names that SB3 gives them."""
    prefixes = ("value_net", "mlp_extractor.value_net", "vf_features_extractor")
    policy = getattr(agent.policy, "_orig_mod", agent.policy)
    named = policy.named_parameters()  # names a shared tensor once
    return {name: tensor.detach().clone() for name, tensor in named if name.startswith(prefixes) == critic}


class Figures(BaseCallback):
    """Keeps what each update logs."""

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if "train/n_updates" in self.logger.name_to_value:
            self.updates.append(dict(self.logger.name_to_value))

    def _on_training_end(self) -> None:
        self._on_rollout_start()


class Snapshots(Figures):
    """Keeps the agent's state before and after each update too."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[dict[str, Any]] = []
        self.after: list[dict[str, Any]] = []

    def _on_rollout_end(self) -> None:
        self.before.append(snapshot(self.model))

    def _on_rollout_start(self) -> None:
        super()._on_rollout_start()
        if self.before:
            self.after.append(snapshot(self.model))


def train(agent: NPG, n_updates: int = 2, callback: Any = None) -> list[dict[str, float]]:
    """Train for some updates and return what each of them logged."""
    figures = Figures()
    agent.learn(n_updates * agent.n_steps * agent.n_envs, [figures, *([callback] if callback else [])])
    return figures.updates
