"""Whole updates on a GPU: NPG on each backend, sb3-contrib's TRPO, and SB3's PPO and A2C."""

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor

from benchmarks.atari_vector import atari_vector
from benchmarks.gpu_timing import Contestant, Row, Setting, reason_of, require_alive
from benchmarks.pong import N_ENVS as N_ATARI_ENVS
from benchmarks.pong import PPO_ZOO, ZOO
from benchmarks.speed_peers import ACTION_DIM, CG_STEPS, DAMPING, TARGET_KL
from benchmarks.speed_products import OBSERVATIONS
from sb3_npg import NPG
from sb3_npg.acting import acting

N_ENVS = 8
#: Steps of a rollout that are timed at once.
ACTING_STEPS = 10
ATARI_SECONDS = 12.0
IMAGES = spaces.Box(0, 255, (4, 84, 84), np.uint8)
N_BUTTONS = 6
Make = Callable[..., OnPolicyAlgorithm]
CG: dict[str, Any] = {"fisher_solver": "cg", "fisher_solver_kwargs": {"max_steps": CG_STEPS, "rtol": 0.0}}
#: ale-py's name for Pong.
GAME = "pong"
#: What an algorithm logs of an update, by the words of the tables.
REMARKS = {
    "KL": "train/kl_divergence_loss",
    "accepted": "train/is_line_search_success",
    "skipped": "train/skipped_updates",
}
#: rl-zoo3's settings for Atari, and ours in zoo_configs/npg.yml.
ATARI: dict[str, tuple[Make, dict[str, Any]]] = {
    "NPG": (NPG, ZOO),
    "PPO": (PPO, PPO_ZOO),
    "A2C": (A2C, {"ent_coef": 0.01, "vf_coef": 0.25}),
}


