"""
The study behind BipedalWalker's hyperparameters in the zoo: which ones make it walk soon and keep it from falling.

``python -m benchmarks.bipedal_walker`` does the runs that are missing and writes ``docs/bipedal_walker.md``. If
interrupted, it resumes. The long runs are trained as ``python -m benchmarks.returns`` does.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, median
from typing import Any, ClassVar, TypeAlias

from benchmarks import returns
from benchmarks.report import Store, command_line, markdown_table, mean_and_spread, measure_missing, write_document
from benchmarks.returns_report import final, first_reaching
from benchmarks.tuning import log_std
from benchmarks.zoo_runs import ZooRun, measure

RESULTS = Path("benchmarks/results/bipedal_walker")
DOCUMENT = Path("docs/bipedal_walker.md")
TASK = "BipedalWalker-v3"
#: The steps over which the mean of the evaluations is shown.
SHOWN = (200_000, 400_000)

#: The zoo's for MuJoCo, in full, so that a change of ``zoo_configs/npg.yml`` does not affect the candidates.
BASE: dict[str, Any] = {
    "normalize": {"clip_obs": 3.0},
    "n_envs": 8,
    "policy": "MlpPolicy",
    "n_steps": 128,
    "target_kl": 0.01,
    "callback": "sb3_npg.callbacks.StaggerEpisodes",
}
_LESS_DAMPED: dict[str, Any] = {"damping": 0.1}
_WIDE = log_std(0.0)
_ROWS_2048: dict[str, Any] = {"n_steps": 256}
_LIKE_TRPO: dict[str, Any] = {**_WIDE, **_ROWS_2048, "normalize": True}
_ADAM: dict[str, Any] = {"critic_solver": "adam", "n_critic_updates": 20, "batch_size": 128}
#: What differs from ``BASE``, and the seeds, by the name in the tables.
Candidates: TypeAlias = dict[str, tuple[dict[str, Any], Sequence[int]]]
#: Those of the short runs.
CANDIDATES: Candidates = {
    "λ of F 0.1": (_LESS_DAMPED, (3, 4, 5)),
    "λ of F 0.1, σ 1": ({**_WIDE, **_LESS_DAMPED}, (3, 4, 5)),
    "λ of F 0.1, σ 1, δ 0.02": ({**_WIDE, **_LESS_DAMPED, "target_kl": 0.02}, (3, 4, 5)),
    "λ of F 0.1, σ 1, λ of GAE 0.98": ({**_WIDE, **_LESS_DAMPED, "gae_lambda": 0.98}, (3, 4, 5)),
    "λ of F 0.1, σ 1, γ 0.999": ({**_WIDE, **_LESS_DAMPED, "gamma": 0.999}, (3, 4, 5)),
    "λ of F 0.1, σ 1, observations to ±10": ({**_WIDE, **_LESS_DAMPED, "normalize": True}, (3, 4, 5)),
    "λ of F 0.1, δ 0.04, rollouts of 2,048": ({**_LESS_DAMPED, **_ROWS_2048, "target_kl": 0.04}, (3, 4, 5)),
    "σ 1": (_WIDE, (3, 4, 5)),
    "σ 1, δ 0.02": ({**_WIDE, "target_kl": 0.02}, (3, 4, 5)),
    "σ 1, δ 0.015": ({**_WIDE, "target_kl": 0.015}, (6, 7, 8, 9)),
    "σ 1, δ 0.015, a tenth of the critic's damping": (
        {**_WIDE, "target_kl": 0.015, "critic_solver_kwargs": {"damping": 1.0}},
        (6, 7, 8, 9),
    ),
    "σ 1, δ 0.015, λ of GAE 0.9": ({**_WIDE, "target_kl": 0.015, "gae_lambda": 0.9}, (6, 7)),
    "σ 1, δ 0.04, rollouts of 2,048, observations to ±10": ({**_LIKE_TRPO, "target_kl": 0.04}, (6, 7, 8, 9)),
    "the same, Adam 20 × 128": ({**_LIKE_TRPO, **_ADAM, "target_kl": 0.04}, (6, 7, 8, 9)),
}
#: Those that were run at full length.
FINALISTS: Candidates = {
    "λ of F 0.1": (_LESS_DAMPED, returns.SEEDS),
    "σ 1": (_WIDE, returns.SEEDS),
    "σ 1, δ falling from 0.02": ({**_WIDE, "target_kl": "lin_0.02"}, (*returns.SEEDS, 3, 4, 5)),
    "the same, λ of GAE 0.98": ({**_WIDE, "target_kl": "lin_0.02", "gae_lambda": 0.98}, (3, 4, 5)),
    "σ 1, δ falling from 0.05, rollouts of 2,048, observations to ±10": (
        {**_LIKE_TRPO, "target_kl": "lin_0.05"},
        returns.SEEDS,
    ),
    "the same, Adam 20 × 128": ({**_LIKE_TRPO, **_ADAM, "target_kl": "lin_0.05"}, returns.SEEDS),
}
#: What the tables say, in the words of those who read them.
CONCLUSIONS = """\
## What this says

