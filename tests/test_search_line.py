"""A step that is taken before anybody has looked at its direction, and taken back where that was of no use."""

import math

import pytest
import torch as th
from torch import nn

from sb3_npg.numerics import NumericalFailure
from sb3_npg.parameters import ParameterVector
from sb3_npg.search_line import SearchLine
from sb3_npg.solvers import make_fisher_solver
from sb3_npg.solvers.base import Solution
from sb3_npg.solvers.direction import find_direction
from sb3_npg.trust_region import FixedStep, TrustRegion
from tests.cases import make_problem


def make_line(problem):
    return SearchLine(problem, TrustRegion(lambda _: 0.01).length(1.0))


def failing_first(solver, spoil):
    """A solver whose first solution is spoilt."""
    solve, tried = solver.solve, []

    def once(problem, gradient, damping):
        tried.append(damping)
        solution = solve(problem, gradient, damping)
        return spoil(solution.natural_gradient) if len(tried) == 1 else solution

    solver.solve = once
    return solver


SPOILT = {
    "NaN": lambda x: Solution(x * math.nan, {}),
    "one NaN": lambda x: Solution(th.cat([x[:-1], x.new_tensor([math.nan])]), {}),
    "infinity": lambda x: Solution(x * math.inf, {}),
    "descends": lambda x: Solution(-x, {}),
    "zero": lambda x: Solution(0.0 * x, {}),
    "no curvature": lambda x: Solution(x, {}, 0.0 * x),
    "negative curvature": lambda x: Solution(x, {}, -x),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fast_paths", [True, False], ids=["by hand", "autograd"])
@pytest.mark.parametrize("solver", ["cg", "exact", "kfac", "ekfac", "diagonal", "woodbury", "identity"])
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_retry_after_a_useless_direction_is_as_if_it_had_not_been_tried(spoil, solver, fast_paths):
    problem, twin = (make_problem("Gaussian", "Mlp", 20, fast_paths=fast_paths) for _ in range(2))
    line, expected_line = make_line(problem), make_line(twin)
    start = problem.vector.get()
    found = find_direction(
        failing_first(make_fisher_solver(solver), spoil), problem, problem.surrogate_gradient(), 0.1, line=line
    )
    expected = find_direction(make_fisher_solver(solver), twin, twin.surrogate_gradient(), 1.0, line=expected_line)
    assert found.damping == 1.0
    assert th.equal(found.natural_gradient, expected.natural_gradient)
    assert line.go(1.0) == expected_line.go(1.0)
    assert th.equal(problem.vector.get(), twin.vector.get())
    line.back()
    assert th.equal(problem.vector.get(), start)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("distribution", ["Gaussian", "gSDE", "squashed Gaussian", "categorical", "Bernoulli"])
def test_full_step_is_where_a_second_look_would_have_put_it(distribution, relative):
    problem = make_problem(distribution, "Mlp", 20)
    start, gradient = problem.vector.get(), problem.surrogate_gradient()
    line, solver = make_line(problem), make_fisher_solver("cg")
    direction = find_direction(solver, problem, gradient, 0.1, relative, line)
    assert line.length == pytest.approx(math.sqrt(0.02 / direction.curvature), rel=1e-14)
    th.testing.assert_close(problem.vector.get(), start + line.length * direction.natural_gradient, rtol=0.0, atol=0.0)
    assert line.go(1.0) == list(problem.evaluate())
    shorter = line.go(0.5)
    assert th.equal(problem.vector.get(), start + 0.5 * line.step)
    assert shorter == list(problem.evaluate())
    line.go(1.0)
    assert th.equal(problem.vector.get(), start + line.step)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fast_paths", [True, False], ids=["by hand", "autograd"])
def test_policy_is_never_looked_at_where_a_parameter_is_not_finite(fast_paths):
    problem = make_problem("Gaussian", "Mlp", 20, fast_paths=fast_paths)
    line = make_line(problem)
    for x in (math.nan, math.inf, -math.inf):
        for curvature in (math.nan, 0.0, -1.0, 1.0):
            figures = line.take(th.full_like(problem.vector.get(), x), th.tensor(curvature))
            assert bool(problem.vector.get().isfinite().all())
            assert bool(figures[1:].isfinite().all())


@pytest.mark.usefixtures("float64")
def test_a_step_that_is_not_finite_is_a_numerical_failure():
    problem = make_problem("Gaussian", "Mlp", 20)
    start = problem.vector.get()
    line = SearchLine(problem, FixedStep(lambda _: 1e300).length(1.0))
    x = th.full_like(start, 1e10)
    with pytest.raises(NumericalFailure, match="the step is not finite"):
        line.read(line.take(x, th.ones(())).tolist(), float(x.norm()))
    line.back()
    assert th.equal(problem.vector.get(), start)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rule", [FixedStep, TrustRegion])
def test_length_that_is_no_number_is_a_numerical_failure(rule):
    with pytest.raises(NumericalFailure, match=r"` is NaN at a progress of 0\.5"):
        rule(lambda _: math.nan).length(0.5)


@pytest.mark.usefixtures("float64")
def test_line_that_went_back_goes_its_full_step_again():
    problem = make_problem("Gaussian", "Mlp", 20)
    line = make_line(problem)
    find_direction(make_fisher_solver("cg"), problem, problem.surrogate_gradient(), 0.1, line=line)
    there, figures = problem.vector.get(), line.go(1.0)
    line.back()
    assert line.go(1.0) == figures
    assert th.equal(problem.vector.get(), there)


class Point:
    """Three parameters without a policy."""

    def __init__(self, dtype):
        self.vector = ParameterVector([nn.Parameter(th.zeros(3, dtype=dtype))])

    def figures(self):
        return th.zeros(3, dtype=self.vector.dtype)

    def refresh(self):
        pass


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_a_step_beyond_the_precision_of_the_parameters_is_a_numerical_failure(dtype):
    """β and x are finite, and the entries of βx are not."""
    line = SearchLine(Point(dtype), FixedStep(lambda _: 1e20).length(1.0))
    x = th.full((3,), th.finfo(dtype).max / 1e10, dtype=dtype)
    figures = line.take(x, th.ones((), dtype=dtype)).tolist()
    with pytest.raises(NumericalFailure, match="the step is not finite"):
        line.read(figures, float(x.double().abs().max()) * 3.0**0.5)
