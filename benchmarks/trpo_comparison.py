"""
NPG compared with sb3-contrib's TRPO, at the same true KL: ``python -m benchmarks.trpo_comparison``.

Does the runs of ``benchmarks.trpo_runs`` that are missing, and writes ``docs/trpo_comparison.md`` from what is stored.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

from benchmarks.environments import EVALUATION_EPISODES, N_ENVS
from benchmarks.report import Store, command_line, markdown_table, measure_missing, preamble, write_document
from benchmarks.trpo_runs import (
    ALGORITHMS,
    CG_STEPS,
    OWN_NOISE,
    RANDOM,
    SHARED,
    Figures,
    Run,
    measure,
)

#: What the tables say, in the words of those who read them.
CONCLUSIONS = """\
## What this says

Both fit the critic with Adam. If they begin with the same noise, σ = 1, they return the same within the spread of six
seeds, which is wide: on HalfCheetah TRPO returns 1,716 and NPG 1,598, on Hopper 3,113 and 2,504, where after 300,000
steps two seeds of NPG and none of TRPO still stand in place, at 899 and 994. NPG's steps are longer, 0.016 nats against
0.014 on Hopper, because their length is computed without the damping. Its `train()` takes 0.46 of TRPO's processor
seconds. NPG's own initial noise makes the difference: with it NPG returns 4,630 and 3,248; on HalfCheetah every seed is
above all seeds of the others, and on Hopper none stands in place.

The machine was shared with other work, which wall seconds include, most of all those of "NPG, its own σ" and of seeds 3
to 5; CPU seconds do not.
"""


def summary(figures: Figures) -> dict[str, float]:
    """
    Reduce a run to the figures of the table.

    :param figures: what :func:`train` returned
    :return: returns, seconds, mean KL in nats and the fraction of line searches that found a step
    """
    updates = figures["updates"]
    return {
        "final return": fmean(figures["returns"]),
        "training return": figures["curve"][-1][1] if figures["curve"] else float("nan"),
        "wall s": figures["wall_seconds"],
        "collect s": figures["collect_seconds"],
        "train() s": sum(update["seconds"] for update in updates),
        "train() CPU s": sum(update["cpu_seconds"] for update in updates),
        "mean KL": fmean(update["kl"] for update in updates),
        "largest KL": max(update["kl"] for update in updates),
        "accepted": fmean(update["accepted"] for update in updates),
        "explained variance": updates[-1]["explained_variance"],
    }


_FORMATS = {"mean KL": ".4f", "largest KL": ".4f", "accepted": ".2f", "explained variance": ".2f"}


def cells(figures: dict[str, float]) -> list[str]:
    """Write figures in the precision that they are worth."""
    return [format(value, _FORMATS.get(name, ".1f")) for name, value in figures.items()]


def mean_of(summaries: Sequence[dict[str, float]]) -> dict[str, float]:
    """Average runs over their seeds."""
    return {name: fmean(one[name] for one in summaries) for name in summaries[0]}


def environment_section(store: Store, env_id: str, runs: Sequence[Run]) -> str:
    """Return the tables of one environment."""
    loaded = {run: store.load(run.settings()) for run in runs if run.env_id == env_id}
    figures = {run: found for run, found in loaded.items() if found is not None}
    rows: list[list[str]] = []
    means = {}
    for algorithm in ALGORITHMS:
        summaries = {run.seed: summary(figures[run]) for run in figures if run.algorithm == algorithm}
        rows += [[algorithm, str(seed), *cells(one)] for seed, one in summaries.items()]
        means[algorithm] = mean_of(list(summaries.values()))
        rows.append([f"**{algorithm}**", "mean", *cells(means[algorithm])])
    random_return = fmean(fmean(figures[run]["returns"]) for run in figures if run.algorithm == RANDOM)
    timed = [name for name in means["NPG"] if name.endswith(" s")]
    ratios = [f"{means['NPG'][name] / means['TRPO'][name]:.2f}" for name in timed]
    steps = max(found.get("steps", 0) for found in figures.values())
    return "\n\n".join(
        [
            f"## {env_id}, {steps:,} steps",
            markdown_table(["algorithm", "seed", *means["NPG"]], rows),
            f"A random policy returns {random_return:.1f}. Seconds of NPG over seconds of TRPO:",
            markdown_table(["", *timed], [["NPG / TRPO", *ratios]]),
        ]
    )


def explanation(run: Run) -> str:
    """Say what was compared and what the columns are."""
    shared = ", ".join(f"{name}={value}" for name, value in SHARED.items())
    return f"""\