class Noise(gym.Env[Any, Any]):
    """
    An environment of random observations that are drawn beforehand.

    :param observation_space: of vectors or images
    :param action_space: of any kind
    """

    def __init__(self, observation_space: spaces.Box, action_space: spaces.Space[Any]):
        self.observation_space = observation_space
        self.action_space = action_space
        random = np.random.default_rng(0)
        if observation_space.dtype == np.uint8:
            self._drawn = random.integers(0, 256, (64, *observation_space.shape), np.uint8)
        else:
            self._drawn = random.standard_normal((4096, *observation_space.shape)).astype(np.float32)
        self._n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        return self._drawn[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Return the next row; the reward depends on it and on the action."""
        self._n_steps += 1
        row = self._drawn[self._n_steps % len(self._drawn)]
        reward = float(row.flat[0]) / 255.0 - float(np.square(action).mean())
        return row, reward, False, self._n_steps % 1000 == 0, {}


def _vectors() -> gym.Env[Any, Any]:
    box = [spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32), spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)]
    return Noise(box[0], box[1])


def _images() -> gym.Env[Any, Any]:
    return Noise(IMAGES, spaces.Discrete(N_BUTTONS))


class Acting:
    """
    A policy that acts on observations of the host, as in a rollout: to the device, through the policy, and back.

    :param policy: SB3's name for it
    :param n_envs: observations at a time
    :param device: of the policy
    :param recorded: whether a step may be a CUDA graph
    """

    def __init__(self, policy: str, n_envs: int, device: str | th.device, recorded: bool = True):
        make = _images if policy == "CnnPolicy" else _vectors
        self._build: Callable[[], NPG] = lambda: NPG(
            policy, make_vec_env(make, n_envs=n_envs, seed=0), n_steps=16, batch_size=16, seed=0, device=device
        )
        self._recorded = recorded
        self._model: NPG | None = None

    def prepare(self) -> Callable[[], None]:
        """Return some steps of a rollout."""
        if self._model is None:
            self._model = self._build()
            if not self._recorded:
                self._model._recorder = None
        space = self._model.observation_space
        return partial(_act, self._model, np.stack([space.sample() for _ in range(self._model.n_envs)]))


def _act(model: NPG, observations: np.ndarray[Any, Any]) -> None:
    with th.no_grad(), acting(model.policy, recorder=model._recorder):
        for _ in range(ACTING_STEPS):
            actions, _, _ = model.policy(obs_as_tensor(observations, model.device))
            actions.cpu().numpy()


def steps(policy: str, setting: Setting) -> list[Contestant]:
    """Let policies act on the device and on the host's processor, for few and many environments."""
    made = [
        Contestant(f"{n_envs} environments, {device}", Acting(policy, n_envs, device).prepare)
        for n_envs in (1, 16, 256)[: setting.size(3, 1)]
        for device in dict.fromkeys((setting.device.type, "cpu"))
    ]
    if setting.device.type == "cpu":
        return made
    steps = Acting(policy, 16, setting.device, recorded=False)
    return [*made, Contestant(f"16 environments, {setting.device.type}, without a graph", steps.prepare)]


class Trainee:
    """
    An algorithm with one rollout, on which it trains again and again from the same parameters.

    :param make: the algorithm's class
    :param policy: SB3's name for the policy
    :param env: makes an environment
    :param rows: N, over all environments
    :param arguments: of the algorithm's constructor
    """

    def __init__(
        self, make: Make, policy: str, env: Callable[[], gym.Env[Any, Any]], rows: int, arguments: dict[str, Any]
    ):
        self._build: Callable[[], OnPolicyAlgorithm] = lambda: make(
            policy, make_vec_env(env, n_envs=N_ENVS, seed=0), n_steps=rows // N_ENVS, seed=0, **arguments
        )
        self._model: OnPolicyAlgorithm | None = None
        self._state: dict[str, Any] = {}

    def prepare(self) -> Callable[[], None]:
        """Return to the parameters that collected the rollout."""
        if self._model is None:
            self._model = self._collected()
            self._state = copy.deepcopy(self._model.policy.state_dict())
        self._model.policy.load_state_dict(self._state)
        return self._model.train

    def remark(self) -> str:
        """Tell what the last update did, which its time depends on."""
        logged = {} if self._model is None else self._model.logger.name_to_value
        figures = {name: logged[key] for name, key in REMARKS.items() if key in logged}
        return ", ".join(f"{name} {float(figure):.3g}" for name, figure in figures.items())

    def _collected(self) -> OnPolicyAlgorithm:
        model = self._build()
        rows = model.n_steps * model.n_envs
        _, callback = model._setup_learn(rows)
        assert model.env is not None
        callback.on_training_start({}, {})
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        return model


def updates(policy: str, rows: int, setting: Setting) -> list[Contestant]:
    """Return NPG on each backend, TRPO and PPO, all with one δ and one λ where they have them."""
    env = _images if policy == "CnnPolicy" else _vectors
    # SB3's KL of a Box action has a value for each dimension, and TRPO takes the mean over them
    dimensions = 1 if policy == "CnnPolicy" else ACTION_DIM
    rows, device = setting.size(rows, 64), {"device": setting.device}
    npg = {"target_kl": TARGET_KL, "damping": DAMPING, **CG, **device}
    trpo = {"target_kl": TARGET_KL / dimensions, "cg_damping": DAMPING / dimensions, "cg_max_steps": CG_STEPS, **device}
    trainees: dict[str, tuple[Make, dict[str, Any]]] = {
        f"NPG, {backend}": (NPG, {**npg, "backend": backend}) for backend in setting.backends
    }
    if policy == "CnnPolicy":
        own = {key: value for key, value in ATARI["NPG"][1].items() if key != "n_steps"}
        trainees |= {
            f"NPG as in zoo_configs, {backend}": (NPG, {**own, **device, "backend": backend})
            for backend in setting.backends
        }
    if setting.device.type != "cpu":
        trainees["NPG, on the processor"] = (NPG, {**npg, "device": "cpu"})
    trainees |= {"sb3-contrib TRPO": (TRPO, trpo), "SB3 PPO": (PPO, device)}
    made = {name: Trainee(make, policy, env, rows, arguments) for name, (make, arguments) in trainees.items()}
    return [Contestant(name, trainee.prepare, remark=trainee.remark) for name, trainee in made.items()]


class Pace(BaseCallback):
    """
    Ends a training after some seconds, and tells how fast its whole iterations were, the first left out.

    :param seconds: of training
    """

    def __init__(self, seconds: float):
        super().__init__()
        self._seconds = seconds
        self._marks: list[tuple[float, int]] = []

    def _on_step(self) -> bool:
        return len(self._marks) < 3 or time.perf_counter() < self._marks[0][0] + self._seconds

    def _on_rollout_start(self) -> None:
        self._marks.append((time.perf_counter(), self.num_timesteps))

    def steps_per_second(self) -> float:
        """Return the environment steps of all environments in a second."""
        (start, first), (end, last) = self._marks[1], self._marks[-1]
        return (last - first) / (end - start)


def frames(setting: Setting, starting: Callable[[str], None], without: dict[str, str]) -> list[Row]:
    """Let NPG, PPO and A2C play Pong for a while each, and count steps."""
    rows: list[Row] = []
    for name, (make, arguments) in ATARI.items():
        if name in without:
            rows.append({"name": name, "failed": without[name]})
            continue
        starting(name)
        try:
            rows.append({"name": name, "steps per second": _pace_of(make, arguments, setting)})
        except Exception as error:
            rows.append({"name": name, "failed": reason_of(error)})
            require_alive(setting.device, name, error)
    return rows


def _pace_of(make: Make, arguments: dict[str, Any], setting: Setting) -> float:
    env = atari_vector(GAME, setting.size(N_ATARI_ENVS, 2), seed=0)
    pace = Pace(setting.size(1000, 50) / 1000 * ATARI_SECONDS)
    try:
        model = make("CnnPolicy", env, seed=0, device=setting.device, **arguments)
        model.learn(10**9, callback=pace)
    finally:
        env.close()
    return pace.steps_per_second()
