"""What the studies behind one task's hyperparameters in the zoo share: runs of candidates, their table and document."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeAlias

from benchmarks.report import Store, command_line, markdown_table, mean_and_spread, measure_missing, write_document
from benchmarks.returns_report import final, first_reaching
from benchmarks.zoo_runs import EVALUATIONS, ZooRun, measure

#: What differs from the base, and the seeds, by the name in the tables.
Candidates: TypeAlias = dict[str, tuple[dict[str, Any], Sequence[int]]]


@dataclass(frozen=True)
class CandidateRun(ZooRun):
    """
    One run of a candidate.

    :param candidate: what the tables call it
    :param hyperparameters: all of them, in the zoo's grammar
    :param n_evaluations: during the run, evenly spaced
    """

    candidate: str
    hyperparameters: dict[str, Any]
    n_evaluations: int

    @property
    def evaluations(self) -> int:
        """Evaluations during the run."""
        return self.n_evaluations

    def block(self) -> dict[str, Any]:
        """Return the hyperparameters, in the zoo's grammar."""
        return self.hyperparameters


@dataclass(frozen=True)
class Stage:
    """
    The runs of one length.

    :param steps: of each run
    :param candidates: with their seeds
    :param evaluations: during a run, evenly spaced
    """

    steps: int
    candidates: Candidates
    evaluations: int = EVALUATIONS


@dataclass(frozen=True)
class ZooStudy:
    """
    Candidates for the hyperparameters of a task.

    :param name: of the benchmark, its folder of results and its document
    :param task: the task
    :param base: hyperparameters that the candidates begin with, in full, so that a change of ``zoo_configs/npg.yml``
        does not affect them
    :param stages: runs by length
    :param shown: the steps over which the mean of the evaluations is shown
    """

    name: str
    task: str
    base: dict[str, Any]
    stages: Sequence[Stage]
    shown: tuple[int, int]

    def runs(self, stage: Stage) -> list[CandidateRun]:
        """Return the runs of all candidates, those of one together."""
        return [
            CandidateRun(
                "npg", self.task, seed, name, {**self.base, "n_timesteps": stage.steps, **changed}, stage.evaluations
            )
            for name, (changed, seeds) in stage.candidates.items()
            for seed in seeds
        ]

    def table(self, store: Store, runs: Sequence[CandidateRun], score: float) -> str:
        """
        Return the results of each candidate's runs.

        :param store: where they are
        :param runs: of all candidates, those of one together
        :param score: mean return of an evaluation that the steps are counted to
        """
        rows = []
        for candidate, group in groupby(runs, lambda run: run.candidate):
            done = {run.seed: figures for run in group if (figures := store.load(run.settings())) is not None}
            steps = [point[0] for figures in done.values() if (point := first_reaching(figures, score)) is not None]
            reached = f"{median(steps) / 1000:.0f}k" if steps else "–"
            rows.append(
                [
                    candidate,
                    ", ".join(map(str, done)),
                    f"{reached} ({len(steps)} of {len(done)})",
                    mean_and_spread([self._mean_evaluation(figures) for figures in done.values()]),
                    ", ".join(f"{final(figures):.0f}" for figures in done.values()),
                ]
            )
        span = " to ".join(f"{steps:,}" for steps in self.shown)
        return markdown_table(
            ["candidate", "seeds", f"steps to {score:.0f}", f"return, {span} steps", "at the end"], rows
        )

    def _mean_evaluation(self, figures: dict[str, Any]) -> float:
        low, high = self.shown
        return fmean(fmean(point["returns"]) for point in figures["curve"] if low <= point["steps"] <= high)

    def main(
        self, argv: Sequence[str], description: str | None, conclusions: str, score: Callable[[], tuple[float, str]]
    ) -> None:
        """
        Do what is missing, those of the first stage first, then write the document.

        :param argv: the benchmark's arguments
        :param description: what it does
        :param conclusions: what the tables say
        :param score: gives the mean return that the steps are counted to, and says what it is
        """
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.name}", description=description)
        parser.add_argument("--processes", type=int, default=2, help="runs at once")
        parser.add_argument("--report", action="store_true", help="only write what is stored")
        parser.add_argument("--out", type=Path, default=Path(f"docs/{self.name}.md"))
        arguments = parser.parse_args(argv)
        store = Store(Path("benchmarks/results") / self.name, any_machine=True)
        if not arguments.report:
            for stage in self.stages:
                measure_missing(store, self.runs(stage), measure, arguments.processes)
        write_document(arguments.out, self.sections(store, conclusions, *score()))

    def sections(self, store: Store, conclusions: str, score: float, about_score: str) -> list[str]:
        """
        Return the document from what is stored.

        :param store: where the figures are
        :param conclusions: what they say
        :param score: mean return that the steps are counted to
        :param about_score: what that is
        """
        about = (
            f"A candidate lists only what differs from {self.base}. {about_score} The steps to it are those of the "
            "first evaluation, of 5 episodes, that reaches it: the median over the seeds that do. The last two columns "
            "are the mean return of the evaluations between those steps, ± standard deviation over seeds, and the "
            "final policy's over 20 episodes, seed by seed."
        )
        command = command_line(f"benchmarks.{self.name}", [])
        head = [f"# {self.task.split('-')[0]}'s hyperparameters", f"Written by `{command}`."]
        tables = []
        for stage in self.stages:
            every = stage.steps // stage.evaluations
            tables.append(f"## {stage.steps:,} steps, an evaluation every {every:,}")
            tables.append(self.table(store, self.runs(stage), score))
        return [*head, "\n".join(sorted(store.environments())), conclusions, about, *tables]
