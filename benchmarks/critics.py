"""
Critic solvers in training: returns at a fixed number of steps, what the critic explains, and seconds.

``python -m benchmarks.critics`` does the runs that are missing and writes ``docs/critics.md``, with the stored figures
of :mod:`benchmarks.critic_fit`. The runs share the machine with one another; what each critic costs on an idle machine
is in ``docs/performance.md``.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import critic_fit
from benchmarks.environments import EVALUATION_EPISODES, N_ENVS
from benchmarks.report import (
    Store,
    command_line,
    markdown_table,
    mean_and_spread,
    measure_missing,
    preamble,
    write_document,
)
from benchmarks.training import train

RESULTS = Path("benchmarks/results/critics")
#: Environment steps of each task.
TASKS = {
    "HalfCheetah-v5": 300_000,
    "Hopper-v5": 300_000,
    "Walker2d-v5": 300_000,
    "Swimmer-v5": 200_000,
    "Ant-v5": 200_000,
}
SEEDS = (0, 1, 2)
#: Rollouts of 2,048 rows.
SHARED: dict[str, Any] = {"n_steps": 256}


#: Arguments of NPG by the name that the tables show.
CRITICS: dict[str, dict[str, Any]] = {
    "Adam, 10 epochs of 64": {"critic_solver": "adam", "n_critic_updates": 10, "batch_size": 64},
    "Gauss–Newton, damping 10": {
        "critic_solver": "gauss_newton",
        "n_critic_updates": 1,
        "critic_solver_kwargs": {"damping": 10.0},
    },
}


@dataclass(frozen=True)
class Run:
    """
    One training run.

    :param env_id: the task
    :param seed: of environments, networks and actions
    :param critic: key of ``CRITICS``
    :param steps: environment steps over all environments
    """

    env_id: str
    seed: int
    critic: str
    steps: int

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        fixed = {"n_envs": N_ENVS, "episodes": EVALUATION_EPISODES, "threads": 1}
        return {**asdict(self), **SHARED, **fixed, "arguments": CRITICS[self.critic]}


def measure(store: Store, run: Run) -> None:
    """Train, evaluate, and keep the figures."""
    training = train(run.env_id, run.seed, run.steps, damping=0.1, **SHARED, **CRITICS[run.critic])
    figures = {
        "return": training.final,
        "training_return": training.training_return(),
        "explained_variance": training.explained_variance(),
        "critic_milliseconds": 1e3 * median(training.logged("time/critic")),
        "cpu_seconds": training.cpu_seconds,
        "curve": training.curve(),
        "explained": training.logged("train/explained_variance"),
    }
    store.save(run.settings(), figures)


def all_runs(
    seeds: Sequence[int] = SEEDS,
    tasks: Sequence[str] = tuple(TASKS),
    critics: Sequence[str] = tuple(CRITICS),
    steps: int | None = None,
) -> list[Run]:
    """Return the runs, those of the first seed first, so that an unfinished study says something."""
    return [Run(task, seed, critic, steps or TASKS[task]) for seed, task, critic in product(seeds, tasks, critics)]


def sections(store: Store, runs: Sequence[Run]) -> list[str]:
    """
    Write the tables from what is stored.

    :param store: where the figures are
    :param runs: all runs
    :return: Markdown
    """
    figures = {run: found for run in runs if (found := store.load(run.settings())) is not None}
    tasks = list(dict.fromkeys(run.env_id for run in runs))
    critics = [critic for critic in CRITICS if any(run.critic == critic for run in runs)]
    seeds = sorted({run.seed for run in runs})

    def cell(critic: str, task: str, figure: str, digits: int) -> str:
        values = [found[figure] for run, found in figures.items() if (run.critic, run.env_id) == (critic, task)]
        return mean_and_spread(values, digits)

    def table(figure: str, digits: int) -> str:
        rows = [[critic, *(cell(critic, task, figure, digits) for task in tasks)] for critic in critics]
        return markdown_table(["critic", *tasks], rows)

    about = (
        f"Mean ± standard deviation over seeds {seeds}; {N_ENVS} "
        f"environments, VecNormalize, {SHARED}, damping 0.1, all else NPG's defaults, one thread, two runs at once. "
        f"Steps: {', '.join(f'{task} {steps:,}' for task, steps in {run.env_id: run.steps for run in runs}.items())}."
    )
    return [
        about,
        f"## Return of the final policy, {EVALUATION_EPISODES} deterministic episodes",
        table("return", 0),
        "## Return while training, last tenth of the rollouts",
        table("training_return", 0),
        "## Explained variance of rollouts that the critic has not seen, median of the second half",
        table("explained_variance", 3),
        "## Seconds of the processor, of training as a whole",
        table("cpu_seconds", 0),
        "## Milliseconds of one regression, median",
        table("critic_milliseconds", 1),
    ]


#: What the tables say, in the words of those who read them.
CONCLUSIONS = """\
## What this says

- **Returns**: within the spread of the seeds on four tasks, which three seeds leave wide: HalfCheetah has two outcomes,
  running and sliding on its back, and either critic meets both. On Hopper Adam's final policies return more than the
  spread explains, and less while they train.
- **Time**: one Gauss–Newton step takes a small part of Adam's ten epochs. That is why it is the default.
- **What the critic explains** of rollouts that it has not seen: the same but for Swimmer, where Adam explains more.
- **Why second-order critics have been seen to hurt, and what to do about it.** The last table fits copies of one critic
  to one rollout. The harder the fit, by more steps or by less damping, and by more epochs of Adam just as well, the
  more of that rollout is explained, and on Walker2d, Swimmer and Ant the *less* of the next rollout of the same policy.
  2,048 rows hold few independent returns, and a Gauss–Newton step that is hardly damped goes to their noise at once,
  which Adam does only in many epochs. At a damping of ten mean eigenvalues one step keeps what it learns. On Hopper,
  whose critics explain nearly everything, fitting harder loses nothing.
"""


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.critics", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--critics", nargs="+", default=list(CRITICS), choices=list(CRITICS))
    parser.add_argument("--steps", type=int, help="environment steps of every task, by default each task's own")
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path("docs/critics.md"))
    arguments = parser.parse_args(argv)
    runs = all_runs(arguments.seeds, arguments.tasks, arguments.critics, arguments.steps)
    store = Store(arguments.results)
    measure_missing(store, runs, measure, arguments.processes)
    head = preamble("Critic solvers side by side", command_line("benchmarks.critics", argv))
    fits = critic_fit.sections(Store(critic_fit.RESULTS), [critic_fit.Run(task) for task in critic_fit.TASKS])
    write_document(
        arguments.out,
        [
            head,
            CONCLUSIONS,
            *sections(store, runs),
            *(["## What is learnt from one rollout, and what of it holds", *fits] if fits else []),
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
