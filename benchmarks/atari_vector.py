"""ale-py's vector of Atari environments, whose threads step, resize and stack frames, as SB3's algorithms know them."""

import importlib
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn


def atari_vector(game: str, n_envs: int, seed: int) -> VecEnv:
    """
    Return environments like those of SB3's ``make_atari_env`` for a game without lives, four frames stacked.

    Both skip four frames and take the maximum of the last two, begin with up to 30 steps without action, and clip
    rewards to their sign. Returns of episodes are those of clipped rewards.

    :param game: ale-py's name for it
    :param n_envs: how many
    :param seed: of the first reset
    """
    make = importlib.import_module("ale_py.vector_env").AtariVectorEnv
    return VecMonitor(VectorOfGymnasium(make(game, n_envs, autoreset_mode=AutoresetMode.SAME_STEP), seed))


class VectorOfGymnasium(VecEnv):
    """
    A vector environment of gymnasium's that begins a new episode in the step that ends the old one.

    :param env: the environment
    :param seed: of the first reset
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], seed: int):
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._seed: int | None = seed
        self._actions: npt.NDArray[Any] = np.zeros(env.num_envs, dtype=np.int64)

    def reset(self) -> npt.NDArray[Any]:
        """Begin all episodes anew."""
        observations: npt.NDArray[Any]
        observations, _ = self.env.reset(seed=self._seed)
        self._seed = None
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Take note of what is to be done."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Do it; the last observation of an episode is in its info."""
        observations, rewards, terminated, truncated, found = self.env.step(self._actions)
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = found["final_obs"][i]
            infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the vector for each environment."""
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse: the environments are no objects of their own."""
        raise NotImplementedError("environments of a vector have no attributes of their own")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse, for the same reason."""
        raise NotImplementedError("environments of a vector have no methods of their own")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Tell that nothing wraps a single environment."""
        return [False] * len(list(self._get_indices(indices)))
