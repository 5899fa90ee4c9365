"""
How good each solver's direction is: its improvement as a fraction of the exact natural gradient's at the same KL.

``python -m benchmarks.solver_quality`` trains the policies that are missing, measures what is missing, prints the
tables and writes them to ``docs/solver_quality.md``, with a picture.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.quality_measure import EXACT, MAIN, VARIANTS, Family, Run, measure
from benchmarks.quality_policies import LAG, ROWS, TASKS, Training, train
from benchmarks.report import Store, command_line, markdown_table, measure_missing, preamble, write_document

RESULTS = Path("benchmarks/results/solver_quality")
AGES = (0, 100_000, 500_000)
DAMPINGS = (1e-1, 1e-2, 1e-3, 1e-4)
SEEDS = (0, 1, 2)
WIDTH = 64
#: What ``--quick`` does instead of all this: the same on one small policy.
QUICK: dict[str, Any] = {
    "tasks": ["CartPole-v1"],
    "seeds": [0],
    "ages": [0, 12_288],
    "width": 16,
    "rows": 512,
    "out": Path("runs/solver_quality/quick.md"),
    "results": Path("runs/solver_quality/quick"),
}
#: K-FAC-preconditioned conjugate gradient is compared with plain conjugate gradient of so many products.
FEW, MANY = "kfac-cg 3", "cg 15"
ENOUGH = "kfac-cg 5"
LARGEST_DAMPING = 1e-2
ALLOWED_QUALITY = 0.9
#: How far the worst seed may be below the mean without being told.
SPREAD = 0.05


class Case(NamedTuple):
    """
    What a row of the tables is about.

    :param relative: whether the damping is relative to each layer's scale
    :param task: that the policies were trained on
    :param age: environment steps of training
    :param damping: λ, or ε if relative
    """

    relative: bool
    task: str
    age: int
    damping: float

    def __str__(self) -> str:
        return f"{self.task}, {self.age:,} steps, {'ε' if self.relative else 'λ'} = {self.damping:g}"


#: Qualities by case and column, one for each seed.
Qualities = dict[Case, dict[str, list[float]]]


def all_runs(
    tasks: Sequence[str] = TASKS,
    seeds: Sequence[int] = SEEDS,
    ages: Sequence[int] = AGES,
    width: int = WIDTH,
    rows: int = ROWS,
) -> list[Run]:
    """Return the runs, one seed after the other, by default those that the documents show."""
    return [Run(task, seed, age, width, rows, DAMPINGS) for seed, task, age in product(seeds, tasks, ages)]


def collect(store: Store, runs: Iterable[Run], figure: str = "quality") -> Qualities:
    """
    Read the scores of the runs that are done.

    :param store: where they are
    :param runs: which
    :param figure: "quality", or "damped_quality"
    """
    found: Qualities = {}
    for run in runs:
        for score in (store.load(run.settings()) or {"scores": []})["scores"]:
            case = Case(score["relative"], run.task, run.age, score["damping"])
            found.setdefault(case, {}).setdefault(score["solver"], []).append(score[figure])
    return found


def table(qualities: Qualities, relative: bool, families: Iterable[Family]) -> str:
    """
    Write a row for each case and a column for each solver: the mean over seeds, and the worst if it is far below.

    :param qualities: of all cases
    :param relative: whether to show relative damping, or absolute
    :param families: solvers to show
    """
    columns = [column for family in families for column in family.columns]
    rows = [
        [case.task, f"{case.age:,}", f"{case.damping:g}", *(_cell(of_case.get(column, [])) for column in columns)]
        for case, of_case in sorted(qualities.items(), key=lambda item: _place(item[0]))
        if case.relative == relative
    ]
    return markdown_table(["task", "steps", "ε" if relative else "λ", *columns], rows)


def _place(case: Case) -> tuple[int, int, float]:
    return TASKS.index(case.task), case.age, -case.damping


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean, worst = fmean(values), min(values)
    return f"{mean:.3f}" + (f" ({worst:.3f})" if mean - worst > SPREAD else "")


def few_products(qualities: Qualities, damped: Qualities) -> str:
    """
    Say where few preconditioned products are at least as good as many plain ones, and list each case where not.

    :param qualities: of all cases
    :param damped: the same in the damped metric
    """

    def is_asked(case: Case) -> bool:
        return case.age > 0 and case.damping <= LARGEST_DAMPING

    cases = sorted(filter(is_asked, qualities), key=lambda case: (case.relative, _place(case)))
    pairs = {case: (fmean(qualities[case][FEW]), fmean(qualities[case][MANY])) for case in cases}
    misses = [f"- miss: {case}: {few:.4f} against {many:.4f}" for case, (few, many) in pairs.items() if few < many]
    single = [pair for case in cases for pair in zip(qualities[case][FEW], qualities[case][MANY], strict=True)]
    in_damped = sum(fmean(damped[case][FEW]) >= fmean(damped[case][MANY]) for case in cases)
    lines = [
        f"On trained policies with damping of {LARGEST_DAMPING:g} or less, `{FEW}` is at least as good as `{MANY}` in "
        f"{len(cases) - len(misses)} of {len(cases)} cases by the mean over seeds, in "
        f"{sum(few >= many for few, many in single)} of {len(single)} by single policies, and in {in_damped} of "
        f"{len(cases)} by the mean in the damped metric."
    ]
    return "\n".join([*lines, *(["", *misses] if misses else [])])


def enough_products(qualities: Qualities) -> str:
    """Say on which tasks' oldest policies five preconditioned products are enough."""
    oldest = max(case.age for case in qualities)
    lines = []
    for case in sorted(qualities, key=lambda case: (case.relative, _place(case))):
        if case.age == oldest and case.damping == LARGEST_DAMPING:
            values = qualities[case][ENOUGH]
            verdict = "yes" if fmean(values) >= ALLOWED_QUALITY else "**no**"
            lines.append(f"- {case}: {verdict}, {fmean(values):.4f}, worst seed {min(values):.4f}")
    return "\n".join([f"Does `{ENOUGH}` reach a quality of {ALLOWED_QUALITY:g}?", "", *lines])