- **Standing still.** Policies that begin with little noise, σ = 2/d = 0.5, tend to learn to stand: a policy that does
  not fall loses little, and most gaits that it tries end in a fall. Less damping does not change that. With σ = 1 every
  seed learns to walk.
- **Larger steps on more rows.** With rollouts of 2,048 rows and four times the KL, which is TRPO's step (its 0.01 is a
  mean over four action dimensions), the seeds differ less.
- **Adam's critic** is fitted closely, while the strongly damped Gauss–Newton critic is slow to learn the jump in the
  returns that a fall makes, at −100. With Adam the seeds reach TRPO's score sooner than with otherwise equal settings,
  and they differ least. Less damping of the Gauss–Newton critic does not help. Adam takes about a seventh more seconds.
- **A δ that falls to 0** keeps what was learnt: with σ = 1 and δ falling from 0.02, the final policies of six seeds
  return between 269 and 304; with a constant δ one of three still fell. With a λ of GAE of 0.98 as well, one of three
  ended at −122. The last candidate's final policies return less, but of the three seeds that both have, two reach the
  score sooner and the third as soon.

The zoo uses the last candidate. It was chosen on seeds 6 to 9 and then run on seeds 0 to 2, on which every earlier
candidate had taken too many steps. With "λ of F 0.1", which the zoo had before, the policies ended higher on two of
those three seeds, but on five of six seeds they stood still for 200,000 steps or more.
"""


@dataclass(frozen=True)
class Run(ZooRun):
    """
    One run of a candidate.

    :param candidate: key of ``candidates``
    """

    candidate: str
    steps: ClassVar[int]
    candidates: ClassVar[Candidates]

    @classmethod
    def all(cls) -> list["Run"]:
        """Return the runs of all candidates, those of one together."""
        return [cls("npg", TASK, seed, name) for name, (_, seeds) in cls.candidates.items() for seed in seeds]

    def block(self) -> dict[str, Any]:
        """Return the hyperparameters, in the zoo's grammar."""
        return {**BASE, "n_timesteps": self.steps, **self.candidates[self.candidate][0]}


class FirstLook(Run):
    """A short one."""

    steps = 400_000
    evaluations = 16
    candidates = CANDIDATES


class FinalRun(Run):
    """One as long as the zoo's."""

    steps = 1_000_000
    candidates = FINALISTS


def table(store: Store, runs: Sequence[Run], score: float) -> str:
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
                mean_and_spread([_mean_evaluation(figures) for figures in done.values()]),
                ", ".join(f"{final(figures):.0f}" for figures in done.values()),
            ]
        )
    shown = " to ".join(f"{steps:,}" for steps in SHOWN)
    return markdown_table(["candidate", "seeds", f"steps to {score:.0f}", f"return, {shown} steps", "at the end"], rows)


def _mean_evaluation(figures: dict[str, Any]) -> float:
    low, high = SHOWN
    return fmean(fmean(point["returns"]) for point in figures["curve"] if low <= point["steps"] <= high)


def _title(kind: type[Run]) -> str:
    return f"## {kind.steps:,} steps, an evaluation every {kind.steps // kind.evaluations:,}"


def write(store: Store, out: Path) -> None:
    """Write the document from what is stored."""
    others = Store(returns.RESULTS, any_machine=True)
    reference = [others.load(run.settings()) for run in returns.all_runs(["trpo"], [TASK])]
    score = fmean(final(run) for run in reference if run is not None)
    about = (
        f"A candidate lists only what differs from {BASE}, the zoo's settings for MuJoCo, with NPG's default σ = 2/d "
        f"and λ of F = 0.1 d. {score:.0f} is the mean return of TRPO's final policies with rl_zoo3's settings "
        "([results.md](results.md)). The steps to it are those of the first evaluation, of 5 episodes, that reaches "
        "it: the median over the seeds that do. The last two columns are the mean return of the evaluations between "
        "those steps, ± standard deviation over seeds, and the final policy's over 20 episodes, seed by seed."
    )
    sections = [
        "# BipedalWalker's hyperparameters",
        f"Written by `{command_line('benchmarks.bipedal_walker', [])}`.",
        "\n".join(sorted(store.environments())),
        CONCLUSIONS,
        about,
        _title(FirstLook),
        table(store, FirstLook.all(), score),
        _title(FinalRun),
        table(store, FinalRun.all(), score),
    ]
    write_document(out, sections)


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bipedal_walker", description=__doc__)
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument("--report", action="store_true", help="only write what is stored")
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    arguments = parser.parse_args(argv)
    store = Store(RESULTS, any_machine=True)
    if not arguments.report:
        measure_missing(store, FirstLook.all(), measure, arguments.processes)
        measure_missing(store, FinalRun.all(), measure, arguments.processes)
    write(store, arguments.out)


if __name__ == "__main__":
    main(sys.argv[1:])
