"""Step length, line search and the control of the damping."""

import math

import hypothesis.strategies as st
import pytest
import torch as th
from hypothesis import given, settings

from sb3_npg.numerics import NumericalFailure
from sb3_npg.search_line import SearchLine
from sb3_npg.solvers import make_fisher_solver
from sb3_npg.solvers.direction import find_direction
from sb3_npg.trust_region import (
    Evaluation,
    FixedStep,
    LineSearch,
    TrustRegion,
    adapted_damping_factor,
    backtrack,
)
from tests.cases import make_problem


def direction_of(problem, damping=1e-3):
    return find_direction(make_fisher_solver("exact"), problem, problem.surrogate_gradient(), damping)


def trust_region_line(problem, target_kl):
    return SearchLine(problem, TrustRegion(lambda _: target_kl).length(1.0))


def line_along(problem, step):
    """A line whose full step is given."""
    line = SearchLine(problem, lambda _: th.ones((), dtype=step.dtype))
    line.read(line.take(step, step.new_zeros(())).tolist(), float(step.norm()))
    return line


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("solver", ["exact", "cg", "identity"])
@pytest.mark.parametrize("distribution", ["Gaussian", "gSDE", "categorical", "multi-categorical", "Bernoulli"])
def test_step_has_the_modelled_kl_of_the_trust_region(distribution, solver):
    problem = make_problem(distribution, "Mlp", 20)
    line, start, fisher = trust_region_line(problem, 0.03), problem.vector.get(), problem.dense_fisher()
    gradient = problem.surrogate_gradient()
    direction = find_direction(make_fisher_solver(solver), problem, gradient, 0.1, line=line)
    step = problem.vector.get() - start
    assert 0.5 * float(step @ fisher @ step) == pytest.approx(0.03, rel=1e-10)
    assert direction.predicted_kl(line.length) == pytest.approx(0.03, rel=1e-12)
    th.testing.assert_close(step, line.length * direction.natural_gradient)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "distribution",
    ["Gaussian", "squashed Gaussian", "gSDE learn_features", "categorical", "multi-categorical", "Bernoulli"],
)
def test_measured_kl_tends_to_the_radius_as_it_shrinks(distribution):
    problem = make_problem(distribution, "Mlp", 20)
    direction, start = direction_of(problem, 0.1), problem.vector.get()
    errors = []
    for target in (1e-4, 1e-6, 1e-8):
        length = TrustRegion(lambda _, t=target: t).length(1.0)(th.tensor(direction.curvature))
        problem.vector.set(start + length * direction.natural_gradient)
        errors.append(abs(problem.evaluate().mean_kl / target - 1.0))
    # The error is of first order in the step's length, √δ: two decades of δ are at least one of error.
    assert errors[2] < 0.15 * errors[1] < 0.15**2 * errors[0]
    assert errors[2] < 1e-3


@given(curvature=st.floats(1e-8, 1e8), target=st.floats(1e-6, 1.0))
@settings(deadline=None, derandomize=True)
def test_length_solves_the_quadratic_model(curvature, target):
    length = TrustRegion(lambda _: target).length(1.0)(th.tensor(curvature, dtype=th.float64))
    assert 0.5 * float(length) ** 2 * curvature == pytest.approx(target)


def test_fixed_step_is_kakades_whatever_the_curvature():
    rule = FixedStep(lambda progress: 0.5 * progress)
    assert rule.length(-1.0)(th.ones(())) == 0.0
    for curvature in (0.1, 10.0):
        assert float(rule.length(0.5)(th.tensor(curvature))) == 0.25
    assert rule.kl_limit(0.5) == math.inf


@pytest.mark.usefixtures("float64")
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), length=st.floats(0.1, 10.0), kl_limit=st.floats(1e-3, 0.1))
def test_line_search_never_accepts_too_much_kl_or_a_lower_surrogate(seed, length, kl_limit):
    problem = make_problem("categorical", "Mlp, net_arch=[]", 20, seed=seed)
    start, before = problem.vector.get(), problem.evaluate()
    full_step = length * direction_of(problem, 0.1).natural_gradient
    search = backtrack(line_along(problem, full_step), kl_limit, 0.5, 6)
    after = problem.evaluate()
    if search.accepted:
        assert search.coefficient == 0.5 ** (search.steps - 1)
        th.testing.assert_close(problem.vector.get(), start + search.coefficient * full_step)
        assert after.mean_kl <= kl_limit
        assert after.surrogate > before.surrogate
        assert (search.surrogate, search.mean_kl) == after[1:]
        assert search.improvement == after.surrogate - before.surrogate
    else:
        assert th.equal(problem.vector.get(), start)
        assert (search.steps, search.coefficient, search.improvement, search.mean_kl) == (6, 0.0, 0.0, 0.0)
        assert search.surrogate == before.surrogate


