"""Tables of the study behind the one set of hyperparameters, from the stored runs."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Protocol

from benchmarks.report import Store, markdown_table, mean_and_spread

TASKS = ("HalfCheetah-v5", "Ant-v5", "Walker2d-v5", "Hopper-v5", "Swimmer-v5")
SEEDS = (0, 1, 2)


class TuningRun(Protocol):
    """A run of a candidate on a task."""

    @property
    def env_id(self) -> str:
        """The task."""
        ...

    @property
    def candidate(self) -> str:
        """The candidate's name in the tables."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        ...


#: What the tables say, in the words of those who read them.
CONCLUSIONS = """\
## What this says

Most cells are single seeds so far: leads, not results.

- **Noise as wide as the unit ball to begin with.** HalfCheetah's optimum near 1,700, on its back, is where policies
  go that begin at log σ = 0, with either critic; at log σ = −1 all run. Ant, of eight action dimensions, does better
  with still less, and Hopper, of three, and Walker2d, of six, may then stay standing where they are. Swimmer, of two,
  stays in a local optimum near 100 at log σ = −1 more often than not. Noise of norm one, log σ = −½ log d in d
  dimensions, has this order in it and is too much for Hopper: its deterministic policy, and Walker2d's, falls now and
  then to the end of a run, and one seed of Hopper ended so. The covariance of the unit ball, log σ = −½ log (d + 2), is
  what NPG begins with by default.
- **A smaller trust region.** δ = 0.01 nats with rollouts of 1,024 is about as good as 0.02 or better on every task;
  0.05 loses Walker2d. Half of it changes little.
- **Observations within three standard deviations.** 78 of Ant's 105 observations are contact forces, zero for most of
  the time; divided by their small deviation, a contact reaches `VecNormalize`'s limit of ten. Clipped at three, Ant
  returns more on the one seed that both have, clipped at two on both of two; HalfCheetah returns less at three on its
  one seed, as much at two. Clipped at two, Walker2d and Hopper take off later.
- **λ of GAE.** Ant wants a shorter one: 0.9 is worth as much there as the clipping. Hopper, whose steps are a sixth as
  long in time as Ant's, takes off later with it, and of Swimmer's two seeds one was still in the local optimum after
  400,000 steps. One λ for all stays at 0.95. A λ of the critic's targets apart from that of the advantages did not
  help: 0.97 for 0.9 on Ant and Hopper, 0.9 for 0.95 on Hopper (one seed each, not in these tables).
- **The critic, and Swimmer.** Gauss–Newton at a damping of 10 is as good as Adam or better on four tasks, in less
  time. On Swimmer, whose γ is 0.9999, it takes three things together to leave the local optimum and to stay away from
  it: the noise, less damping, and an intercept that takes up what all returns have in common before anything else is
  fitted (docs/design.md). So the default damping falls with 1 − γ above γ = 0.99. The same small damping left
  Walker2d standing after 500,000 steps with each of three seeds, which these tables do not hold.
- **Adam with rollouts of 2,048** and log σ = −0.75 reaches what TRPO is known to reach on Swimmer as well, and loses
  a third of HalfCheetah's return and some of Ant's, Walker2d's and Hopper's.
- **Measured with an older critic,** with one step whose intercept was damped like the rest, and without the rule for γ:
  all Gauss–Newton runs of 500,000 steps, and those of "log σ −1, δ 0.01" of a million.
"""
#: Figures by candidate and task.
Found = dict[tuple[str, str], list[dict[str, Any]]]
#: What a table shows of the runs: title, key and digits.
TABLES = (
    ("Return of the final policy, 20 deterministic episodes", "return", 0),
    ("Return while training, last tenth of the rollouts", "training_return", 0),
    ("Explained variance of rollouts that the critic has not seen, median of the second half", "explained_variance", 2),
    ("Seconds of the processor", "cpu_seconds", 0),
)


def sections(store: Store, runs: Sequence[TuningRun]) -> list[str]:
    """Write the tables of what is stored of the short runs."""
    return _tables(store.found(runs, _cell_of), TABLES)


def final_sections(store: Store, runs: Sequence[TuningRun]) -> list[str]:
    """Write the tables of what is stored of the long runs."""
    found = {
        cell: [{"return": fmean(run["returns"]), "cpu_seconds": run["seconds"]} for run in stored]
        for cell, stored in store.found(runs, _cell_of).items()
    }
    return _tables(found, (TABLES[0], TABLES[-1]))


def _cell_of(run: TuningRun) -> tuple[str, str]:
    return run.candidate, run.env_id


def _tables(found: Found, tables: Sequence[tuple[str, str, int]]) -> list[str]:
    candidates = list(dict.fromkeys(candidate for candidate, _ in found))
    text = []
    for title, figure, digits in tables:
        rows = [
            [candidate, *(_cell(found.get((candidate, task), []), figure, digits) for task in TASKS)]
            for candidate in candidates
        ]
        text += [f"### {title}", markdown_table(["candidate", *TASKS], rows)]
    return text


def _cell(runs: Sequence[dict[str, Any]], figure: str, digits: int) -> str:
    """Return mean ± standard deviation and the number of seeds, if it is not all."""
    number = "" if len(runs) in (0, len(SEEDS)) else f" ({len(runs)})"
    return mean_and_spread([run[figure] for run in runs], digits) + number
