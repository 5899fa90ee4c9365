"""Whole trainings on Pong on a GPU, from the first step to 20 points."""

import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.atari_vector import atari_vector
from benchmarks.gpu_timing import Row, Setting
from benchmarks.gpu_train import GAME
from benchmarks.gpu_trainings import at_once
from benchmarks.pong import N_ENVS, ZOO
from sb3_npg import NPG

SEEDS = (0, 1, 2)
#: Mean return of the last 100 episodes that ends a training, and the seconds after which it ends without.
POINTS, SECONDS = 20.0, 405.0
#: Seconds between two looks at a training.
EVERY = 30.0


class Progress(BaseCallback):
    """
    Notes steps, seconds and returns on the way, and ends the training.

    :param seconds: after which it ends
    """

    def __init__(self, seconds: float):
        super().__init__()
        self._seconds = seconds
        self._start = time.perf_counter()
        self.looks: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return self._elapsed() < self._seconds and self._points() < POINTS

    def _on_rollout_end(self) -> None:
        if self._elapsed() >= EVERY * (len(self.looks) + 1):
            self._look()

    def _on_training_end(self) -> None:
        self._look()

    def _look(self) -> None:
        self.looks.append({"seconds": self._elapsed(), "steps": self.num_timesteps, "return": self._points()})

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def _points(self) -> float:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        return float(fmean(returns)) if returns else -21.0


def trainings(setting: Setting, starting: Callable[[str], None], without: dict[str, str]) -> list[Row]:
    """Train with each seed, all at once, and return a row for each."""
    outcomes = at_once(_train, {f"seed {seed}": [(seed, setting)] for seed in SEEDS}, starting, without)
    return [
        {"name": name, **({"failed": outcome.failed} if outcome.failed else outcome.found[0])}
        for name, outcome in sorted(outcomes.items())
    ]


def _train(seed: int, setting: Setting) -> dict[str, Any]:
    th.set_num_threads(1)
    env = atari_vector(GAME, N_ENVS, seed)
    agent = NPG("CnnPolicy", env, seed=seed, device=setting.device, **ZOO)
    progress = Progress(setting.size(1000, 20) / 1000 * SECONDS)
    agent.learn(10**9, callback=progress)
    env.close()
    return {"looks": progress.looks}