Both agents: {N_ENVS} environments, VecNormalize, MlpPolicy, {CG_STEPS} conjugate gradient steps,
{shared}.
One process per run with 1 thread, {run.processes} at once, TRPO and NPG in turn.

SB3's `kl_divergence` of a Box action has one value per action dimension, and TRPO takes the mean over rows *and*
dimensions. For d action dimensions the same trust region is NPG(target_kl={run.target_kl:g}, damping={run.damping:g})
and TRPO(target_kl={run.target_kl:g}/d, cg_damping={run.damping:g}/d).

{OWN_NOISE}: without that `log_std_init`, so that it begins at NPG's default σ = min(1, 2/d).

- final return: mean of {EVALUATION_EPISODES} deterministic episodes of the final policy, statistics of VecNormalize
  frozen, reward not normalised
- training return: mean of the last 100 training episodes
- train(), collect: seconds inside `train()` and `collect_rollouts()`; CPU seconds do not count other load
- KL: KL(π_old ‖ π_new) in nats, mean over the rollout's states and sum over action dimensions, measured in the same
  way for both before and after `train()`; 0 for an update that is not accepted
- accepted: fraction of updates whose line search found a step
- explained variance: of the last rollout's returns by the critic, before its update"""


def plot_curves(path: Path, store: Store, env_ids: Sequence[str], runs: Sequence[Run]) -> bool:
    """
    Draw the training returns over the steps, one line per run.

    :return: whether there is a picture; False without matplotlib
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(5.0 * len(env_ids), 4.0), layout="constrained")
    axes = figure.subplots(1, len(env_ids), squeeze=False)[0]
    for ax, env_id in zip(axes, env_ids, strict=True):
        labelled: set[str] = set()
        for run in runs:
            figures = store.load(run.settings())
            if run.env_id != env_id or run.algorithm == RANDOM or figures is None or not figures["curve"]:
                continue
            steps, returns = zip(*figures["curve"], strict=True)
            label = None if run.algorithm in labelled else run.algorithm
            ax.plot(steps, returns, color=f"C{ALGORITHMS.index(run.algorithm)}", label=label)
            labelled.add(run.algorithm)
        ax.set(title=env_id, xlabel="environment steps", ylabel="mean return of the last 100 episodes")
        if labelled:
            ax.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trpo_comparison", description=__doc__)
    parser.add_argument("--steps", type=int, default=300_000, help="environment steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5", "Hopper-v5"])
    parser.add_argument("--target-kl", type=float, default=0.02, help="δ in nats, summed over action dimensions")
    parser.add_argument("--damping", type=float, default=0.1, help="λ, added to the Fisher of that KL")
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument("--out", type=Path, default=Path("docs/trpo_comparison.md"))
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("benchmarks/results/trpo_comparison"),
        help="finished runs, which are not repeated; delete them after a change of the source",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document from what is stored."""
    arguments = parse(argv)
    common = (arguments.steps, arguments.target_kl, arguments.damping, arguments.processes)
    # The algorithms alternate, so that both see the same load on the machine.
    runs = [Run(name, *point, *common) for point in product(arguments.envs, arguments.seeds) for name in ALGORITHMS]
    runs += [Run(RANDOM, env_id, arguments.seeds[0], *common) for env_id in arguments.envs]
    store = Store(arguments.results)
    measure_missing(store, runs, measure, arguments.processes)
    picture = arguments.out.with_suffix(".png")
    sections = [
        preamble("NPG compared with sb3-contrib's TRPO", command_line("benchmarks.trpo_comparison", argv)),
        CONCLUSIONS,
        explanation(runs[0]),
        *(environment_section(store, env_id, runs) for env_id in arguments.envs),
    ]
    if plot_curves(picture, store, arguments.envs, runs):
        sections.append(f"![Training returns over environment steps]({picture.name})")
    write_document(arguments.out, sections)


if __name__ == "__main__":
    main(sys.argv[1:])
