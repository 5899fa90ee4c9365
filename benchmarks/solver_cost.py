"""
What a solve costs, by solver: seconds and memory, and how both grow with the network and the rollout.

Timed in one process, the solvers in turn, so that a slow moment of the machine affects all of them; memory in fresh
processes. ``python -m benchmarks.solver_cost`` measures and prints the tables; ``python -m benchmarks.solvers``
puts them into ``docs/solvers.md``.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import numpy as np
import torch as th
from gymnasium import spaces
from rich.progress import track
from sb3_contrib.common.utils import conjugate_gradient_solver
from stable_baselines3.common.policies import ActorCriticPolicy

from benchmarks.memory import MIB, status_bytes
from benchmarks.report import Store, in_fresh_process, markdown_table
from sb3_npg.local_problem import LocalProblem
from sb3_npg.solvers import make_fisher_solver

RESULTS = Path("benchmarks/results/solver_cost")
OBSERVATIONS, ACTIONS = 17, 6
DAMPING = 0.1
WIDTHS, BASE_WIDTH = (16, 32, 64, 128, 256), 64
ROWS, BASE_ROWS = (512, 1024, 2048, 4096, 8192), 2048
#: Arguments of ``make_fisher_solver`` by the name that the tables show.
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "identity": ("identity", {}),
    "diagonal": ("diagonal", {}),
    "kfac": ("kfac", {}),
    "kfac, propagated": ("kfac", {"columns": "propagated"}),
    "ekfac": ("ekfac", {}),
    "cg 5 + kfac": ("cg", {"max_steps": 5, "rtol": 0.0, "preconditioner": "kfac"}),
    "cg 15": ("cg", {"max_steps": 15, "rtol": 0.0}),
    "woodbury": ("woodbury", {}),
    "exact": ("exact", {}),
}
#: Conjugate gradient on products by double backward through the KL, as sb3-contrib's TRPO solves it.
PEER = "TRPO's cg 15"
#: Sizes at which a solver takes minutes or is refused.
TOO_LARGE: dict[str, Callable[["Size"], bool]] = {
    "exact": lambda size: size.width > 64 or size.rows > 2048,
    "woodbury": lambda size: size.rows > 4096,
}


@dataclass(frozen=True)
class Size:
    """
    A policy and a rollout.

    :param width: units of each of two hidden layers
    :param rows: N
    """

    width: int
    rows: int

    def settings(self) -> dict[str, Any]:
        """Return all that the figures depend on."""
        return {**asdict(self), "observations": OBSERVATIONS, "actions": ACTIONS, "damping": DAMPING, "threads": 1}


def make_problem(size: Size) -> LocalProblem:
    """Freeze an update of SB3's MlpPolicy on random observations."""
    th.set_num_threads(1)
    th.manual_seed(0)
    observation_space, action_space = (spaces.Box(-1.0, 1.0, (n,), np.float32) for n in (OBSERVATIONS, ACTIONS))
    policy = ActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, net_arch=[size.width, size.width])
    policy.set_training_mode(False)
    observations = th.randn(size.rows, OBSERVATIONS)
    with th.no_grad():
        actions = policy.get_distribution(observations).get_actions()
    return LocalProblem(policy, observations, actions, th.randn(size.rows))


def solve(name: str, problem: LocalProblem, gradient: th.Tensor) -> th.Tensor:
    """Do what a policy update asks of a solver, and return the natural gradient, shape (p,)."""
    if name == PEER:
        return solve_like_trpo(problem, gradient)
    kind, kwargs = SOLVERS[name]
    solver = make_fisher_solver(kind, kwargs)
    solver.update(problem)
    return solver.solve(problem, gradient, DAMPING).natural_gradient


def solve_like_trpo(problem: LocalProblem, gradient: th.Tensor) -> th.Tensor:
    """Solve by sb3-contrib's conjugate gradient on second derivatives of the mean KL."""
    kl = problem.mean_kl()
    kl_gradient = problem.vector.flatten(th.autograd.grad(kl, problem.parameters, create_graph=True))

    def product(vector: th.Tensor) -> th.Tensor:
        second = th.autograd.grad(kl_gradient @ vector, problem.parameters, retain_graph=True)
        return problem.vector.flatten(second).add_(vector, alpha=DAMPING)

    return conjugate_gradient_solver(product, gradient, max_iter=15)


def names_at(size: Size) -> list[str]:
    """Return what is measured at a size."""
    return [PEER, *(name for name in SOLVERS if name not in TOO_LARGE or not TOO_LARGE[name](size))]