def two_metrics(qualities: Qualities, damped: Qualities) -> str:
    """Say how far the quality and that in the damped metric are apart."""
    gaps = [
        (abs(fmean(values) - fmean(damped[case][column])), str(case), column)
        for case, of_case in qualities.items()
        for column, values in of_case.items()
        if column != EXACT
    ]
    largest, case, column = max(gaps)
    best = max(
        (fmean(values), str(case), column) for case, each in qualities.items() for column, values in each.items()
    )
    return (
        "Quality and quality in the damped metric, gᵀx / √(xᵀ(F + λI)x) as a fraction of the exact direction's, "
        f"differ by {fmean(gap for gap, *_ in gaps):.3f} on average and by {largest:.3f} at most (`{column}`: {case}). "
        f"The highest quality is {best[0]:.3f} (`{best[2]}`: {best[1]})."
    )


def verdicts(store: Store, runs: Sequence[Run] | None = None) -> list[str]:
    """Return what the figures say, as Markdown paragraphs."""
    runs = all_runs() if runs is None else runs
    qualities, damped = collect(store, runs), collect(store, runs, "damped_quality")
    return [few_products(qualities, damped), enough_products(qualities), two_metrics(qualities, damped)]


def sections(store: Store, runs: Sequence[Run] | None = None) -> list[str]:
    """
    Return the tables, each with its explanation, as Markdown.

    :param store: where the scores are
    :param runs: which to show, by default all of the documents
    """
    runs = all_runs() if runs is None else runs
    qualities = collect(store, runs)
    about = (
        "Quality of a direction x: gᵀx / √(xᵀFx), its first-order improvement at a given small KL, as a fraction of "
        "that of the exact x = (F + λI)⁻¹g. 1 is as good as exact; a direction above 1 acts as if it were damped less. "
        "F is the undamped Fisher; everything is in float64. The number after a solver's name is how many products "
        "with F it makes. Cells are means over seeds, with the worst seed in parentheses if it is more than "
        f"{SPREAD:g} below."
    )
    relative = (
        "The same with damping relative to the mean eigenvalue of each layer's block. Each solver works in scaled "
        "coordinates, so `identity` is the gradient divided by those eigenvalues, and the exact direction differs."
    )
    variants = (
        f"`kfac-cg` with cheaper statistics. propagated: one random column of the outputs' Fisher; sampled: the scores "
        f"of the actions taken; stale: factors from {LAG} updates earlier; averaged: moving average of those and the "
        "current ones, with decay 0.9. An untrained policy has no earlier ones."
    )
    compared = (*(family for family in MAIN if family.name == "kfac-cg"), *VARIANTS)
    return [
        "\n\n".join([about, table(qualities, False, MAIN)]),
        "\n\n".join([relative, table(qualities, True, MAIN)]),
        "\n\n".join([variants, table(qualities, False, compared), table(qualities, True, compared)]),
    ]


