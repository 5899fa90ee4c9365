"""Tables and pictures of the returns, from the stored evaluations."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from rliable import library, metrics

from benchmarks.environments import EVALUATION_EPISODES
from benchmarks.pace import STANDARD
from benchmarks.report import markdown_table, mean_and_spread
from benchmarks.zoo_runs import EPISODES, EVALUATIONS

mpl.use("Agg")
from matplotlib import pyplot as plt

#: Figures of the runs by algorithm and task.
Found = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
NAMES = {"npg": "NPG", "trpo": "TRPO", "ppo": "PPO"}
COLOURS = {"npg": "C3", "trpo": "C0", "ppo": "C2"}
#: What counts as 0 and as 1 in the aggregate: an untrained policy, and a good one. Pendulum's and Acrobot's
#: scores are negative; those of MuJoCo are what natural gradients have been known to reach in a million steps.
SCALE = {
    "CartPole-v1": (20.0, 500.0),
    "Acrobot-v1": (-500.0, -75.0),
    "Pendulum-v1": (-1250.0, -150.0),
    "MountainCarContinuous-v0": (0.0, 94.0),
    "LunarLander-v3": (-200.0, 250.0),
    "HalfCheetah-v5": (-280.0, 6000.0),
    "Hopper-v5": (20.0, 3600.0),
    "Walker2d-v5": (0.0, 5200.0),
    "Ant-v5": (-60.0, 5000.0),
    "Swimmer-v5": (0.0, 365.0),
    "BipedalWalker-v3": (-100.0, 300.0),
}
#: What the tables say, in the words of those who read them.
CONCLUSIONS = """\
## What this says

Over the eleven tasks the interquartile mean of NPG's scaled returns is 0.990, TRPO's is 0.863 and PPO's 0.852; NPG's
interval lies above theirs. NPG has the highest mean return on eight tasks, on CartPole together with PPO. On Acrobot,
Pendulum, LunarLander and BipedalWalker all that learn are close. A run of NPG takes 0.2 to 0.5 of TRPO's seconds, and
0.03 to 0.8 of PPO's. It reaches TRPO's final score in three fifths of TRPO's seconds or less on every task. rl_zoo3's
hyperparameters for TRPO and PPO are for version 4 of the MuJoCo tasks: Ant-v5 observes 78 contact forces that version 4
leaves out, and on Hopper-v5 two of PPO's policies stand still and the third falls. NPG's weak points: on Ant and Hopper
the policy falls now and then, and BipedalWalker needs hyperparameters of its own
([bipedal_walker.md](bipedal_walker.md)): with those of MuJoCo two seeds of three stood still. How NPG's λ of GAE
depends on the number of action dimensions was chosen on the five MuJoCo tasks and these same seeds
([tuning.md](tuning.md)), when its critic takes a second step in shorter runs of Hopper and Walker2d with these and
three more seeds ([critics.md](critics.md)), and LunarLander's rollout length and falling δ with these seeds, its
normalisation with others ([lunar_lander.md](lunar_lander.md)).

**Measured three times.** What was chosen on some seeds is flattered by the runs that it was chosen from. Those runs
gave an interquartile mean of 0.986. Measured a second time, after changes that make other random numbers of every run
and with a critic whose last layer is in units of the returns, it was 0.953: HalfCheetah 6,024, Hopper 2,707, Walker2d
4,375, Ant 3,885, Swimmer 340, LunarLander 203, BipedalWalker 256. BipedalWalker, whose critic is Adam's, had 266
before: so much do random numbers alone. The third time, here, the critic takes fewer further steps, and LunarLander is
normalised; BipedalWalker was not run again. (Figures that are in no table were not kept.)

LunarLander runs for PPO's budget in rl_zoo3, five times TRPO's, and needs long rollouts and a δ that falls. This was
found without normalisation, and before the critic had units. With a constant δ = 0.02 and rollouts of 4,096 rows seed 0
ended at 277 and seed 1 at 152, which moved between -96 and 245 all the way. With a falling δ the three seeds ended at
171, 211 and 265, and with rollouts of 8,192 rows as well at 274, 271 and 213. After 200,000 steps with a constant δ
they were at 237, 168 and 11, TRPO at -6, -140 and 109, PPO at -202, -142 and -174; with 1,024 rows NPG was at 1, -13
and 200. With continuous actions seed 0 ended at 136 with 1,024 rows, at 158 with 4,096, and with 8,192 at 263, where it
stayed from 125,000 steps on.

