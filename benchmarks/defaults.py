"""
What the defaults of ``target_kl`` and ``damping`` rest on: one argument varied at a time, over tasks and seeds.

``python -m benchmarks.defaults`` does the runs that are missing and writes ``docs/defaults.md``.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.environments import EVALUATION_EPISODES, N_ENVS
from benchmarks.report import Store, command_line, markdown_table, measure_missing, preamble, write_document
from benchmarks.training import train

#: Environment steps of each task.
TASKS = {"CartPole-v1": 50_000, "Pendulum-v1": 100_000, "HalfCheetah-v5": 200_000, "Hopper-v5": 200_000}
#: Rollouts of 2,048 rows, and what is not under study.
SHARED: dict[str, Any] = {"n_steps": 256, "batch_size": 128}
BASE = {"target_kl": 0.02, "damping": 0.1}
VARIATIONS = {"target_kl": (0.005, 0.01, 0.02, 0.05, 0.1), "damping": (0.01, 0.1, 1.0)}


@dataclass(frozen=True)
class Run:
    """
    One training run.

    :param env_id: the task
    :param seed: of environments, networks and actions
    :param target_kl: δ in nats
    :param damping: λ
    :param steps: environment steps over all environments
    """

    env_id: str
    seed: int
    target_kl: float
    damping: float
    steps: int

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        return {**asdict(self), **SHARED, "n_envs": N_ENVS, "episodes": EVALUATION_EPISODES, "threads": 1}


def measure(store: Store, run: Run) -> None:
    """Train, evaluate, and keep the final policy's mean return."""
    arguments = {"target_kl": run.target_kl, "damping": run.damping, **SHARED}
    training = train(run.env_id, run.seed, run.steps, critic_solver="adam", n_critic_updates=10, **arguments)
    store.save(run.settings(), {"return": training.final})


def settings_under_study() -> list[dict[str, float]]:
    """Return the base and, for each argument, the base with that argument varied."""
    varied = [{**BASE, name: value} for name, values in VARIATIONS.items() for value in values]
    return [one for i, one in enumerate(varied) if one not in varied[:i]]


def table(store: Store, runs: Sequence[Run]) -> str:
    """
    Write mean ± standard deviation over seeds, and each setting's mean place among all on the four tasks.

    :param store: where the returns are
    :param runs: all runs, done
    """
    figures = {run: found["return"] for run in runs if (found := store.load(run.settings())) is not None}
    tasks = list(dict.fromkeys(run.env_id for run in runs))
    by_setting: dict[tuple[float, float], dict[str, list[float]]] = {}
    for run, value in figures.items():
        returns = by_setting.setdefault((run.target_kl, run.damping), {task: [] for task in tasks})
        returns[run.env_id].append(value)
    means = {setting: {task: fmean(values[task]) for task in tasks} for setting, values in by_setting.items()}
    rows = []
    for setting, values in by_setting.items():
        places = [1 + sum(other[task] > means[setting][task] for other in means.values()) for task in tasks]
        cells = [f"{fmean(values[t]):.0f} ± {stdev(values[t]) if len(values[t]) > 1 else 0.0:.0f}" for t in tasks]
        rows.append([f"{setting[0]:g}", f"{setting[1]:g}", *cells, f"{fmean(places):.1f}"])
    return markdown_table(["target_kl", "damping", *tasks, "mean place"], rows)


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document from what is stored."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.defaults", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--steps", type=int, help="environment steps of every task, by default each task's own")
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument("--out", type=Path, default=Path("docs/defaults.md"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/defaults"))
    arguments = parser.parse_args(argv)
    runs = [
        Run(task, seed, steps=arguments.steps or TASKS[task], **setting)
        for setting, seed, task in product(settings_under_study(), arguments.seeds, arguments.tasks)
    ]
    store = Store(arguments.results)
    measure_missing(store, runs, measure, arguments.processes)
    about = (
        f"Return of the final policy over {EVALUATION_EPISODES} deterministic episodes, mean ± standard deviation over "
        f"seeds {arguments.seeds}; {N_ENVS} environments, VecNormalize, {SHARED}, all else NPG's defaults, one thread. "
        f"Steps: {', '.join(f'{task} {arguments.steps or TASKS[task]:,}' for task in arguments.tasks)}. "
        "Mean place: among all settings, averaged over tasks; 1 is best."
    )
    command = command_line("benchmarks.defaults", argv)
    write_document(arguments.out, [preamble("What the defaults rest on", command), about, table(store, runs)])


if __name__ == "__main__":
    main(sys.argv[1:])
