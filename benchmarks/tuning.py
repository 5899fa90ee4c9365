"""
The study behind the one set of hyperparameters for MuJoCo: candidates side by side on the same tasks and seeds.

``python -m benchmarks.tuning`` does the runs that are missing and writes ``docs/tuning.md``. Stopped, it goes on where
it was. ``--candidates`` and ``--tasks`` do a part.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks.environments import EVALUATION_EPISODES, N_ENVS, evaluation_env, prepare_process, training_env
from benchmarks.report import (
    Store,
    measure_missing,
)
from sb3_npg import NPG

RESULTS = Path("benchmarks/results/tuning")
TASKS = ("HalfCheetah-v5", "Ant-v5", "Walker2d-v5", "Hopper-v5", "Swimmer-v5")
STEPS = 500_000
SEEDS = (0, 1, 2)

_ADAM: dict[str, Any] = {"critic_solver": "adam", "n_critic_updates": 10, "batch_size": 128}
#: Less noise to begin with.
_QUIET: dict[str, Any] = {"policy_kwargs": {"log_std_init": -1.0}}
_QUIETER: dict[str, Any] = {"policy_kwargs": {"log_std_init": -2.0}}
#: Arguments of NPG by the name that the tables show. Rollouts of 1,024 rows unless they say otherwise.
CANDIDATES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "log σ −1": _QUIET,
    "log σ −1, δ 0.05": {**_QUIET, "target_kl": 0.05},
    "log σ −1, δ 0.05, Adam": {**_ADAM, **_QUIET, "target_kl": 0.05},
    "log σ −2, δ 0.05": {**_QUIETER, "target_kl": 0.05},
}


@dataclass(frozen=True)
class Run:
    """
    One training run.

    :param env_id: the task
    :param seed: of environments, networks and actions
    :param candidate: key of ``CANDIDATES``
    :param steps: environment steps over all environments
    """

    env_id: str
    seed: int
    candidate: str
    steps: int

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of NPG."""
        gamma = 0.9999 if self.env_id.startswith("Swimmer") else 0.99
        return {"n_steps": 128, "gamma": gamma, **CANDIDATES[self.candidate]}

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        arguments = {"n_envs": N_ENVS, "episodes": EVALUATION_EPISODES, "arguments": self.arguments()}
        return {"env_id": self.env_id, "seed": self.seed, "steps": self.steps, **arguments}


class Recorder(BaseCallback):
    """Collects the curve of the returns in training, and what the critic explained."""

    def __init__(self) -> None:
        super().__init__()
        self.curve: list[tuple[int, float]] = []
        self.explained: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        episodes = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        if episodes:
            self.curve.append((self.num_timesteps, round(fmean(episodes), 1)))
        if "train/explained_variance" in self.logger.name_to_value:
            self.explained.append(float(self.logger.name_to_value["train/explained_variance"]))


def measure(store: Store, run: Run) -> None:
    """Train, evaluate the final policy deterministically, and keep the figures."""
    prepare_process()
    arguments = run.arguments()
    env = training_env(run.env_id, run.seed, gamma=arguments["gamma"])
    model = NPG("MlpPolicy", env, seed=run.seed, device="cpu", **arguments)
    recorder = Recorder()
    start = time.process_time()
    model.learn(run.steps, callback=recorder)
    seconds = time.process_time() - start
    evaluation = evaluation_env(run.env_id, run.seed, env)
    final, _ = evaluate_policy(model, evaluation, EVALUATION_EPISODES, deterministic=True)
    figures = {
        "return": final,
        "training_return": fmean(value for _, value in recorder.curve[-len(recorder.curve) // 10 :]),
        "explained_variance": median(recorder.explained[len(recorder.explained) // 2 :]),
        "cpu_seconds": seconds,
        "curve": recorder.curve[:: max(1, len(recorder.curve) // 50)],
    }
    store.save(run.settings(), figures)


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=__doc__)
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES), choices=list(CANDIDATES))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    arguments = parser.parse_args(argv)
    store = Store(RESULTS)
    runs = [
        Run(task, seed, candidate, arguments.steps)
        for seed, task, candidate in product(arguments.seeds, arguments.tasks, arguments.candidates)
    ]
    measure_missing(store, runs, measure, arguments.processes)


if __name__ == "__main__":
    main(sys.argv[1:])
