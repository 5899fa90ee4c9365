"""Tables and picture of the speed comparison, from the figures of its iterations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

from benchmarks.memory import MIB
from benchmarks.report import markdown_table, preamble
from benchmarks.speed_peers import CG, DAMPING, REQUIREMENTS, TARGET_KL

if TYPE_CHECKING:
    from benchmarks.update_speed import Group

mpl.use("Agg")

Iterations = Sequence[Mapping[str, float]]
Found = Mapping["Group", Mapping[str, Iterations]]
PARTS = ("gradient", "solve", "line search", "critic")

#: What the tables say, in the words of those who read them.
CONCLUSIONS = """\
## What this says

- **An update of NPG takes about a third of TRPO's and SBX's time, and a tenth of PPO's,** at the standard size, and its
  policy step alone less than a third of TRPO's. These are the first rollouts of a task that is not normalised: the
  critic's first step is shortened there, and it takes several. *What is left* compares its parts with the time of their
  matrix products alone. Products with the Fisher run at nearly half the rate of plain matrix products, whose time alone
  is a sixth of that of TRPO's product: on a processor that multiplies matrices faster, relative to all else, the
  ratios grow. The rest is narrow matrices (17 inputs, 6 outputs), which run at a fraction of that rate, passes over the
  activations, and tanh, which takes as long here as two products of 64 × 64. On images an update takes a third of
  TRPO's time by conjugate gradient, a fifth by K-FAC; PPO's is between the two.
- **A rollout takes NPG about half as long again as the simulator alone** with eight environments. With one, SB3's loop
  and its environments' wrappers are called eight times as often and take longer than the simulator.
- **One thread.** A second one does not make an update of this size faster, and it makes acting slower.
- **The cost grows no faster than the rollout** for all solvers but `woodbury`, and more slowly where the critic takes
  fewer steps on more rows. With the width it grows with an exponent below 2, though the parameters grow
  with the square.
- **The Gauss–Newton critic explains less than Adam's after few rollouts** if observations and rewards are not
  normalised, as here. Over whole trainings with `VecNormalize` the two are close: [critics.md](critics.md).
- tianshou's update is cheap because its critic takes only twenty steps, each on the whole rollout; most of its time
  goes into collecting. A2C takes a single gradient step per rollout.
- On a GPU: [gpu.md](gpu.md).
"""


def sections(found: Found, products: Mapping[str, Any], command: str, picture: str) -> list[str]:
    """
    Write the document from the figures.

    :param found: by group, the iterations of each algorithm
    :param products: what :func:`benchmarks.speed_products.measure` returned
    :param command: that repeats the benchmark
    :param picture: file of the picture
    :return: Markdown
    """
    tables = [
        _about(command),
        CONCLUSIONS,
        *_whole(found),
        *_parts(found),
        *_profile(found, products),
        *(_products(products) if products else []),
        *_growth("rows", "## Growth with the rollout", found),
        *_growth("width", "## Growth with the network", found),
        *_images_and_memory(found),
    ]
    return [*tables, f"![seconds of an update over rows and widths]({picture})"]


def _about(command: str) -> str:
    elsewhere = "\n".join(f"- {home}: {', '.join(packages)}" for home, packages in REQUIREMENTS.items())
    return (
        f"{preamble('What an update costs', command)}\n{elsewhere}\n\n"
        "HalfCheetah-v5 unless said otherwise: 17 observations, 6 actions; MLP of two hidden layers, 64 units each; "
        "one thread; each algorithm in a process of its own, taking turns iteration by iteration. Medians, with the "
        f"quartiles in brackets. NPG and TRPO: δ = {TARGET_KL} nats and λ = {DAMPING} of the same KL, 10 conjugate "
        "gradient steps. All else is each library's default, except A2C's rollout, as long as the others'. *of NPG*: "
        "the figure divided by that of the first line. *outside*: seconds of a rollout that are not the simulator's, "
        "divided by the simulator's. EV: explained variance of the critic in the second half of the iterations."
    )


def _whole(found: Found) -> list[str]:
    parts = []
    for group, figures in found.items():
        if group.title.startswith(("1 environment", "8 environments")):
            parts += [f"## {group.title}, {group.size.rows:,} rows", _whole_table(group, figures)]
    return parts


def _parts(found: Found) -> list[str]:
    solvers = _titled("solvers", found)
    return ["## Parts of an update, in milliseconds", _parts_table(solvers)] if solvers else []


def _profile(found: Found, products: Mapping[str, Any]) -> list[str]:
    """Hold the parts of NPG's update against the arithmetic that they cannot do without."""
    solvers = _titled("solvers", found)
    if not solvers or not products:
        return []
    iterations = solvers[CG.name]
    medians = {part: median(_column(iterations, part)) for part in (*PARTS, "train")}
    floors = {part: products["floors"][part] for part in PARTS}
    floors["train"] = sum(floors.values())
    rows = [
        [
            f"`{part}()`" if part == "train" else part,
            f"{1e3 * m:.1f}",
            f"{1e3 * floors[part]:.1f}",
            f"{floors[part] / m:.0%}",
        ]
        for part, m in medians.items()
    ]
    about = (
        f"{CG.name}. The floor is the time of a part's matrix products at the {products['rate'] / 1e9:.0f} GFLOP/s "
        "that this machine reaches for their shape, with one trial of the line search and as many products with JᵀJ in "
        "the critic's solve as with F in the policy's; activations, distributions and Python come on top."
    )
    return ["## What is left", about, markdown_table(["part", "ms", "floor, ms", "share"], rows)]


