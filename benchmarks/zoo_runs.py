"""One training run as rl_zoo3 does it, for any of its algorithms: settings, evaluations along the way, final policy."""

import argparse
import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import rl_zoo3
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from benchmarks.environments import EVALUATION_EPISODES, EVALUATION_SEED, prepare_process
from benchmarks.pace import pace
from benchmarks.report import Store
from sb3_npg.zoo.configs import CONFIG

#: Evaluations during a run, evenly spaced, and the episodes of each.
EVALUATIONS = 20
EPISODES = 5
N_EVALUATION_ENVS = 5


def zoo_block(algo: str, env_id: str) -> dict[str, Any]:
    """
    Return the hyperparameters that rl_zoo3 has for an algorithm on a task: the package's for "npg", else its own.

    Of MuJoCo it knows version 4; version 5 is given the same.

    :param algo: the algorithm's name in the zoo
    :param env_id: the task
    :raises KeyError: if there are none
    """
    path = CONFIG if algo == "npg" else Path(rl_zoo3.__file__).parent / "hyperparams" / f"{algo}.yml"
    blocks = yaml.safe_load(path.read_text())
    return dict(blocks.get(env_id) or blocks[env_id.replace("-v5", "-v4")])


class Evaluator(BaseCallback):
    """
    Evaluates the deterministic policy at evenly spaced steps, times the machine's pace, and keeps the time that this
    takes apart.

    :param env: unseen episodes
    :param every: steps from one evaluation to the next
    """

    def __init__(self, env: VecEnv, every: float):
        super().__init__()
        self.env = env
        self.every = every
        self.curve: list[dict[str, Any]] = []
        self._start = self._aside = 0.0

    def _on_training_start(self) -> None:
        self._start = time.process_time()

    def _on_step(self) -> bool:
        if self.num_timesteps >= (len(self.curve) + 1) * self.every:
            seconds = self.seconds()
            point = {"steps": self.num_timesteps, "seconds": round(seconds, 2), "pace": round(pace(), 5)}
            self.curve.append({**point, "returns": self.evaluate(EPISODES)})
            self._aside += time.process_time() - self._start - self._aside - seconds
        return True

    def seconds(self) -> float:
        """Return the seconds of the processor that training has taken."""
        return time.process_time() - self._start - self._aside

    def evaluate(self, episodes: int) -> list[float]:
        """Return the returns of so many episodes."""
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.env)
        returns, _ = evaluate_policy(
            self.model, self.env, episodes, deterministic=True, return_episode_rewards=True, warn=False
        )
        return [round(float(value), 2) for value in cast("list[float]", returns)]


def train_and_evaluate(
    algo: str, env_id: str, seed: int, block: dict[str, Any], evaluations: int = EVALUATIONS
) -> dict[str, Any]:
    """
    Train as ``python -m rl_zoo3.train`` does, on one thread.

    :param algo: the algorithm's name in the zoo
    :param env_id: the task
    :param seed: of environments, networks and actions
    :param block: hyperparameters in the zoo's grammar
    :param evaluations: during the run, evenly spaced
    :return: "returns" of the final policy, deterministic, on unseen episodes; "curve" of evaluations, each with the
        "pace" of the machine; "seconds" of the processor, without evaluations
    """
    prepare_process()
    with tempfile.TemporaryDirectory() as folder:
        conf = Path(folder) / "conf.yml"
        conf.write_text(yaml.safe_dump({env_id: block}))
        manager = ExperimentManager(
            argparse.Namespace(),
            algo,
            env_id,
            folder,
            eval_freq=-1,
            seed=seed,
            verbose=0,
            device="cpu",
            config=str(conf),
        )
        setup = manager.setup_experiment()
        if setup is None:
            raise ValueError(f"rl_zoo3 made no agent of {algo} for {env_id}")
        model, _ = setup
        manager.seed = EVALUATION_SEED + seed
        evaluation = manager.create_envs(N_EVALUATION_ENVS, eval_env=True)
        evaluator = Evaluator(evaluation, manager.n_timesteps / evaluations)
        model.learn(manager.n_timesteps, callback=CallbackList([*manager.callbacks, evaluator]))
        seconds = evaluator.seconds()
        returns = evaluator.evaluate(EVALUATION_EPISODES)
        evaluation.close()
    return {"returns": returns, "seconds": round(seconds, 2), "curve": evaluator.curve}


@dataclass(frozen=True)
class ZooRun(ABC):
    """
    One training run as rl_zoo3 does it.

    :param algo: the algorithm's name in the zoo
    :param env_id: the task
    :param seed: of environments, networks and actions
    """

    algo: str
    env_id: str
    seed: int

    @property
    def evaluations(self) -> int:
        """Evaluations during the run, evenly spaced."""
        return EVALUATIONS

    @abstractmethod
    def block(self) -> dict[str, Any]:
        """Return the hyperparameters, in the zoo's grammar."""

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        evaluation = {"evaluations": self.evaluations, "episodes": EPISODES, "final_episodes": EVALUATION_EPISODES}
        return {"algo": self.algo, "env_id": self.env_id, "seed": self.seed, "block": self.block(), **evaluation}


def measure(store: Store, run: ZooRun) -> None:
    """Train, evaluate, and keep the figures."""
    store.save(run.settings(), train_and_evaluate(run.algo, run.env_id, run.seed, run.block(), run.evaluations))
