"""What the studies of NPG's arguments share: one thing changed at a time, over tasks and seeds."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import gymnasium as gym

from benchmarks.environments import EVALUATION_EPISODES, N_ENVS
from benchmarks.report import Store, markdown_table, mean_and_spread, measure_missing
from benchmarks.training import train
from sb3_npg.defaults import default_damping


@dataclass(frozen=True)
class Run:
    """
    One training run.

    :param env_id: the task
    :param seed: of environments, networks and actions
    :param candidate: what the tables call it
    :param steps: environment steps over all environments
    :param shared: arguments of NPG that all runs of the study have
    :param changed: this candidate's; "damping_factor" multiplies the default damping
    """

    env_id: str
    seed: int
    candidate: str
    steps: int
    shared: dict[str, Any]
    changed: dict[str, Any]

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        mine = {"env_id": self.env_id, "seed": self.seed, "candidate": self.candidate, "steps": self.steps}
        fixed = {"n_envs": N_ENVS, "episodes": EVALUATION_EPISODES, "threads": 1}
        return {**mine, **fixed, **self.shared, "arguments": self.changed}

    def arguments(self) -> dict[str, Any]:
        """Return NPG's arguments."""
        arguments = {**self.shared, **self.changed}
        factor = arguments.pop("damping_factor", None)
        if factor is not None:
            env = gym.make(self.env_id)
            arguments["damping"] = factor * default_damping(env.observation_space, env.action_space, "cg", False)
            env.close()
        return arguments


@dataclass(frozen=True)
class Study:
    """
    NPG as it is and changed, over tasks and seeds.

    :param name: of its folder of results
    :param tasks: environment steps over all environments, by task
    :param shared: arguments of NPG that all runs have
    :param candidates: what is changed, by the name that the tables show
    :param seeds: of environments, networks and actions
    """

    name: str
    tasks: dict[str, int]
    shared: dict[str, Any]
    candidates: dict[str, dict[str, Any]]
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def results(self) -> Path:
        """The folder of results."""
        return Path("benchmarks/results") / self.name

    def runs(
        self,
        seeds: Sequence[int] | None = None,
        tasks: Sequence[str] | None = None,
        candidates: Sequence[str] | None = None,
        steps: int | None = None,
    ) -> list[Run]:
        """Return the runs, those of the first seed first, so that an unfinished study says something."""
        chosen = product(seeds or self.seeds, candidates or self.candidates, tasks or self.tasks)
        return [
            Run(task, seed, name, steps or self.tasks[task], self.shared, self.candidates[name])
            for seed, name, task in chosen
        ]

    def parser(self, module: str, description: str | None) -> argparse.ArgumentParser:
        """
        Return the arguments of the benchmark.

        :param module: of the benchmark
        :param description: what it does
        """
        parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
        parser.add_argument("--seeds", type=int, nargs="+", default=list(self.seeds))
        parser.add_argument("--tasks", nargs="+", default=list(self.tasks), choices=list(self.tasks))
        parser.add_argument("--candidates", nargs="+", default=list(self.candidates), choices=list(self.candidates))
        parser.add_argument("--steps", type=int, help="environment steps of every task, by default each task's own")
        parser.add_argument("--processes", type=int, default=2, help="runs at once")
        parser.add_argument("--results", type=Path, default=self.results)
        return parser

    def measure_missing(self, arguments: argparse.Namespace) -> tuple[Store, list[Run]]:
        """
        Do the runs that are missing, and return where all of them are kept.

        :param arguments: parsed by ``parser``
        """
        runs = self.runs(arguments.seeds, arguments.tasks, arguments.candidates, arguments.steps)
        store = Store(arguments.results)
        measure_missing(store, runs, measure, arguments.processes)
        return store, runs


def measure(store: Store, run: Run) -> None:
    """Train, evaluate, and keep the figures."""
    training = train(run.env_id, run.seed, run.steps, **run.arguments())
    figures = {
        "return": training.final,
        "training_return": training.training_return(),
        "explained_variance": training.explained_variance(),
        "kl": fmean(training.logged("train/kl")),
        "line_search_steps": fmean(training.logged("train/line_search_steps")),
        "skipped": training.logged("train/skipped_updates")[-1],
        "updates": len(training.updates),
        "critic_milliseconds": 1e3 * median(training.logged("time/critic")),
        "cpu_seconds": training.cpu_seconds,
        "curve": training.curve(),
    }
    store.save(run.settings(), figures)


def describe(runs: Sequence[Run]) -> str:
    """Return what all runs of a study have in common, for a document."""
    seeds = sorted({run.seed for run in runs})
    steps = ", ".join(f"{task} {steps:,}" for task, steps in {run.env_id: run.steps for run in runs}.items())
    return (
        f"Mean ± standard deviation over seeds {seeds}; {N_ENVS} environments, VecNormalize, {runs[0].shared}, all "
        f"else NPG's defaults but for what the first column names, one thread. Steps: {steps}."
    )


def table(store: Store, runs: Sequence[Run], figure: str, digits: int = 0, places: bool = True) -> str:
    """
    Write mean ± standard deviation over seeds, a row for each candidate and a column for each task.

    :param store: where the figures are
    :param runs: all runs
    :param figure: what was measured
    :param digits: after the point
    :param places: whether the last column is a candidate's mean place among all, 1 being the best
    """
    tasks = list(dict.fromkeys(run.env_id for run in runs))
    candidates = list(dict.fromkeys(run.candidate for run in runs))
    found = store.found(runs, lambda run: (run.candidate, run.env_id))
    values = {key: [figures[figure] for figures in runs_of_key] for key, runs_of_key in found.items()}

    def place(candidate: str, task: str) -> int:
        mine = fmean(values[candidate, task])
        return 1 + sum(fmean(values[other, task]) > mine for other in candidates if (other, task) in values)

    def mean_place(candidate: str) -> str:
        return f"{fmean(place(candidate, task) for task in tasks if (candidate, task) in values):.1f}"

    rows = [
        [candidate, *(mean_and_spread(values.get((candidate, task), []), digits) for task in tasks)]
        for candidate in candidates
        if any((candidate, task) in values for task in tasks)
    ]
    if places:
        rows = [[*row, mean_place(row[0])] for row in rows]
    return markdown_table(["changed", *tasks, *(["mean place"] if places else [])], rows)