Of the tasks that only NPG has run, all before the critic had units, the two pendulums balance to the end of nearly
every episode. With the constant δ of the other MuJoCo tasks the double pendulum balances after 50,000 steps and has
unlearnt it after a million: 1,516, 2,882 and 148 (not kept). Once nothing goes wrong any more, advantages are noise,
but every step still fills the trust region; hence a δ that falls to 0 within 300,000 steps. The single pendulum does
better with a constant δ: with a falling one, one seed of three was at 76 (not kept).
"""
README_MARKS = ("<!-- written by python -m benchmarks.returns -->", "<!-- end -->")
BOOTSTRAP_SAMPLES = 2000


def final(run: Mapping[str, Any]) -> float:
    """Return the mean return of the final policy."""
    return fmean(run["returns"])


def final_table(found: Found, tasks: Sequence[str], algorithms: Sequence[str]) -> str:
    """Return mean ± standard deviation over seeds of the final policies' returns, and the single seeds."""
    rows = []
    for task in tasks:
        by_algo = {algo: [final(run) for run in found.get((algo, task), [])] for algo in algorithms}
        best = max((fmean(values) for values in by_algo.values() if values), default=None)
        cells = []
        for values in by_algo.values():
            text = mean_and_spread(values)
            cells.append(f"**{text}**" if values and fmean(values) == best else text)
        rows.append([task, *cells])
    return markdown_table(["task", *(NAMES[algo] for algo in algorithms)], rows)


def seeds_table(found: Found, tasks: Sequence[str], algorithms: Sequence[str]) -> str:
    """Return the final return of each seed."""
    rows = [
        [task, *(", ".join(f"{final(run):.0f}" for run in found.get((algo, task), [])) or "–" for algo in algorithms)]
        for task in tasks
    ]
    return markdown_table(["task", *(NAMES[algo] for algo in algorithms)], rows)


def alone_table(found: Found, tasks: Mapping[str, int]) -> str:
    """Return steps and final returns of tasks that only NPG runs."""
    rows = []
    for task, steps in tasks.items():
        values = [final(run) for run in found.get(("npg", task), [])]
        each = ", ".join(f"{value:.4g}" for value in values) or "–"
        rows.append([task, f"{steps:,}", f"{fmean(values):.4g}" if values else "–", each])
    return markdown_table(["task", "steps", "NPG", "by seed"], rows)


def complete_tasks(found: Found, tasks: Sequence[str], algorithms: Sequence[str], seeds: int) -> list[str]:
    """Return the tasks that every algorithm has run with every seed."""
    return [task for task in tasks if all(len(found.get((algo, task), [])) == seeds for algo in algorithms)]


def scores(found: Found, tasks: Sequence[str], algo: str) -> NDArray[np.float64]:
    """Return the scaled final returns, shape (seeds, tasks)."""

    def scaled(task: str) -> list[float]:
        low, high = SCALE[task]
        return [(final(run) - low) / (high - low) for run in found[algo, task]]

    return np.array([scaled(task) for task in tasks]).T


