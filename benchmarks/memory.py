"""
Memory that one ``train()`` call takes on Atari-sized frames, above what is resident just before it.

The rollout is resident by then, so the figure is what the update itself costs. Linux only: the kernel's
record of the largest resident memory is reset just before the call.
"""

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from rich.progress import track
from sb3_contrib import TRPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from benchmarks.report import command_line, in_fresh_process, markdown_table, preamble, write_document
from sb3_npg import NPG

MIB = 2**20
N_ENVS = 8
#: Enough for every kind of graph to be alive at its largest; more steps take longer and no more memory.
CG_STEPS = 3
ACTIONS = 6
FRAMES = 4
SHARED: dict[str, Any] = {"batch_size": 128, "n_critic_updates": 1, "seed": 0, "device": "cpu"}
ALGORITHMS = ("NPG", "TRPO")
SMALLEST_ROWS = 1024
#: What NPG may take above the rollout.
ALLOWED_MIB = 2048


class TrainCost(NamedTuple):
    """
    What one ``train()`` call cost.

    :param rollout_bytes: arrays of the rollout buffer
    :param peak_bytes: largest resident memory during the call, less what was resident before it
    :param seconds: wall time of the call
    """

    rollout_bytes: int
    peak_bytes: int
    seconds: float


class TrainMeter(BaseCallback):
    """Measures the ``train()`` call between the end of the only rollout and the end of training."""

    cost: TrainCost

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, OnPolicyAlgorithm)
        self._rollout_bytes = buffer_bytes(self.model.rollout_buffer)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        self._resident = status_bytes("VmRSS")
        self._start = time.perf_counter()

    def _on_training_end(self) -> None:
        seconds = time.perf_counter() - self._start
        self.cost = TrainCost(self._rollout_bytes, status_bytes("VmHWM") - self._resident, seconds)


def status_bytes(name: str) -> int:
    """
    Read a figure of this process from the kernel.

    :param name: "VmRSS", what is resident, or "VmHWM", the most that was
    :return: bytes
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def buffer_bytes(buffer: RolloutBuffer) -> int:
    """Return the bytes of a rollout buffer's arrays."""
    return sum(array.nbytes for array in vars(buffer).values() if isinstance(array, np.ndarray))


def train_cost(algorithm: str, rows: int, frame_size: int = 84, memory_limit: int | None = None) -> TrainCost | None:
    """
    Measure one ``train()`` call of CnnPolicy in this process, which should be a fresh one.

    :param algorithm: "NPG" or "TRPO"
    :param rows: of the rollout, a multiple of the number of environments
    :param frame_size: height and width of a frame in pixels
    :param memory_limit: bytes of memory that the process may ask for in all; None for no limit
    :return: the cost, or None if it did not fit in the limit
    """
    th.set_num_threads(1)
    if memory_limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
    frames = {"screen_height": frame_size, "screen_width": frame_size, "n_channels": FRAMES, "channel_first": True}
    env = make_vec_env(FakeImageEnv, n_envs=N_ENVS, seed=0, env_kwargs={"action_dim": ACTIONS, **frames})
    shared = {**SHARED, "n_steps": rows // N_ENVS}
    model: OnPolicyAlgorithm
    if algorithm == "NPG":
        solver: dict[str, Any] = {"fisher_solver": "cg", "fisher_solver_kwargs": {"max_steps": CG_STEPS, "rtol": 0.0}}
        model = NPG("CnnPolicy", env, critic_solver="adam", **solver, **shared)
    else:
        model = TRPO("CnnPolicy", env, cg_max_steps=CG_STEPS, **shared)
    meter = TrainMeter()
    try:
        model.learn(rows, callback=meter)
    except MemoryError:
        return None
    except RuntimeError as error:  # torch has no class of its own for it on a CPU
        if "allocate memory" not in str(error):
            raise
        return None
    return meter.cost


def measure_sizes(algorithm: str, sizes: Sequence[int], memory_limit: int) -> dict[int, TrainCost | None]:
    """
    Measure rollouts of growing size, each in a process of its own, up to the first that does not fit.

    :param algorithm: "NPG" or "TRPO"
    :param sizes: numbers of rows, ascending
    :param memory_limit: bytes of memory that a process may ask for in all
    :return: the costs by number of rows; None for the size that did not fit
    """
    costs: dict[int, TrainCost | None] = {}
    for rows in track(sizes, algorithm):
        costs[rows] = in_fresh_process(train_cost, algorithm, rows, memory_limit=memory_limit)
        if costs[rows] is None:
            break
    return costs


def table(costs: dict[str, dict[int, TrainCost | None]]) -> str:
    """Return the table of all sizes of all algorithms."""
    lines = []
    for algorithm, of_size in costs.items():
        for rows, cost in of_size.items():
            figures = ["", "does not fit", ""]
            if cost is not None:
                mebibytes = [cost.rollout_bytes / MIB, cost.peak_bytes / MIB]
                figures = [*(f"{value:,.0f}" for value in mebibytes), f"{cost.seconds:.1f}"]
            lines.append([algorithm, f"{rows:,}", *figures])
    return markdown_table(["algorithm", "rows", "rollout MiB", "peak of train() above it MiB", "train() s"], lines)


def verdict(rows: int, cost: TrainCost | None) -> str:
    """Say whether NPG keeps to what it is allowed."""
    kept = cost is not None and cost.peak_bytes <= ALLOWED_MIB * MIB
    return (
        f"NPG may take {ALLOWED_MIB:,} MiB above the rollout, whatever the rollout's size. At {rows:,} rows it "
        f"{'keeps' if kept else 'does **not** keep'} to that."
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--rows", type=int, default=8192, help=f"largest rollout; doubled from {SMALLEST_ROWS}")
    parser.add_argument("--limit-gib", type=float, default=16.0, help="memory that one process may ask for in all")
    parser.add_argument("--out", type=Path, default=Path("docs/memory.md"))
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Measure all sizes and write the document."""
    arguments = parse(argv)
    sizes = [SMALLEST_ROWS]
    while sizes[-1] * 2 <= arguments.rows:
        sizes.append(sizes[-1] * 2)
    limit = int(arguments.limit_gib * 2**30)
    costs = {algorithm: measure_sizes(algorithm, sizes, limit) for algorithm in ALGORITHMS}
    shared = ", ".join(f"{name}={value}" for name, value in SHARED.items())
    explanation = f"""\
One `train()` call of CnnPolicy on random 84×84×{FRAMES} frames of uint8 with {ACTIONS} actions,
{shared}, {CG_STEPS} conjugate gradient steps, 1 thread. Each row of the table is from a fresh process that may
allocate {arguments.limit_gib:g} GiB in all. An algorithm's rows end at the first size that does not fit.

- rollout: bytes of the rollout buffer's arrays
- peak: largest resident memory during `train()`, less what was resident just before it, the rollout included"""
    sections = [
        preamble("Memory of one update on images", command_line("benchmarks.memory", argv)),
        explanation,
        table(costs),
        verdict(sizes[-1], costs["NPG"].get(sizes[-1])),
    ]
    write_document(arguments.out, sections)


if __name__ == "__main__":
    main(sys.argv[1:])