def _images_and_memory(found: Found) -> list[str]:
    parts = []
    if images := _titled("images", found):
        about = "512 rows of 36 × 36 images from 8 environments that take next to no time; NatureCNN, 3 actions."
        parts += ["## Images", about, _images_table(images)]
    if solvers := _titled("solvers", found):
        parts += ["## Peak memory of the process, standard size", _memory_table(solvers)]
    return parts


def _titled(title: str, found: Found) -> Mapping[str, Iterations]:
    return next((figures for group, figures in found.items() if group.title == title), {})


def _whole_table(group: "Group", figures: Mapping[str, Iterations]) -> str:
    first = next(iter(figures.values()))
    base_train, base_whole = median(_column(first, "train")), median(_iteration(first))
    rows = []
    for name, iterations in figures.items():
        train, whole, simulator = _column(iterations, "train"), _iteration(iterations), _column(iterations, "simulator")
        outside = [one["rollout"] / one["simulator"] - 1.0 for one in iterations]
        explained = _column(iterations[len(iterations) // 2 :], "explained variance")
        rows.append(
            [
                name,
                _milliseconds(train),
                f"{median(train) / base_train:.1f}",
                f"{1e3 * median(simulator):.0f}",
                f"{median(outside):.2f}",
                f"{group.size.rows / median(whole):,.0f}",
                f"{median(whole) / base_whole:.2f}",
                f"{median(explained):.2f}" if explained else "–",
            ]
        )
    header = [
        "algorithm", "train(), ms", "of NPG", "simulator, ms", "outside", "steps/s", "seconds a step, of NPG", "EV",
    ]  # fmt: skip
    return markdown_table(header, rows)


def _parts_table(figures: Mapping[str, Iterations]) -> str:
    rows = []
    first: tuple[float, float] | None = None
    for name, iterations in figures.items():
        cells = [_milliseconds(_column(iterations, part)) for part in PARTS]
        policy = [sum(one[part] for part in PARTS[:3]) for one in iterations if "solve" in one]
        train = _column(iterations, "train")
        first = first or (median(policy), median(train))
        ratios = f"{median(policy) / first[0]:.1f}", f"{median(train) / first[1]:.1f}"
        rows.append([name, *cells, _milliseconds(policy), ratios[0], _milliseconds(train), ratios[1]])
    return markdown_table(["algorithm", *PARTS, "policy step", "of NPG", "train()", "of NPG"], rows)


def _products(products: Mapping[str, Any]) -> list[str]:
    seconds, floor = products["seconds"], products["floors"]["product"]
    base = seconds["by hand"][1]
    rows = [
        [name, f"{1e3 * m:.2f} ({1e3 * low:.2f}–{1e3 * high:.2f})", f"{m / base:.1f}", f"{floor / m:.0%}"]
        for name, (low, m, high) in seconds.items()
    ]
    about = (
        f"2,048 rows, 64 units. The floor, {1e3 * floor:.2f} ms, is the time of the matrix products of one product by "
        f"hand at the {products['rate'] / 1e9:.0f} GFLOP/s that this machine reaches for their shape."
    )
    return [
        "## One product with the Fisher",
        about,
        markdown_table(["product", "ms", "of the first", "floor's share"], rows),
    ]


def _growth(title: str, heading: str, found: Found) -> list[str]:
    sizes = _by_size(title, found)
    if len(sizes) < 2:
        return []
    names = list(dict.fromkeys(name for figures in sizes.values() for name in figures))
    rows = []
    for name in names:
        times = {size: median(_column(figures[name], "train")) for size, figures in sizes.items() if name in figures}
        exponents = np.diff(np.log(list(times.values()))) / np.diff(np.log(list(times)))
        last = f"{exponents[-1]:.2f}" if len(times) > 1 else "–"
        rows.append([name, *(f"{1e3 * times[size]:.0f}" if size in times else "–" for size in sizes), last])
    header = ["algorithm", *(f"{size:,}" for size in sizes), "exponent of the last step"]
    return [heading, "Milliseconds of `train()`.", markdown_table(header, rows)]


def _by_size(title: str, found: Found) -> dict[int, Mapping[str, Iterations]]:
    """Return the figures by the size that grows; the base size is the same for rows and widths."""
    base = [(group, figures) for group, figures in found.items() if group.title == "rows" and group.size.rows == 2048]
    mine = [(group, figures) for group, figures in found.items() if group.title == title]
    pairs = [*base, *mine] if title == "width" else mine
    return {getattr(group.size, title): figures for group, figures in pairs}


def _memory_table(figures: Mapping[str, Iterations]) -> str:
    rows = [
        [name, _milliseconds(_column(iterations, "train")), f"{iterations[-1]['peak bytes'] / MIB:.0f}"]
        for name, iterations in figures.items()
    ]
    return markdown_table(["algorithm", "train(), ms", "peak MiB"], rows)


def _images_table(figures: Mapping[str, Iterations]) -> str:
    base = median(_column(next(iter(figures.values())), "rollout"))
    rows = [
        [
            name,
            _milliseconds(_column(iterations, "train")),
            _milliseconds(_column(iterations, "rollout")),
            f"{median(_column(iterations, 'rollout')) / base:.2f}",
            f"{iterations[-1]['peak bytes'] / MIB:.0f}",
        ]
        for name, iterations in figures.items()
    ]
    return markdown_table(["algorithm", "train(), ms", "rollout, ms", "of NPG", "peak MiB"], rows)


def _column(iterations: Iterations, key: str) -> list[float]:
    return [one[key] for one in iterations if key in one]


def _iteration(iterations: Iterations) -> list[float]:
    return [one["rollout"] + one["train"] for one in iterations]


def _milliseconds(seconds: Sequence[float]) -> str:
    if not seconds:
        return "–"
    low, high = np.quantile(seconds, [0.25, 0.75])
    digits = 0 if median(seconds) > 0.1 else 1
    return f"{1e3 * median(seconds):.{digits}f} ({1e3 * low:.{digits}f}–{1e3 * high:.{digits}f})"


def draw(found: Found, path: Path) -> None:
    """Draw seconds of an update over rows and over widths, both on logarithmic scales."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, title, label in zip(axes, ("rows", "width"), ("rows of a rollout", "hidden units"), strict=True):
        sizes = _by_size(title, found)
        for name in dict.fromkeys(name for figures in sizes.values() for name in figures):
            mine = {size: figures[name] for size, figures in sizes.items() if name in figures}
            axis.plot(list(mine), [median(_column(one, "train")) for one in mine.values()], marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds of train()")
        axis.grid(alpha=0.3)
    if axes[0].lines:
        axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
