"""How much of the exact natural gradient's improvement each solver's direction gives, on a policy in training."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch as th

from benchmarks.environments import prepare_process
from benchmarks.quality_policies import Training, make_agent, make_problem
from benchmarks.report import Store
from sb3_npg.solvers import FisherSolver, Problem, make_fisher_solver
from sb3_npg.solvers.base import Layers
from sb3_npg.solvers.conjugate_gradient import ConjugateGradientSolver
from sb3_npg.solvers.scaling import ScaledProblem, block_scale
from tests.cases import in_float64

EXACT = "exact"


class Family(NamedTuple):
    """
    A solver, and for conjugate gradient the numbers of products to stop it at.

    :param name: title of its columns, which the number of products is appended to
    :param solver: a key of ``FISHER_SOLVERS``
    :param kwargs: of its constructor
    :param products: numbers of products; empty for a solver that takes none
    :param lagged: whether it has seen the rollout ``LAG`` updates earlier before it sees the present one
    """

    name: str
    solver: str
    kwargs: dict[str, Any]
    products: tuple[int, ...] = ()
    lagged: bool = False

    @property
    def columns(self) -> list[str]:
        """Titles of its columns."""
        return [f"{self.name} {n}" for n in self.products] or [self.name]


def _cg(
    name: str, products: tuple[int, ...], preconditioner: str | None = None, lagged: bool = False, **kwargs: Any
) -> Family:
    """Return conjugate gradient with a preconditioner that takes the further arguments."""
    return Family(
        name,
        "cg",
        {"rtol": 0.0, "preconditioner": preconditioner, "preconditioner_kwargs": kwargs or None},
        products,
        lagged,
    )


MAIN = (
    *(Family(name, name, {}) for name in ("identity", "diagonal", "kfac", "ekfac", "woodbury")),
    _cg("cg", (5, 10, 15)),
    _cg("diagonal-cg", (5,), "diagonal"),
    _cg("kfac-cg", (2, 3, 5, 10), "kfac"),
    _cg("ekfac-cg", (3, 5), "ekfac"),
)
#: Cheaper ways to the K-FAC preconditioner.
VARIANTS = (
    _cg("propagated", (3, 5), "kfac", columns="propagated"),
    _cg("sampled", (3, 5), "kfac", columns="sampled"),
    _cg("stale", (3, 5), "kfac", lagged=True, statistics_interval=2, inverse_interval=2),
    _cg("averaged", (3, 5), "kfac", lagged=True, decay=0.9),
)


@dataclass(frozen=True)
class Run:
    """
    One policy to measure all solvers on.

    :param task: that it was trained on
    :param seed: of its training
    :param age: environment steps of its training
    :param width: units in each hidden layer
    :param rows: of its rollout to use, in gradient and Fisher
    :param dampings: λ, and ε for the relative damping
    """

    task: str
    seed: int
    age: int
    width: int
    rows: int
    dampings: tuple[float, ...]

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        families = [list(family) for family in (*MAIN, *VARIANTS)]
        training = Training(self.task, self.seed, (self.age,), self.width).settings()
        return {**training, **asdict(self), "solvers": families}


class DenseProblem:
    """
    A policy update whose Fisher is formed: a product costs one pass over the matrix, or none if it was asked before.

    :param fisher: F, shape (p, p)
    :param layers: F layer by layer
    :param scale: of the coordinates that it is formed in
    """

    def __init__(self, fisher: th.Tensor, layers: Layers, scale: th.Tensor | float = 1.0):
        self.fisher = fisher
        self.layers = layers
        self.scale = scale
        self._known: dict[bytes, th.Tensor] = {}

    def fisher_vector_product(self, vector: th.Tensor) -> th.Tensor:
        """Return F v, shape (p,). Conjugate gradient with fewer steps asks for what it asked for with more."""
        key = vector.numpy().tobytes()
        if key not in self._known:
            self._known[key] = self.fisher @ vector
        return self._known[key].clone()

    def dense_fisher(self) -> th.Tensor:
        """Return F."""
        return self.fisher


class Score(NamedTuple):
    """
    The quality of one direction x: what it gives of the exact direction's gᵀx / √(xᵀMx).

    :param relative: whether the damping is relative to each layer's scale
    :param damping: λ or ε
    :param solver: a column of a ``Family``
    :param quality: with M = F, the improvement at a given small KL; above 1 where less damping would be better
    :param damped_quality: with M = F + λI, which is at most 1; for relative damping in the scaled coordinates
    """

    relative: bool
    damping: float
    solver: str
    quality: float
    damped_quality: float


def qualities(
    directions: dict[str, th.Tensor], gradient: th.Tensor, fisher: th.Tensor, damping: float
) -> dict[str, tuple[float, float]]:
    """
    Compare directions with the one called "exact".

    :param directions: x by name, each of shape (p,)
    :param gradient: g, shape (p,)
    :param fisher: F, shape (p, p)
    :param damping: λ
    :return: quality and damped quality by name
    """
    x = th.stack(list(directions.values()), dim=1)
    slope, curvature = gradient @ x, (x * (fisher @ x)).sum(dim=0)
    gains = th.stack([slope / curvature.sqrt(), slope / (curvature + damping * x.square().sum(dim=0)).sqrt()], dim=1)
    fractions = (gains / gains[list(directions).index(EXACT)]).tolist()
    return {name: (plain, damped) for name, (plain, damped) in zip(directions, fractions, strict=True)}


def scores(
    problem: DenseProblem,
    gradient: th.Tensor,
    earlier: Problem | None,
    dampings: tuple[float, ...],
    relative: bool,
) -> Iterator[Score]:
    """
    Measure all solvers on one update.

    :param problem: the update, in float64
    :param gradient: g, shape (p,)
    :param earlier: the update of ``LAG`` updates before; without it, what needs it is left out
    :param dampings: λ, or ε if relative
    :param relative: whether the damping is relative to each layer's scale
    """
    present, before = _coordinates(problem, relative), None if earlier is None else _coordinates(earlier, relative)
    system, gradient = DenseProblem(present.dense_fisher(), present.layers, present.scale), gradient / present.scale
    solvers = _solvers(system, before)
    for damping in dampings:
        directions: dict[str, th.Tensor] = {}
        for family, solver in solvers:
            # Most steps first, since the products of the others are then known.
            for n, column in reversed(list(zip(family.products or (0,), family.columns, strict=True))):
                if isinstance(solver, ConjugateGradientSolver):
                    solver.max_steps = n
                directions[column] = solver.solve(system, gradient, damping).natural_gradient
        for name, both in qualities(directions, gradient, system.fisher, damping).items():
            yield Score(relative, damping, name, *both)


def _coordinates(problem: Problem, relative: bool) -> Problem:
    """Return the update in the coordinates in which the damping is absolute."""
    return ScaledProblem(problem, block_scale(problem.layers)) if relative else problem


def _solvers(system: Problem, before: Problem | None) -> list[tuple[Family, FisherSolver]]:
    """Build all solvers and let them see the curvature."""
    solvers = []
    for family in (Family(EXACT, EXACT, {}), *MAIN, *VARIANTS):
        if family.lagged and before is None:
            continue
        solver = make_fisher_solver(family.solver, family.kwargs)
        if family.lagged and before is not None:
            solver.update(before)
        solver.update(system)
        solvers.append((family, solver))
    return solvers


def measure(cache: Path, store: Store, run: Run) -> None:
    """Measure all solvers on a policy that was kept, and keep their scores."""
    prepare_process()
    kept = th.load(Training(run.task, run.seed, (run.age,), run.width).path(cache, run.age))
    policy, earlier_policy = (make_agent(run.task, run.seed, run.width).policy for _ in range(2))
    in_float64()
    problem = make_problem(policy, kept["present"], run.rows)
    earlier = None if kept["earlier"] is None else make_problem(earlier_policy, kept["earlier"], run.rows)
    update = DenseProblem(problem.dense_fisher(), problem.layers), problem.surrogate_gradient(), earlier
    found = [score for relative in (False, True) for score in scores(*update, run.dampings, relative)]
    figures = {"return": kept["return"], "parameters": len(problem.vector)}
    store.save(run.settings(), {**figures, "scores": [score._asdict() for score in found]})
