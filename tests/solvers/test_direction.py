"""More damping while a solver fails, then a clean failure."""

import math

import pytest
import torch as th

from sb3_npg.numerics import NumericalFailure
from sb3_npg.solvers import FisherSolver, Solution, make_fisher_solver
from sb3_npg.solvers.direction import DAMPING_RETRIES, find_direction
from tests.cases import make_problem


class Diagonal:
    """A problem with a known F."""

    scale = 1.0

    def __init__(self, *entries: float):
        self.entries = th.tensor(entries)

    def fisher_vector_product(self, vector):
        return self.entries * vector

    def dense_fisher(self):
        return th.diag(self.entries)


class Scripted(FisherSolver):
    """Solves a diagonal problem, but only above some damping; below it does what it is told."""

    def __init__(self, works_from: float, otherwise):
        super().__init__()
        self.works_from, self.otherwise, self.tried = works_from, otherwise, []

    def solve(self, problem, gradient, damping):
        self.tried.append(damping)
        if damping < self.works_from:
            return self.otherwise(gradient)
        return Solution(gradient / (problem.entries + damping), {})


def fail_to_factorise(_gradient):
    raise th.linalg.LinAlgError("not positive definite")


def divide_by_zero(_gradient):
    raise ZeroDivisionError


FAILURES = {
    "raises LinAlgError": fail_to_factorise,
    "raises ArithmeticError": divide_by_zero,
    "returns NaN": lambda g: Solution(g * float("nan"), {}),
    "returns infinity": lambda g: Solution(g * float("inf"), {}),
    "descends": lambda g: Solution(-g, {}),
    "returns zero": lambda g: Solution(0 * g, {}),
}
GRADIENT = th.tensor([1.0, -2.0])


@pytest.mark.parametrize("otherwise", FAILURES.values(), ids=FAILURES)
def test_failure_is_mended_by_more_damping(otherwise):
    solver = Scripted(5.0, otherwise)
    direction = find_direction(solver, Diagonal(1.0, 3.0), GRADIENT, 0.1)
    assert solver.tried == pytest.approx([0.1, 1.0, 10.0])
    assert direction.damping == pytest.approx(10.0)
    x = GRADIENT / (th.tensor([1.0, 3.0]) + 10.0)
    th.testing.assert_close(direction.natural_gradient, x)
    assert direction.curvature == pytest.approx(float(x[0] ** 2 + 3 * x[1] ** 2))


@pytest.mark.parametrize("otherwise", FAILURES.values(), ids=FAILURES)
def test_failure_at_every_damping_is_a_numerical_failure(otherwise):
    solver = Scripted(float("inf"), otherwise)
    with pytest.raises(NumericalFailure, match="no natural gradient up to damping"):
        find_direction(solver, Diagonal(1.0, 3.0), GRADIENT, 0.0)
    assert len(solver.tried) == len(DAMPING_RETRIES)
    assert solver.tried[0] == 0.0 < solver.tried[1] < solver.tried[2]


@pytest.mark.parametrize("entries", [(0.0, 0.0), (-1.0, -1.0)])
def test_a_fisher_without_positive_curvature_is_a_numerical_failure(entries):
    with pytest.raises(NumericalFailure, match="not positive"):
        find_direction(Scripted(0.0, None), Diagonal(*entries), GRADIENT, 2.0)


def test_curvature_is_that_of_the_undamped_fisher():
    direction = find_direction(Scripted(0.0, None), Diagonal(4.0, 4.0), GRADIENT, 100.0)
    assert direction.curvature == pytest.approx(4.0 * float(direction.natural_gradient @ direction.natural_gradient))


@pytest.mark.parametrize(
    ("gradient", "words"),
    [([0.0, 0.0], "is zero"), ([float("nan"), 1.0], "not finite"), ([1.0, float("inf")], "not finite")],
)
def test_a_gradient_that_leads_nowhere_is_a_numerical_failure_at_once(gradient, words):
    solver = Scripted(0.0, None)
    with pytest.raises(NumericalFailure, match=words):
        find_direction(solver, Diagonal(1.0, 1.0), th.tensor(gradient), 0.1)
    assert solver.tried == [0.1]


class Unmeasured(Scripted):
    """Cannot measure the curvature."""

    def update(self, problem):
        raise ArithmeticError("no decomposition")


@pytest.mark.parametrize(
    ("gradient", "words"),
    [([1.0, 1.0], "no decomposition"), ([0.0, 0.0], "is zero"), ([float("nan"), 1.0], "gradient is not finite")],
)
def test_curvature_that_cannot_be_measured_is_a_numerical_failure_that_names_its_cause(gradient, words):
    with pytest.raises(NumericalFailure, match=words):
        find_direction(Unmeasured(0.0, None), Diagonal(1.0, 1.0), th.tensor(gradient), 0.1)


@pytest.mark.parametrize(
    ("entries", "x", "words"), [((1e38, 1e38), 1e10, "xᵀFx = inf"), ((1e-40, 1e-40), 3e38, "gradient is not finite")]
)
def test_figures_that_single_precision_does_not_hold_are_a_numerical_failure(entries, x, words):
    """Each number of x is finite, and so is gᵀx."""
    solver = Scripted(float("inf"), lambda gradient: Solution(th.full_like(gradient, x), {}))
    with pytest.raises(NumericalFailure, match=words):
        find_direction(solver, Diagonal(*entries), th.tensor([1e-3, 1e-3]), 0.0)


def test_residual_of_a_gradient_whose_square_has_no_digits_is_not_known():
    direction = find_direction(Scripted(0.0, None), Diagonal(1e-20, 1e-20), th.tensor([1e-24, 0.0]), 0.0)
    assert direction.natural_gradient.tolist() == pytest.approx([1e-4, 0.0])
    assert math.isnan(direction.stats["residual"])


@pytest.mark.parametrize("kwargs", [{}, {"preconditioner": "diagonal"}], ids=str)
def test_direction_of_conjugate_gradient_costs_no_product_beside_its_steps(kwargs, monkeypatch, float64):
    problem = make_problem("categorical", "Mlp", 12)
    gradient, product, taken = problem.surrogate_gradient(), problem.fisher_vector_product, []
    monkeypatch.setattr(problem, "fisher_vector_product", lambda vector: taken.append(vector) or product(vector))
    direction = find_direction(
        make_fisher_solver("cg", {"max_steps": 4, "rtol": 0.0, **kwargs}), problem, gradient, 0.1
    )
    assert len(taken) == direction.stats["steps"] == 4
    x = direction.natural_gradient
    assert direction.curvature == pytest.approx(float(x @ product(x)))