@pytest.mark.usefixtures("float64")
def test_line_search_takes_the_longest_step_that_will_do():
    problem = make_problem("Gaussian", "Mlp", 20)
    line, start = trust_region_line(problem, 4e-2), problem.vector.get()
    find_direction(make_fisher_solver("exact"), problem, problem.surrogate_gradient(), 1e-3, line=line)
    search = backtrack(line, 1e-2, 0.8, 20)
    assert search.accepted
    assert search.steps > 1
    problem.vector.set(start + search.coefficient / 0.8 * line.step)
    assert problem.evaluate().mean_kl > 1e-2


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("distribution", ["Gaussian", "gSDE", "categorical"])
def test_rejected_line_search_restores_parameters_bit_for_bit(distribution):
    problem = make_problem(distribution, "Mlp", 20)
    direction = direction_of(problem)
    descent = -((0.02 / direction.curvature) ** 0.5) * direction.natural_gradient
    before = {name: tensor.clone() for name, tensor in problem.policy.state_dict().items()}
    search = backtrack(line_along(problem, descent), 0.01, 0.8, 10)
    assert not search.accepted
    assert all(th.equal(before[name], tensor) for name, tensor in problem.policy.state_dict().items())


class Scripted:
    """A line with an evaluation for each trial, the full step's first."""

    def __init__(self, *evaluations):
        self.evaluations, self.coefficients = iter(evaluations), []

    def go(self, coefficient):
        self.coefficients.append(coefficient)
        return next(self.evaluations)

    def back(self):
        self.coefficients.append(0.0)


NAN = Evaluation(0.0, math.nan, math.nan)


@pytest.mark.parametrize(
    "bad", [NAN, Evaluation(0.0, math.inf, 0.0), Evaluation(0.0, 1.0, math.nan), Evaluation(0.0, 1.0, math.inf)]
)
def test_nan_and_infinity_are_never_accepted(bad):
    line = Scripted(bad, Evaluation(0.0, 1.0, 0.001))
    search = backtrack(line, math.inf, 0.5, 2)
    assert (search.accepted, search.steps) == (True, 2)
    assert line.coefficients == [1.0, 0.5]


def test_without_a_search_the_full_step_is_taken_whatever_it_costs():
    line = Scripted(Evaluation(0.0, -1.0, 5.0))
    search = backtrack(line, 0.01, 0.5, 0)
    assert (search.accepted, search.coefficient, search.mean_kl) == (True, 1.0, 5.0)
    assert line.coefficients == [1.0]


def test_without_a_search_a_step_to_nan_is_taken_back():
    line = Scripted(NAN)
    with pytest.raises(NumericalFailure, match="full step is not finite"):
        backtrack(line, 0.01, 0.5, 0)
    assert line.coefficients == [1.0, 0.0]


def outcome(accepted=True, steps=1, first_mean_kl=0.01):
    return LineSearch(accepted, 1.0, steps, 0.0, 0.0, first_mean_kl, first_mean_kl)


@pytest.mark.parametrize(
    ("search", "change"),
    [
        (outcome(), 1 / 1.5),
        (outcome(first_mean_kl=0.0119), 1 / 1.5),
        (outcome(first_mean_kl=0.0081), 1 / 1.5),
        (outcome(first_mean_kl=0.0079), 1.0),
        (outcome(first_mean_kl=0.0125), 1.0),
        (outcome(first_mean_kl=0.0149), 1.0),
        (outcome(first_mean_kl=0.0151), 1.5),
        (outcome(first_mean_kl=0.005), 1.0),
        (outcome(steps=2), 1.0),
        (outcome(first_mean_kl=0.016), 1.5),
        (outcome(first_mean_kl=math.nan), 1.5),
        (outcome(accepted=False), 1.5),
    ],
)
def test_damping_follows_how_well_the_model_predicts_the_kl(search, change):
    assert adapted_damping_factor(1.0, search, 0.01) == pytest.approx(change)


def test_step_that_was_predicted_to_cost_nothing_is_damped_more():
    assert adapted_damping_factor(1.0, outcome(first_mean_kl=0.0), 0.0) == 1.5


def test_damping_factor_is_bounded():
    factor = 1.0
    for _ in range(100):
        factor = adapted_damping_factor(factor, outcome(accepted=False), 0.01)
    assert factor == 1e4
    for _ in range(200):
        factor = adapted_damping_factor(factor, outcome(), 0.01)
    assert factor == 1e-4


def test_line_search_takes_the_limit_itself_and_asks_for_more_than_nothing():
    """A KL at its limit will do; a surrogate that stays as it is, as on a plateau, will not."""
    search = backtrack(Scripted(Evaluation(0.0, 1.0, 0.01)), 0.01, 0.5, 1)
    assert (search.accepted, search.mean_kl) == (True, 0.01)
    assert not backtrack(Scripted(Evaluation(0.5, 0.5, 0.0)), 0.01, 0.5, 1).accepted


def test_kl_of_the_full_step_is_what_the_damping_is_told():
    line = Scripted(Evaluation(0.0, 1.0, 0.04), Evaluation(0.0, 1.0, 0.02), Evaluation(0.0, 1.0, 0.005))
    search = backtrack(line, 0.01, 0.5, 3)
    assert (search.steps, search.mean_kl, search.first_mean_kl) == (3, 0.005, 0.04)


def test_radius_that_a_schedule_makes_negative_is_a_step_of_no_length():
    assert TrustRegion(lambda progress: 0.01 * (progress - 1.0)).length(0.5)(th.ones(())) == 0.0