def seconds_at(size: Size, rounds: int) -> dict[str, float]:
    """Return the median seconds of each solver, taken in turn; a new problem each time, so that nothing is kept."""
    seconds: dict[str, list[float]] = {name: [] for name in names_at(size)}
    for _ in range(rounds + 1):  # the first warms up
        for name, mine in seconds.items():
            problem = make_problem(size)
            gradient = problem.surrogate_gradient()
            start = time.perf_counter()
            solve(name, problem, gradient)
            mine.append(time.perf_counter() - start)
    return {name: median(mine[1:]) for name, mine in seconds.items()}


def peak_mib(name: str, size: Size) -> float:
    """Return the resident memory that one solve adds to what is there before it, in a fresh process."""
    small = make_problem(Size(8, 64))
    solve(name, small, small.surrogate_gradient())  # libraries take memory at their first use
    problem = make_problem(size)
    gradient = problem.surrogate_gradient()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    resident = status_bytes("VmRSS")
    solve(name, problem, gradient)
    return (status_bytes("VmHWM") - resident) / MIB


def measure(store: Store, size: Size, rounds: int) -> None:
    """Measure one size and keep the figures."""
    seconds = in_fresh_process(seconds_at, size, rounds)
    shown = size in _sizes_of_memory()
    memory = {name: in_fresh_process(peak_mib, name, size) for name in seconds} if shown else {}
    parameters = len(make_problem(size).vector)
    store.save(size.settings(), {"seconds": seconds, "mib": memory, "parameters": parameters})


def sizes(widths: Sequence[int] = WIDTHS, rows: Sequence[int] = ROWS) -> tuple[list[Size], list[Size]]:
    """Return the sizes along which the network grows, and those along which the rollout does."""
    return [Size(width, BASE_ROWS) for width in widths], [Size(BASE_WIDTH, n) for n in rows]


def _sizes_of_memory() -> list[Size]:
    """Return the sizes at which memory is measured."""
    networks, rollouts = sizes()
    return [*networks, rollouts[-1]]


def sections(store: Store) -> list[str]:
    """Write the tables from what is stored."""
    networks, rollouts = sizes()
    about = (
        f"Seconds of one solve (`update` and `solve`) for SB3's MlpPolicy with two hidden layers, {OBSERVATIONS} "
        f"observations and {ACTIONS} actions (Box), float32, one thread; medians, with the solvers taking turns. In "
        f"brackets: the ratio to {PEER}, sb3-contrib's conjugate gradient with 15 products by double backward, timed "
        "in the same turns. –: not measured, because it takes minutes or is refused."
    )
    by_width = _table(store, networks, "seconds", lambda size, p: f"{size.width}×{size.width} (p = {p:,})")
    by_rows = _table(store, rollouts, "seconds", lambda size, _: f"N = {size.rows:,}")
    memory = _table(store, _sizes_of_memory(), "mib", lambda size, p: f"p = {p:,}, N = {size.rows:,}")
    return [
        about,
        f"Growth with the network, N = {BASE_ROWS:,}:",
        by_width,
        f"Growth with the rollout, {BASE_WIDTH}×{BASE_WIDTH}:",
        by_rows,
        "Resident memory that a solve adds, MiB, in a fresh process:",
        memory,
    ]


def _table(store: Store, wanted: Sequence[Size], key: str, title: Callable[[Size, int], str]) -> str:
    found = {size: figures for size in wanted if (figures := store.load(size.settings())) is not None}
    header = ["solver", *(title(size, figures["parameters"]) for size, figures in found.items())]

    def cell(figures: dict[str, Any], name: str) -> str:
        if name not in figures[key]:
            return "–"
        value = figures[key][name]
        return f"{value:.4f} ({value / figures[key][PEER]:.2f})" if key == "seconds" else f"{value:.0f}"

    rows = [[name, *(cell(figures, name) for figures in found.values())] for name in [PEER, *SOLVERS]]
    return markdown_table(header, rows)


def draw(store: Store, path: Path) -> None:
    """Draw seconds against parameters and rows, both on logarithmic axes."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt  # after the backend is chosen

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, wanted, label in zip(axes, sizes(), ("parameters that act", "rows of the rollout"), strict=True):
        found = [(size, figures) for size in wanted if (figures := store.load(size.settings())) is not None]
        for name in [PEER, *SOLVERS]:
            points = [
                (figures["parameters"] if wanted[0].width != wanted[-1].width else size.rows, figures["seconds"][name])
                for size, figures in found
                if name in figures["seconds"]
            ]
            axis.loglog(*zip(*points, strict=True), "--k" if name == PEER else "o-", label=name)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds of one solve")
    axes[1].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str]) -> None:
    """Measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solver_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timings of each solver at each size")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    store = Store(arguments.results)
    networks, rollouts = sizes()
    missing = [size for size in dict.fromkeys([*networks, *rollouts]) if store.load(size.settings()) is None]
    for size in track(missing, f"{len(missing)} sizes to measure"):
        measure(store, size, arguments.rounds)
    print("\n\n".join(sections(store)))


if __name__ == "__main__":
    main(sys.argv[1:])
