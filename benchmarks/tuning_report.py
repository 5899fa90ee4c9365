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

Most cells are single seeds so far: leads, not results. What a seed does early decides most of its return: whether and
when Swimmer leaves its local optimum near 100 and Walker2d begins to walk.

- **Noise of one 1-norm to begin with.** HalfCheetah's optimum near 1,700, on its back, is where policies go that
  begin at log σ = 0, with either critic; at log σ = −1 all run. Ant, of eight action dimensions, does better with
  still less, and Hopper, of three, and Walker2d, of six, may then stay standing where they are. Swimmer, of two,
  stays in its optimum at log σ = −1 more often than not. Noise of one 2-norm has this order in it too; log σ = −½ log
  d and −½ log (d + 2) are such. Wide enough for Swimmer, it is too wide for six dimensions. σ = 2/d, at most 1, is
  what NPG begins with by default.
- **Environments set apart** (`sb3_npg.callbacks.StaggerEpisodes`). Environments that are all reset at once stay in
  step where only a time limit ends their episodes, as on HalfCheetah and Swimmer. With σ = 1 and set apart, all three
  seeds of Swimmer left their optimum within 100,000 steps and ended at 360, 359 and 354; in step, the first and the
  third ended at 297 and 151.
- **A smaller trust region.** δ = 0.01 nats with rollouts of 1,024 is about as good as 0.02 or better on every task;
  0.05 loses Walker2d. Half of it changes little.
- **Damping in proportion to the action's dimension.** λ = 0.1 d, which is TRPO's 0.1 for a KL that is a mean over
  dimensions, beside 0.1 for every task: Walker2d, Ant and Swimmer returned more, HalfCheetah and Hopper less, each by
  no more than seeds differ. On the first seed of Walker2d λ = 1 returned 6,272 and, with 0.9 for the λ of GAE, 4,308;
  of four runs of 300,000 steps (not kept) two with 0.6 were at 3,439 and 3,844, one each with 1.2 and 3 at 867 and
  2,563. On rollouts that they have not seen, the directions of young policies are worth more so
  ([held_out.md](held_out.md)).
- **A longer horizon.** With γ = 0.995 in the place of 0.99 Hopper returns more on each of its three seeds (3,254,
  3,640 and 3,392) and ends without a fall. Walker2d learns more slowly and loses a fifth, Ant loses a little,
  HalfCheetah is as good. With 0.9925 both lie between, and no policy falls at the end: each a little short of what
  TRPO is known to reach. One γ for all but Swimmer stays at 0.99.
- **A critic that remembers:** the regression on the last four rollouts, with a tenth of the damping or as it is, made
  no difference on HalfCheetah after 300,000 steps and Ant after 200,000 (up to two seeds each, not kept).
- **Observations within three standard deviations.** 78 of Ant's 105 observations are contact forces, zero for most of
  the time; divided by their small deviation, a contact reaches `VecNormalize`'s limit of ten. Clipped at three, Ant
  returns more on the one seed that both have, clipped at two on both of two; HalfCheetah returns less at three on its
  one seed, as much at two. Clipped at two, Walker2d and Hopper take off later.
- **λ of GAE falls with the action's dimension.** Ant, of eight, returned more at 0.9 than at 0.95 on each seed that has
  both, and Hopper, of three, more at 0.98 on each of three. HalfCheetah, of six, has nothing against 0.9; Walker2d, of
  six, returned less on most seeds at 0.9, at 0.925 (which is 1 − d/80) and at 0.9 with γ = 0.995, and was once at 1,213
  after 900,000 steps. Of the three seeds of Swimmer, of two, two were in their optimum after 350,000 with 0.9, two of
  four runs with 0.93; at 0.975 and 0.98 all leave it. A critic of a tenth of the damping with twice the products let
  all three leave it at 0.9 (356 after 300,000 steps, 328 and 188 after 250,000): what is short in λ is asked of the
  critic. 1 − d/120 was not enough for Ant. So λ is 0.98 up to three dimensions, 0.95 up to six and 0.9 above ("by
  d"). A λ of the critic's targets apart from that of the advantages did not help: 0.97 for 0.9 on Ant and Hopper, 0.9
  for 0.95 on Hopper (one seed each). Figures of this point that no table has are of runs that were not kept.
- **Humanoid**, of 17, after a million steps, a tenth of what the zoo gives it, with one seed: 817 with a λ of GAE of
  0.9 and 739 with 0.95; with 0.9 and a δ of 0.03 and 0.06, 811 and 1,093. A step without a fall gives 5: it does not
  walk yet.
- **Sixteen environments of 64 steps,** whose rows have less in common, in the place of eight of 128: no difference
  beyond that of seeds.
- **An entropy bonus.** σ of Ant falls from 0.24 to 0.14, and a step of a given KL with it. A bonus of 0.005 (advantages
  have standard deviation one) holds it at 0.19, and one of 0.003 that of Walker2d at 0.28: no difference beyond that of
  seeds. With 0.01 σ rises to 0.6 and Walker2d falls.
- **The average of the last policies,** exponential over 50 rollouts, in the place of the last: steadier where γ is
  0.9925 (Walker2d 4,297 for 4,283 and 4,755 for 4,745; Ant at λ = 0.9 4,278 for 4,184, its 20 episodes within 94
  instead of 608), no better where it is 0.99 (HalfCheetah 6,481, 7,111 and 5,707 for 6,529, 7,316 and 5,574; Walker2d
  3,190 and 5,040 for 3,797 and 5,076). Policies that lie between two gaits are neither (not kept).
- **A δ that falls to 0** makes the end steady: Hopper's 20 episodes lay within a few units of each other, and two
  runs of Walker2d (from 0.02, not kept) rose without a fall to 4,722 and 4,533. Ant, which still learns at the end,
  returned 2,334 and, with λ = 0.9, 2,410 (one seed each, not kept), and Swimmer's first seed was in its optimum after
  450,000 steps (not kept). Falling to 0 in the last three tenths alone, from 0.01, it left Hopper's first seed steady
  at 3,323 and the second one in a bad place at 2,301 (not kept).
- **Momentum (SPRING), and the last four rollouts in every step,** weighted by their importance: a seed of Ant had
  2,059 after 800,000 steps with momentum 0.9, and 562 after 550,000 with the old rollouts. At a fixed δ both are
  longer steps along the same noise.
- **The critic, and Swimmer.** Gauss–Newton at a damping of 10 is as good as Adam or better on four tasks, in less
  time. On Swimmer, whose γ is 0.9999, it takes three things together to leave the local optimum and to stay away from
  it: the noise, less damping, and an intercept that takes up what all returns have in common before anything else is
  fitted (docs/design.md). So the default damping falls with 1 − γ above γ = 0.99. The same small damping left
  Walker2d standing after 500,000 steps with each of three seeds, which these tables do not hold.
- **Adam with rollouts of 2,048** and log σ = −0.75 reaches what TRPO is known to reach on Swimmer as well, and loses
  a third of HalfCheetah's return and some of Ant's, Walker2d's and Hopper's.
- **Measured with an older critic,** with one step whose intercept was damped like the rest, and without the rule for
  γ: all Gauss–Newton runs of 500,000 steps, and those of "log σ −1, δ 0.01" of a million.
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
