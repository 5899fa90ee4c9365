"""
The runs behind the comparison with sb3-contrib's TRPO: the same trust region, critic and environments.

SB3's ``kl_divergence`` of a Box action has one value per action dimension, and TRPO takes the mean over
rows *and* dimensions. For d action dimensions ``TRPO(target_kl=δ/d, cg_damping=λ/d)`` therefore has the
trust region of ``NPG(target_kl=δ, damping=λ)``.
"""

import time
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.environments import (
    EVALUATION_EPISODES,
    N_ENVS,
    evaluation_env,
    prepare_process,
    returns_of,
    training_env,
    unseen_env,
)
from benchmarks.report import Store
from sb3_npg import NPG

CG_STEPS = 15
#: What both algorithms are given, under the same names.
SHARED: dict[str, Any] = {
    "learning_rate": 1e-3,
    "n_steps": 256,
    "batch_size": 128,
    "n_critic_updates": 10,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "line_search_shrinking_factor": 0.8,
    "line_search_max_iter": 10,
    "policy_kwargs": {"net_arch": [64, 64], "log_std_init": 0.0},
}
RANDOM = "random"
#: NPG with the noise that it begins with of its own accord, σ = min(1, 2/d).
OWN_NOISE = "NPG, its own σ"
ALGORITHMS = ("TRPO", "NPG", OWN_NOISE)
Figures = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """
    One run.

    :param algorithm: one of ``ALGORITHMS``, or "random", actions drawn from the action space
    :param env_id: an environment with a Box action space
    :param seed: of the environments, the networks and the actions
    :param steps: environment steps to train for, over all environments; rounded up to whole rollouts
    :param target_kl: δ in nats, mean over states and sum over action dimensions
    :param damping: λ, added to the Fisher of that KL
    :param processes: runs that share the machine
    """

    algorithm: str
    env_id: str
    seed: int
    steps: int
    target_kl: float
    damping: float
    processes: int

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        fixed = {"n_envs": N_ENVS, "cg_steps": CG_STEPS, "episodes": EVALUATION_EPISODES, "threads": 1, **SHARED}
        return {**asdict(self), **fixed}


class Recorder(BaseCallback):
    """Measures each update from outside the algorithm, which is what makes two algorithms comparable."""

    def __init__(self) -> None:
        super().__init__()
        self.curve: list[tuple[int, float]] = []
        self.updates: list[dict[str, float]] = []
        self.collect_seconds = 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps > 0:
            self._conclude_update()
        self._start = time.perf_counter()

    def _on_rollout_end(self) -> None:
        self.collect_seconds += time.perf_counter() - self._start
        episodes = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        if episodes:
            self.curve.append((self.num_timesteps, fmean(episodes)))
        assert isinstance(self.model, OnPolicyAlgorithm)
        rows = self.model.rollout_buffer.observations.reshape(-1, *self.model.rollout_buffer.obs_shape)
        self._observations = th.as_tensor(rows)
        self._old = self._policy_of_rollout()
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def _on_training_end(self) -> None:
        self._conclude_update()

    def _conclude_update(self) -> None:
        """Note what train() took and did, as soon as it is over."""
        seconds, cpu_seconds = time.perf_counter() - self._start, time.process_time() - self._cpu_start
        kl = th.distributions.kl_divergence(self._old, self._policy_of_rollout()).sum(dim=1).mean()
        logged = self.logger.name_to_value
        self.updates.append(
            {
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "kl": float(kl),
                "accepted": float(logged["train/is_line_search_success"]),
                "explained_variance": float(logged["train/explained_variance"]),
            }
        )

    @th.no_grad()
    def _policy_of_rollout(self) -> th.distributions.Distribution:
        """Return the present policy on the rollout's observations."""
        assert isinstance(self.model.policy, ActorCriticPolicy)
        distribution = self.model.policy.get_distribution(self._observations).distribution
        assert isinstance(distribution, th.distributions.Distribution)
        return distribution


class RandomAgent(PolicyPredictor):
    """
    Draws actions from the action space.

    :param env: the environments to act in
    """

    def __init__(self, env: VecEnv):
        self.env = env

    def predict(
        self,
        observation: np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]],
        state: tuple[np.ndarray[Any, Any], ...] | None = None,
        episode_start: np.ndarray[Any, Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray[Any, Any], tuple[np.ndarray[Any, Any], ...] | None]:
        """Return one random action for each environment."""
        return np.stack([self.env.action_space.sample() for _ in range(self.env.num_envs)]), state


def make_model(run: Run, env: VecEnv) -> OnPolicyAlgorithm:
    """Build the run's agent: two parametrisations of one trust region."""
    if not isinstance(env.action_space, spaces.Box):
        raise ValueError(f"`{run.env_id}` has the action space {env.action_space}; the comparison is for Box spaces.")
    shared = {**SHARED, "seed": run.seed, "device": "cpu"}
    if run.algorithm == OWN_NOISE:
        shared["policy_kwargs"] = {"net_arch": [64, 64]}
    if run.algorithm != "TRPO":
        solver = {"max_steps": CG_STEPS, "rtol": 0.0}
        return NPG(
            "MlpPolicy",
            env,
            target_kl=run.target_kl,
            damping=run.damping,
            fisher_solver_kwargs=solver,
            critic_solver="adam",
            **shared,
        )
    d = int(np.prod(env.action_space.shape))
    return TRPO(
        "MlpPolicy",
        env,
        target_kl=run.target_kl / d,
        cg_damping=run.damping / d,
        cg_max_steps=CG_STEPS,
        **shared,
    )


def train(run: Run) -> Figures:
    """Train and evaluate one agent."""
    env = training_env(run.env_id, run.seed, SHARED["gamma"])
    model = make_model(run, env)
    recorder = Recorder()
    start = time.perf_counter()
    model.learn(run.steps, callback=recorder)
    wall_seconds = time.perf_counter() - start
    return {
        "returns": returns_of(model, evaluation_env(run.env_id, run.seed, env)),
        "curve": recorder.curve,
        "updates": recorder.updates,
        "wall_seconds": wall_seconds,
        "collect_seconds": recorder.collect_seconds,
        "steps": model.num_timesteps,
    }


def measure(store: Store, run: Run) -> None:
    """Do one run and keep its figures."""
    prepare_process()
    if run.algorithm == RANDOM:
        env = unseen_env(run.env_id, run.seed)
        figures: Figures = {"returns": returns_of(RandomAgent(env), env)}
    else:
        figures = train(run)
    store.save(run.settings(), figures)
