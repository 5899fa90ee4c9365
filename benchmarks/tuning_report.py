"""Tables of the study behind the one set of hyperparameters, from the stored runs."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Protocol

from benchmarks.report import Store, markdown_table, mean_and_spread

TASKS = ("HalfCheetah-v5", "Ant-v5", "Walker2d-v5", "Hopper-v5", "Swimmer-v5", "Humanoid-v5")
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

Most cells are from a single seed so far: hints, not results. Most of a seed's return is decided early: by whether and
when Swimmer leaves its local optimum near 100 and Walker2d begins to walk. Since these runs the critic measures its
last layer in units of the returns, and takes fewer further steps.

- **Initial noise with the same 1-norm for every d.** On HalfCheetah policies that begin at log σ = 0 end in the optimum
  near 1,700, on the back, with either critic (but not at δ = 0.05: 3,436); at log σ = −1 all run. Ant, with eight
  action dimensions, does better with still less noise, with which Hopper, with three, and Walker2d, with six, may
  remain standing. Swimmer, with two, stays in its local optimum at log σ = −1 more often than not. Noise with the same
  2-norm, log σ = −½ log d or −½ log (d + 2), falls with d too; wide enough for most seeds of Swimmer, it left some
  seeds of Walker2d behind. NPG begins by default with σ = 2/d, at most 1.
- **Staggered environments** (`sb3_npg.callbacks.StaggerEpisodes`). Environments that are all reset at once stay in step
  if only a time limit ends their episodes, as on HalfCheetah and Swimmer. With σ = 1 and staggered, all three seeds of
  Swimmer left their local optimum within 100,000 steps and ended at 360, 359 and 354; in step, the first and the third
  ended at 297 and 151.
- **A smaller trust region.** With rollouts of 1,024 rows and the Gauss–Newton critic δ = 0.01 nats is about as good as
  0.02 or better on every task; 0.05 loses Walker2d. Half of 0.01 changes little on Ant and costs Hopper a fifth (one
  seed each).
- **Damping in proportion to the action's dimension.** λ = 0.1 d corresponds to TRPO's 0.1 for a KL that is a mean over
  dimensions. Compared with 0.1 for every task, Walker2d, Ant and Swimmer returned more, HalfCheetah and Hopper less,
  each by no more than seeds differ. On the first seed of Walker2d λ = 1 returned 6,272 and, with a λ of GAE of 0.9,
  4,308; of four runs of 300,000 steps (not kept) two with 0.6 were at 3,439 and 3,844, one each with 1.2 and 3 at 867
  and 2,563. On rollouts that they were not computed from, the directions of young policies are worth more with it
  ([held_out.md](held_out.md)).
- **A longer horizon.** With γ = 0.995 instead of 0.99, at a λ of GAE of 0.95, Hopper returns more on each of its three
  seeds (3,254, 3,640 and 3,392) and ends without a fall. Walker2d learns more slowly and loses a fifth, Ant loses a
  little, HalfCheetah is as good. With 0.9925 Hopper and Walker2d lie between and no policy falls at the end, but each
  is a little short of what TRPO is known to reach. γ stays at 0.99 for all but Swimmer.
- **A critic that remembers.** Fitting it to the last four rollouts, with a tenth of its damping or all of it, made no
  difference on HalfCheetah after 300,000 steps and on Ant after 200,000 (up to two seeds each, not kept).
- **Observations clipped at three standard deviations.** 78 of Ant's 105 observations are contact forces, zero most of
  the time; divided by their small deviation, a contact reaches `VecNormalize`'s limit of ten. Ant returns more with
  clipping at three on the one seed that both have, and at two on both of two; HalfCheetah returns less at three on its
  one seed, and as much at two. Clipped at two, Walker2d and Hopper begin to improve later.
- **λ of GAE falls with the action's dimension.** Ant, with eight, returned more at 0.9 than at 0.95 on each seed that
  has both, and Hopper, with three, more at 0.98 on each of three. HalfCheetah, with six, does no worse at 0.9.
  Walker2d, with six, returned less on most seeds at 0.9, at 0.925 (which is 1 − d/80) and at 0.9 with γ = 0.995, and
  was once at 1,213 after 900,000 steps. Of the three seeds of Swimmer, with two, two were in their local optimum after
  350,000 steps at 0.9; so were two of four runs at 0.93; at 0.975 and 0.98 all leave it. With a tenth of the critic's
  damping and twice the products all three left it at 0.9 too (356 after 300,000 steps, 328 and 188 after 250,000): a
  smaller λ asks more of the critic. 1 − d/120 was not enough for Ant. So λ is 0.98 up to three dimensions, 0.95 up to
  six and 0.9 above ("by d"). A λ for the critic's targets other than that of the advantages did not help: 0.97 instead
  of 0.9 on Ant and Hopper, 0.9 instead of 0.95 on Hopper (one seed each). Figures of this point that are in no table
  are from runs that were not kept.
- **Humanoid**, with 17 dimensions, was run for a million steps, a tenth of what the zoo gives it, with one seed: it is
  at 817 with a λ of GAE of 0.9 and at 739 with 0.95; with 0.9 and a δ of 0.03 and 0.06 at 811 and 1,093. A step without
  a fall gives 5: it does not walk yet.
- **Sixteen environments of 64 steps** instead of eight of 128, for rows that have less in common: no difference beyond
  that between seeds.
- **An entropy bonus.** Ant's σ falls from 0.24 to 0.14, and with it the length of a step of a given KL. A bonus of
  0.005 (advantages have standard deviation one) keeps it at 0.19, and one of 0.003 keeps Walker2d's at 0.28: no
  difference in the returns beyond that between seeds. With 0.01 σ rises to 0.6 and Walker2d falls.
- **The average of the last policies,** exponential over 50 rollouts, instead of the last one: steadier with γ = 0.9925
  (Walker2d 4,297 against 4,283 and 4,755 against 4,745; Ant at λ = 0.9 4,278 against 4,184, with a standard deviation
  over its 20 episodes of 94 instead of 608), no better with 0.99 (HalfCheetah 6,481, 7,111 and 5,707 against 6,529,
  7,316 and 5,574; Walker2d 3,190 and 5,040 against 3,797 and 5,076). A policy halfway between two gaits has neither
  (not kept).
- **A δ that falls to 0** makes the end steady: falling from 0.015, Hopper's 20 episodes were within a few units of each
  other, and two runs of Walker2d (from 0.02, not kept) rose without a fall to 4,722 and 4,533. But Ant, which still
  learns at the end, returned 2,334 and, with λ = 0.9, 2,410 (one seed each, not kept), and Swimmer's first seed was in
  its local optimum after 450,000 steps (not kept). From 0.02 with a λ of GAE of 0.93 Hopper ended at 456 and Swimmer's
  second seed at 93. Constant at 0.01 and falling to 0 only in the last three tenths, it left Hopper's first seed steady
  at 3,323 and the second one badly off at 2,301 (not kept).
- **Momentum (SPRING), and the last four rollouts in every step,** weighted by their importance: one seed of Ant was at
  2,059 after 800,000 steps with momentum 0.9, and at 562 after 550,000 with the old rollouts (in no table). At a fixed
  δ both amount to longer steps along the same noise.
- **The critic, and Swimmer.** Gauss–Newton at a damping of 10 is about as good as Adam or better on four tasks, mostly
  in less time; only on Walker2d at δ = 0.02 and 0.05 is it behind. On Swimmer, with γ = 0.9999, leaving the local
  optimum and staying away from it takes three things together: the noise, less damping, and an intercept that takes up
  what all returns have in common before anything else is fitted (docs/design.md). So the default damping falls with 1 −
  γ above γ = 0.99. The same small damping left Walker2d standing after 500,000 steps on each of three seeds (in no
  table).
- **Adam with rollouts of 2,048** and log σ = −0.75 also reaches what TRPO is known to reach on Swimmer. On its one seed
  it returns a third less than "log σ −1, δ 0.01" on HalfCheetah, and somewhat less on Ant, Walker2d and Hopper.
- **Measured with an older critic,** which took one step, damped its intercept like the rest and had no rule for γ: all
  Gauss–Newton runs of 500,000 steps, and those of "log σ −1, δ 0.01" of a million.
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
