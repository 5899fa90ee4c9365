"""
Every solver, and the candidates for the default, in training: returns at a fixed number of steps and seconds.

``python -m benchmarks.solver_returns`` does the runs that are missing and prints their table;
``python -m benchmarks.solvers`` puts it into ``docs/solvers.md``.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.environments import EVALUATION_EPISODES, N_ENVS
from benchmarks.report import Store, markdown_table, mean_and_spread, measure_missing
from benchmarks.training import train

RESULTS = Path("benchmarks/results/solver_returns")
#: Environment steps of each task.
TASKS = {"CartPole-v1": 50_000, "Pendulum-v1": 100_000, "Hopper-v5": 200_000, "HalfCheetah-v5": 300_000}
SEEDS = (0, 1, 2)
#: Rollouts of 2,048 rows, and what is not under study.
SHARED: dict[str, Any] = {"n_steps": 256, "batch_size": 128}


_PRECONDITIONED: dict[str, Any] = {"fisher_solver_kwargs": {"max_steps": 5, "preconditioner": "kfac"}}
#: Arguments of NPG by the name that the tables show.
SETTINGS: dict[str, dict[str, Any]] = {
    "cg 15": {},
    "cg 5 + kfac": _PRECONDITIONED,
    "kfac": {"fisher_solver": "kfac"},
    "ekfac": {"fisher_solver": "ekfac"},
    "cg 5 + kfac, damping 0.01": {**_PRECONDITIONED, "damping": 0.01},
    "cg 5 + kfac, relative 0.1": {**_PRECONDITIONED, "relative_damping": True},
    "cg 5 + kfac, adaptive": {**_PRECONDITIONED, "adaptive_damping": True},
    "cg 15, damping 0.01": {"damping": 0.01},
    "identity": {"fisher_solver": "identity"},
    "diagonal": {"fisher_solver": "diagonal"},
    "woodbury, 512 rows": {"fisher_solver": "woodbury", "sub_sampling_factor": 4},
    "exact, 512 rows, 32×32": {
        "fisher_solver": "exact",
        "sub_sampling_factor": 4,
        "policy_kwargs": {"net_arch": {"pi": [32, 32], "vf": [64, 64]}},
    },
}
#: What the default is chosen from, with all seeds; the first seed shows how the others train.
CANDIDATES = ("cg 15", "cg 5 + kfac", "cg 5 + kfac, damping 0.01")
#: Variations of a damping that are not taken to the longest task.
VARIATIONS = ("cg 5 + kfac, relative 0.1", "cg 15, damping 0.01", "cg 5 + kfac, adaptive")
LONGEST = "HalfCheetah-v5"


@dataclass(frozen=True)
class Run:
    """
    One training run.

    :param env_id: the task
    :param seed: of environments, networks and actions
    :param setting: key of ``SETTINGS``
    :param steps: environment steps over all environments
    """

    env_id: str
    seed: int
    setting: str
    steps: int

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        fixed = {"n_envs": N_ENVS, "episodes": EVALUATION_EPISODES, "threads": 1}
        return {**asdict(self), **SHARED, **fixed, "arguments": SETTINGS[self.setting]}


def measure(store: Store, run: Run) -> None:
    """Train, evaluate, and keep the figures."""
    arguments = {"critic_solver": "adam", "n_critic_updates": 10, "damping": 0.1, **SHARED, **SETTINGS[run.setting]}
    training = train(run.env_id, run.seed, run.steps, **arguments)
    figures = {
        "return": training.final,
        "skipped": training.logged("train/skipped_updates")[-1],
        "updates": len(training.updates),
        "solve_seconds": fmean(training.logged("time/solve")),
        "update_seconds": fmean(training.logged("seconds")),
        "kl": fmean(training.logged("train/kl")),
        "line_search_steps": fmean(training.logged("train/line_search_steps")),
    }
    store.save(run.settings(), figures)


def all_runs(
    seeds: Sequence[int] = SEEDS,
    tasks: Sequence[str] = tuple(TASKS),
    settings: Sequence[str] = tuple(SETTINGS),
    steps: int | None = None,
) -> list[Run]:
    """Return the runs, those of the first seed first, so that an unfinished study says something."""
    return [
        Run(task, seed, setting, steps or TASKS[task])
        for seed, task, setting in product(seeds, tasks, settings)
        if (setting in CANDIDATES or seed == seeds[0]) and not (setting in VARIATIONS and task == LONGEST)
    ]


def sections(store: Store, runs: Sequence[Run]) -> list[str]:
    """
    Write the tables from what is stored.

    :param store: where the figures are
    :param runs: all runs
    :return: Markdown
    """
    figures = {run: found for run in runs if (found := store.load(run.settings())) is not None}
    tasks = list(dict.fromkeys(run.env_id for run in runs))
    settings = list(dict.fromkeys(run.setting for run in runs))
    seeds = sorted({run.seed for run in runs})
    cells = {
        (setting, task): [found for run, found in figures.items() if (run.setting, run.env_id) == (setting, task)]
        for setting, task in product(settings, tasks)
    }
    means = {place: fmean(one["return"] for one in found) for place, found in cells.items() if found}
    rows = []
    for setting in settings:
        mine = [found for task in tasks for found in cells[setting, task]]
        if not mine:
            continue
        rows.append(
            [
                setting,
                *(mean_and_spread([one["return"] for one in cells[setting, task]]) for task in tasks),
                _mean_place(setting, tasks, means),
                f"{fmean(one['kl'] for one in mine):.4f}",
                f"{fmean(one['line_search_steps'] for one in mine):.1f}",
                f"{sum(one['skipped'] for one in mine):.0f} of {sum(one['updates'] for one in mine):,}",
            ]
        )
    about = (
        f"Return of the final policy over {EVALUATION_EPISODES} deterministic episodes, mean ± standard deviation over "
        f"seeds {seeds} for {'; '.join(CANDIDATES)}, the first seed alone for the others; {N_ENVS} environments, "
        f"VecNormalize, {SHARED}, damping 0.1 unless the name says otherwise, all else NPG's defaults, one thread. "
        f"Steps: {', '.join(f'{task} {run_steps(runs, task):,}' for task in tasks)}. –: not run. Mean place: among "
        "those with all seeds, averaged over tasks; 1 is best. KL: mean of the steps taken, in nats. Skipped updates: "
        "of all runs. These runs shared the machine with others; seconds are below."
    )
    header = ["setting", *tasks, "mean place", "KL", "line search trials", "skipped updates"]
    return [about, markdown_table(header, rows)]


def run_steps(runs: Sequence[Run], task: str) -> int:
    """Return the environment steps of a task's runs."""
    return next(run.steps for run in runs if run.env_id == task)


def _mean_place(setting: str, tasks: Sequence[str], means: dict[tuple[str, str], float]) -> str:
    """Average a candidate's place among the candidates."""
    rivals = [name for name in CANDIDATES if all((name, task) in means for task in tasks)]
    if setting not in rivals:
        return "–"
    places = [1 + sum(means[other, task] > means[setting, task] for other in rivals) for task in tasks]
    return f"{fmean(places):.1f}"


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solver_returns", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--steps", type=int, help="environment steps of every task, by default each task's own")
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    runs = all_runs(arguments.seeds, arguments.tasks, arguments.settings, arguments.steps)
    store = Store(arguments.results)
    measure_missing(store, runs, measure, arguments.processes)
    print("\n\n".join(sections(store, runs)))


if __name__ == "__main__":
    main(sys.argv[1:])
