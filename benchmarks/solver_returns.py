"""
Every solver in training: returns at a fixed number of steps, and what its steps do.

``python -m benchmarks.solver_returns`` does the runs that are missing and prints their tables;
``python -m benchmarks.solvers`` puts them into ``docs/solvers.md``.
"""

import sys
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from benchmarks.environments import EVALUATION_EPISODES
from benchmarks.report import Store, markdown_table
from benchmarks.study import Run, Study, describe, table
from sb3_npg.defaults import DEFAULT_DAMPING

#: Environment steps of each task.
TASKS = {"CartPole-v1": 50_000, "Pendulum-v1": 100_000, "Hopper-v5": 200_000, "HalfCheetah-v5": 300_000}

_PRECONDITIONED: dict[str, Any] = {"fisher_solver_kwargs": {"max_steps": 5, "preconditioner": "kfac"}}
#: Arguments of NPG by the name that the tables show.
SETTINGS: dict[str, dict[str, Any]] = {
    "cg 15": {},
    "cg 15, damping × 0.1": {"damping_factor": 0.1},
    "cg 5 + kfac": _PRECONDITIONED,
    "cg 5 + kfac, damping × 0.1": {**_PRECONDITIONED, "damping_factor": 0.1},
    "cg 5 + kfac, relative 0.1": {**_PRECONDITIONED, "relative_damping": True},
    "cg 5 + kfac, adaptive": {**_PRECONDITIONED, "adaptive_damping": True},
    "kfac": {"fisher_solver": "kfac"},
    "ekfac": {"fisher_solver": "ekfac"},
    "identity": {"fisher_solver": "identity"},
    "diagonal": {"fisher_solver": "diagonal"},
    "woodbury, 512 rows": {"fisher_solver": "woodbury", "sub_sampling_factor": 4},
    "exact, 512 rows, 32×32": {
        "fisher_solver": "exact",
        "sub_sampling_factor": 4,
        "policy_kwargs": {"net_arch": {"pi": [32, 32], "vf": [64, 64]}},
    },
}
#: Rollouts of 2,048 rows.
STUDY = Study("solver_returns", TASKS, {"n_steps": 256}, SETTINGS)


def sections(store: Store, runs: Sequence[Run]) -> list[str]:
    """
    Write the tables from what is stored.

    :param store: where the figures are
    :param runs: all runs
    :return: Markdown
    """
    about = (
        f"{describe(runs)} The default damping is {DEFAULT_DAMPING:g} for each action dimension. Mean place: averaged "
        "over tasks; 1 is best. These runs shared the machine with others; seconds are below."
    )
    return [
        about,
        f"Return of the final policy, {EVALUATION_EPISODES} deterministic episodes:",
        table(store, runs, "return"),
        "Return while training, last tenth of the rollouts:",
        table(store, runs, "training_return"),
        "What the updates did, over all tasks and seeds; KL: mean of the steps taken, in nats:",
        _table_of_steps(store, runs),
    ]


def _table_of_steps(store: Store, runs: Sequence[Run]) -> str:
    """Write how far each candidate's updates went, and how many were skipped."""
    rows = [
        [
            candidate,
            f"{fmean(one['kl'] for one in found):.4f}",
            f"{fmean(one['line_search_steps'] for one in found):.1f}",
            f"{sum(one['skipped'] for one in found):.0f} of {sum(one['updates'] for one in found):,}",
        ]
        for candidate, found in store.found(runs, lambda run: run.candidate).items()
    ]
    return markdown_table(["changed", "KL", "line search trials", "skipped updates"], rows)


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then print the tables."""
    store, runs = STUDY.measure_missing(STUDY.parser("benchmarks.solver_returns", __doc__).parse_args(argv))
    print("\n\n".join(sections(store, runs)))


if __name__ == "__main__":
    main(sys.argv[1:])
