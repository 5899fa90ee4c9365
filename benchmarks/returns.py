"""
NPG compared with sb3-contrib's TRPO and SB3's PPO, with rl_zoo3's hyperparameters for each of them, on eleven tasks;
and NPG by itself on other tasks of zoo_configs, for example with ``--algorithms npg --tasks Reacher-v5``.

``python -m benchmarks.returns`` does the missing runs, then writes ``docs/results.md`` with its pictures and the table
in ``README.md``. If interrupted, it resumes. ``--algorithms``, ``--tasks`` and ``--seeds`` restrict the runs;
``--report`` does none.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import returns_report as report
from benchmarks.report import Store, command_line, measure_missing, write_document
from benchmarks.zoo_runs import ZooRun, measure, zoo_block

RESULTS = Path("benchmarks/results/returns")
DOCUMENT = Path("docs/results.md")
README = Path("README.md")
ALGORITHMS = ("npg", "trpo", "ppo")
#: Steps of each task: rl_zoo3's budgets for TRPO, which are PPO's or less, except that LunarLander gets PPO's.
TASKS = {
    "CartPole-v1": 100_000,
    "Acrobot-v1": 100_000,
    "Pendulum-v1": 100_000,
    "MountainCarContinuous-v0": 50_000,
    "LunarLander-v3": 1_000_000,
    "HalfCheetah-v5": 1_000_000,
    "Hopper-v5": 1_000_000,
    "Walker2d-v5": 1_000_000,
    "Ant-v5": 1_000_000,
    "Swimmer-v5": 1_000_000,
    "BipedalWalker-v3": 1_000_000,
}
#: Other tasks with a block in zoo_configs, which only NPG runs, for the block's own steps.
MORE_TASKS = {
    "MountainCar-v0": 500_000,
    "LunarLanderContinuous-v3": 500_000,
    "InvertedPendulum-v5": 1_000_000,
    "InvertedDoublePendulum-v5": 300_000,
    "Reacher-v5": 1_000_000,
    "Pusher-v5": 1_000_000,
}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Run(ZooRun):
    """
    One training run with the hyperparameters that the zoo has.

    :param steps: environment steps over all environments
    """

    steps: int

    def block(self) -> dict[str, Any]:
        """Return the hyperparameters, in the zoo's grammar."""
        return {**zoo_block(self.algo, self.env_id), "n_timesteps": self.steps}


def all_runs(
    algorithms: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
) -> list[Run]:
    """Return the runs, those of the first seed first, so that an unfinished comparison says something."""
    chosen = product(seeds or SEEDS, tasks or TASKS, algorithms or ALGORITHMS)
    lengths = TASKS | MORE_TASKS
    return [Run(algo, task, seed, steps or lengths[task]) for seed, task, algo in chosen]


def document(
    found: report.Found, store: Store, runs: Sequence[Run], complete: Sequence[str], pictures: Path
) -> list[str]:
    """
    Return the sections of the document, and draw its pictures.

    :param found: figures by algorithm and task
    :param store: where they are from
    :param runs: all runs
    :param complete: tasks that every algorithm has run with every seed
    :param pictures: path that the pictures' names begin with
    """
    tasks = list(dict.fromkeys(run.env_id for run in runs))
    algorithms = list(dict.fromkeys(run.algo for run in runs))
    seeds = sorted({run.seed for run in runs})
    names = {over: f"{pictures.name}_{over}.png" for over in ("steps", "seconds")}
    for over, name in names.items():
        report.plot_curves(pictures.with_name(name), found, tasks, algorithms, over)
    return [
        "# Returns",
        f"Written by `{command_line('benchmarks.returns', [])}` from `{RESULTS}/`.",
        "\n".join(sorted(store.environments())),
        report.how_it_was_done(),
        report.CONCLUSIONS,
        f"## Return of the final policy, mean ± standard deviation over seeds {seeds}",
        report.final_table(found, tasks, algorithms),
        f"## All complete tasks together: {', '.join(complete) or 'none yet'}",
        "Scaled so that 0 is an untrained policy and 1 a good one. In brackets: 95 % bootstrap intervals over seeds.",
        report.aggregate_table(found, complete, algorithms) if complete else "–",
        "## Seconds and steps to TRPO's final score",
        "At the first evaluation that reaches it: median over the seeds that do.",
        report.to_score_table(found, tasks, algorithms),
        "## Seconds of whole runs",
        report.seconds_table(found, tasks, algorithms),
        "## Learning curves",
        "Mean and range over seeds.",
        *(f"![returns over {over}]({name})" for over, name in names.items()),
        "## Every seed",
        report.seeds_table(found, tasks, algorithms),
        "## Other tasks of zoo_configs, only NPG",
        report.alone_table(found, MORE_TASKS),
    ]


def write(store: Store, runs: Sequence[Run], out: Path, readme: Path) -> None:
    """Write the document, its pictures and README.md's table from what is stored."""
    seeds = sorted({run.seed for run in runs})
    alone = all_runs(["npg"], list(MORE_TASKS), seeds)
    found = store.found([*runs, *alone], lambda run: (run.algo, run.env_id))
    tasks = list(dict.fromkeys(run.env_id for run in runs))
    complete = report.complete_tasks(found, tasks, ALGORITHMS, len(seeds))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_document(out, document(found, store, runs, complete, out.with_suffix("")))
    if complete:
        picture = os.path.relpath(out.with_name(f"{out.stem}_seconds.png"), readme.parent)
        report.write_readme(readme, report.headline(found, complete, ALGORITHMS, picture))


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.returns", description=__doc__)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=[*TASKS, *MORE_TASKS])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, help="of every task, to try it out")
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument("--report", action="store_true", help="only write what is stored")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    parser.add_argument("--readme", type=Path, default=README)
    arguments = parser.parse_args(argv)
    store = Store(arguments.results, any_machine=True)
    if not arguments.report:
        runs = all_runs(arguments.algorithms, arguments.tasks, arguments.seeds, arguments.steps)
        measure_missing(store, runs, measure, arguments.processes)
    write(store, all_runs(steps=arguments.steps), arguments.out, arguments.readme)


if __name__ == "__main__":
    main(sys.argv[1:])