def aggregates(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return interquartile mean, mean and median of scaled returns, as rliable defines them."""
    return np.array([metrics.aggregate_iqm(values), metrics.aggregate_mean(values), metrics.aggregate_median(values)])


def aggregate_table(found: Found, tasks: Sequence[str], algorithms: Sequence[str]) -> str:
    """Return the aggregates over tasks and seeds, with stratified bootstrap intervals of 95 %."""
    values = {NAMES[algo]: scores(found, tasks, algo) for algo in algorithms}
    np.random.seed(0)  # rliable draws by the global generator, whatever it is given
    points, intervals = library.get_interval_estimates(values, aggregates, reps=BOOTSTRAP_SAMPLES)
    rows = [
        [name, *(f"{points[name][i]:.3f} ({intervals[name][0, i]:.3f}–{intervals[name][1, i]:.3f})" for i in range(3))]
        for name in values
    ]
    return markdown_table(["algorithm", "interquartile mean", "mean", "median"], rows)


#: What a reader of the headline must know, and ``docs/results.md`` tells at length.
CAVEATS = """\
Read this with care: three seeds are few. TRPO and PPO use rl_zoo3's hyperparameters, whose MuJoCo blocks are for
version 4: Ant-v5 observes 78 contact forces that version 4 leaves out, and on Hopper-v5 PPO's policies stand still or
fall. NPG's were chosen on the five MuJoCo tasks and on LunarLander with these same seeds, and on BipedalWalker with
others; then they were measured again, and returned less than in the runs that they had been chosen from
([more](docs/results.md))."""


def headline(found: Found, tasks: Sequence[str], algorithms: Sequence[str], picture: str) -> str:
    """
    Return what stands in README.md.

    :param found: figures by algorithm and task
    :param tasks: those that every algorithm has run with every seed
    :param algorithms: to compare
    :param picture: path of the learning curves
    """
    return "\n\n".join(
        [
            f"Return of the final policy over {EVALUATION_EPISODES} deterministic episodes, mean ± standard deviation "
            "over three seeds:",
            final_table(found, tasks, algorithms),
            CAVEATS,
            "All of these tasks together, scaled so that 0 is an untrained policy and 1 a good one, with 95 % "
            "bootstrap intervals:",
            aggregate_table(found, tasks, algorithms),
            f"![Learning curves over seconds of one processor]({picture})",
        ]
    )


def standard_seconds(run: Mapping[str, Any]) -> list[float]:
    """Return the seconds of training up to each evaluation, as a machine of the standard pace would take them."""
    raw = [point["seconds"] for point in run["curve"]]
    paces = [point["pace"] for point in run["curve"]]
    return list(np.cumsum(np.diff(raw, prepend=0.0) * STANDARD / np.array(paces)))


def first_reaching(run: Mapping[str, Any], score: float) -> tuple[int, float] | None:
    """Return steps and standard seconds of the first evaluation whose mean return is at least the score."""
    points = zip(run["curve"], standard_seconds(run), strict=True)
    return next(((point["steps"], seconds) for point, seconds in points if fmean(point["returns"]) >= score), None)


def to_score_table(found: Found, tasks: Sequence[str], algorithms: Sequence[str], reference: str = "trpo") -> str:
    """Return steps and seconds to the reference's final score, and the seconds that its whole runs take."""
    rows = []
    for task in tasks:
        runs = found.get((reference, task), [])
        if not runs:
            continue
        score = fmean(final(run) for run in runs)
        rows.append(
            [
                task,
                f"{score:.0f}",
                f"{median(_whole(runs)):.0f}",
                *(_reached(found, task, algo, score) for algo in algorithms),
            ]
        )
    header = ["task", f"{NAMES[reference]}'s final score", "its seconds", *(NAMES[algo] for algo in algorithms)]
    return markdown_table(header, rows)


def _reached(found: Found, task: str, algo: str, score: float) -> str:
    runs = found.get((algo, task), [])
    points = [point for run in runs if (point := first_reaching(run, score)) is not None]
    if not points:
        return "–"
    steps, seconds = (median(values) for values in zip(*points, strict=True))
    return f"{seconds:.0f} s, {steps / 1000:.0f}k ({len(points)} of {len(runs)})"


def _whole(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    return [standard_seconds(run)[-1] for run in runs]


def seconds_table(found: Found, tasks: Sequence[str], algorithms: Sequence[str]) -> str:
    """Return the seconds of whole runs."""
    rows = [[task, *(mean_and_spread(_whole(found.get((algo, task), []))) for algo in algorithms)] for task in tasks]
    return markdown_table(["task", *(NAMES[algo] for algo in algorithms)], rows)


def plot_curves(path: Path, found: Found, tasks: Sequence[str], algorithms: Sequence[str], over: str) -> None:
    """
    Draw mean and range over seeds of the evaluations of every task.

    :param path: of the picture
    :param over: "steps" or "seconds"
    """
    columns = 4
    rows = -(-len(tasks) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        for algo in algorithms:
            runs = found.get((algo, task), [])
            if runs:
                x = np.mean([_along(run, over) for run in runs], axis=0)
                y = np.array([[fmean(point["returns"]) for point in run["curve"]] for run in runs])
                axis.plot(x, y.mean(0), color=COLOURS[algo], label=NAMES[algo], linewidth=1.5)
                axis.fill_between(x, y.min(0), y.max(0), color=COLOURS[algo], alpha=0.15, linewidth=0)
        axis.set_title(task, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.set_xlabel("environment steps" if over == "steps" else "seconds of one processor", fontsize=8)
    drawn = next((axis for axis in axes.flat if axis.lines), None)
    if drawn is not None:
        drawn.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _along(run: Mapping[str, Any], over: str) -> list[float]:
    return standard_seconds(run) if over == "seconds" else [point["steps"] for point in run["curve"]]


def how_it_was_done() -> str:
    """Tell how the runs were made."""
    return (
        "Hyperparameters: NPG's from `zoo_configs/npg.yml`, TRPO's and PPO's from rl_zoo3 (its MuJoCo blocks are for "
        "version 4; version 5 gets the same), each run as `python -m rl_zoo3.train` does, on one thread. All "
        "algorithms run for the same number of steps. Returns are of deterministic policies on episodes that training "
        f"does not see: {EVALUATION_EPISODES} of the final policy, {EPISODES} at each of {EVALUATIONS} points on the "
        "way. Seconds are the process's own processor time, without evaluations. As a shared machine is faster at one "
        "hour than at another, a fixed piece of work is timed at every evaluation, and the seconds are scaled so that "
        f"it takes {STANDARD} s (`benchmarks/pace.py`)."
    )


def write_readme(path: Path, text: str) -> None:
    """Put the text between the marks of a file."""
    begin, end = README_MARKS
    page = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"{path} has no place for the table: {begin} ... {end}")
    path.write_text(pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", page), encoding="utf-8")
