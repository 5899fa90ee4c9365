"""Whole trainings on Pong on a GPU, from the first step to 20 points."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from statistics import fmean
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.atari_vector import atari_vector
from benchmarks.gpu_timing import Row, Setting, reason_of
from benchmarks.gpu_train import GAME
from benchmarks.pong import N_ENVS, ZOO
from sb3_npg import NPG

SEEDS = (0, 1, 2)
#: Mean return of the last 100 episodes that ends a training, and the seconds after which it ends without.
POINTS, SECONDS = 20.0, 405.0
#: Seconds between two looks at a training.
EVERY = 30.0
#: Seconds after which the others are told that trainings go on.
_NEWS = 10.0


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
    standing = [seed for seed in SEEDS if _name(seed) not in without]
    with ProcessPoolExecutor(len(SEEDS), get_context("spawn")) as processes:
        runs = {seed: processes.submit(_train, seed, setting) for seed in standing}
        while wait(runs.values(), _NEWS).not_done:
            starting(", ".join(map(_name, standing)))
    return [_row(seed, runs.get(seed), without) for seed in SEEDS]


def _name(seed: int) -> str:
    return f"seed {seed}"


def _row(seed: int, run: Future[dict[str, Any]] | None, without: dict[str, str]) -> Row:
    if run is None:
        return {"name": _name(seed), "failed": without[_name(seed)]}
    error = run.exception()
    return {"name": _name(seed), **({"failed": reason_of(error)} if error is not None else run.result())}


def _train(seed: int, setting: Setting) -> dict[str, Any]:
    th.set_num_threads(1)
    env = atari_vector(GAME, N_ENVS, seed)
    agent = NPG("CnnPolicy", env, seed=seed, device=setting.device, **ZOO)
    progress = Progress(setting.size(1000, 20) / 1000 * SECONDS)
    agent.learn(10**9, callback=progress)
    env.close()
    return {"looks": progress.looks}