def policies(store: Store, runs: Iterable[Run]) -> str:
    """Say what was measured on: the training returns and the numbers of parameters."""
    rows = []
    for run in runs:
        figures = store.load(run.settings())
        if figures is not None:
            reached = "–" if figures["return"] is None else f"{figures['return']:.1f}"
            rows.append([run.task, f"{run.seed}", f"{run.age:,}", f"{figures['parameters']:,}", reached])
    return markdown_table(["task", "seed", "steps", "acting parameters", "training return"], rows)


def plot(path: Path, store: Store, runs: Sequence[Run] | None = None) -> bool:
    """
    Draw quality over products on the oldest policies of each task, λ = 0.01: mean over seeds, and their range.

    :return: whether there is a picture; False without matplotlib
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    qualities = collect(store, all_runs() if runs is None else runs)
    oldest = max(case.age for case in qualities)
    shown = [c for c in qualities if not c.relative and c.age == oldest and c.damping == LARGEST_DAMPING]
    figure = Figure(figsize=(4.0 * len(shown), 3.6), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for ax, case in zip(axes, sorted(shown, key=_place), strict=True):
        _draw(ax, qualities[case])
        ax.set(title=case.task, xlabel="products with F", ylim=(0.0, 1.1))
    axes[0].set(ylabel=f"quality, λ = {LARGEST_DAMPING:g}")
    axes[0].legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True


def _draw(ax: Any, of_case: dict[str, list[float]]) -> None:
    """Draw a line for each family that takes products, and one across for K-FAC alone."""
    ax.axhline(1.0, color="0.8", linewidth=1.0)
    ax.axhline(fmean(of_case["kfac"]), color="C3", linestyle="--", label="kfac")
    for color, name in enumerate(("cg", "kfac-cg", "ekfac-cg")):
        family = next(family for family in MAIN if family.name == name)
        values = [of_case[column] for column in family.columns]
        ax.plot(family.products, [fmean(each) for each in values], marker="o", color=f"C{color}", label=name)
        ax.fill_between(
            family.products, [min(v) for v in values], [max(v) for v in values], color=f"C{color}", alpha=0.2
        )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solver_quality", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--ages", type=int, nargs="+", default=list(AGES), help="environment steps of training")
    parser.add_argument("--width", type=int, default=WIDTH, help="units in each hidden layer")
    parser.add_argument("--rows", type=int, default=ROWS, help="of a rollout to use")
    parser.add_argument("--processes", type=int, default=1, help="runs at once")
    parser.add_argument("--cache", type=Path, default=Path("runs/solver_quality"), help="where policies are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/solver_quality.md"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one small policy, in two minutes, not into the documents")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(**QUICK)
        arguments = parser.parse_args(argv)
    return arguments


def do_missing(arguments: argparse.Namespace, store: Store, runs: Sequence[Run]) -> None:
    """Train and measure what is missing, one seed after the other."""
    measure_kept: Callable[[Store, Run], None] = partial(measure, arguments.cache)
    for seed in arguments.seeds:
        missing = [run for run in runs if run.seed == seed and store.load(run.settings()) is None]
        tasks = dict.fromkeys(run.task for run in missing)
        trainings = [Training(task, seed, tuple(sorted(arguments.ages)), arguments.width) for task in tasks]
        measure_missing(Store(arguments.cache), trainings, train, arguments.processes)
        measure_missing(store, missing, measure_kept, arguments.processes)


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then print and write the document from what is stored."""
    arguments = parse(argv)
    runs = all_runs(arguments.tasks, arguments.seeds, arguments.ages, arguments.width, arguments.rows)
    store = Store(arguments.results)
    do_missing(arguments, store, runs)
    picture = arguments.out.with_suffix(".png")
    document = [
        preamble("Quality of the solvers' directions", command_line("benchmarks.solver_quality", argv)),
        f"{arguments.rows:,} rows of a rollout; hidden layers of {arguments.width} units; seeds {arguments.seeds}.",
        *sections(store, runs),
        "The policies, trained by NPG with damping 0.1 and an Adam critic (benchmarks/quality_policies.py):",
        policies(store, runs),
    ]
    if plot(picture, store, runs):
        document.append(f"![Quality over products with the Fisher]({picture.name})")
    document += ["Verdicts:", *verdicts(store, runs)]
    write_document(arguments.out, document)
    print(*document, f"Written to {arguments.out}", sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
