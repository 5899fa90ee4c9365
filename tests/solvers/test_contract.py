"""What every Fisher solver does, whichever it is: the registered ones, and one that a user registers."""

import functools
import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch as th
from gymnasium import spaces

from sb3_npg.fisher import LayerRecord, layer_blocks
from sb3_npg.local_problem import LocalProblem
from sb3_npg.solvers import FISHER_SOLVERS, FisherSolver, make_fisher_solver
from tests.cases import DISTRIBUTIONS, POLICIES, DistributionCase, make_problem
from tests.networks import NETWORKS, expected_layers, make_network_problem
from tests.reference import (
    Curvature,
    Layer,
    curvature,
    ekfac_matrix,
    kfac_matrix,
    relative_error,
    scores,
    single_layers,
)

pytestmark = [
    pytest.mark.usefixtures("float64", "custom_solver"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

DAMPING = 0.05
#: What examples/custom_solver.py registers.
A_USERS_OWN = "nystrom"


class Case(NamedTuple):
    """A policy update, and its curvature by the slow reference."""

    problem: LocalProblem
    exact: Curvature
    layers: list[Layer]

    @property
    def gradient(self) -> th.Tensor:
        return self.problem.surrogate_gradient()


def make_case(problem: LocalProblem, layers: list[Layer]) -> Case:
    policy, observations, n = problem.policy, problem.observations, problem.n_rows
    return Case(problem, curvature(policy, observations, n, problem.parameters, layers), layers)


@functools.cache
def policy_case(distribution: str, policy: str) -> Case:
    problem = make_problem(distribution, policy, 3)
    return make_case(problem, single_layers(problem.policy, problem.parameters))


@functools.cache
def network_case(name: str, distribution: str) -> Case:
    problem = make_network_problem(name, distribution, 3)
    return make_case(problem, expected_layers(problem, name))


# What each solver takes for F


def sampled(case: Case) -> th.Tensor:
    problem = case.problem
    rows = scores(problem.policy, problem.observations, problem.actions, problem.parameters)
    return rows.T @ rows / len(rows)


def in_the_solvers_eigenbasis(case: Case, solver: Any) -> th.Tensor:
    """
    Return EKFAC's matrix. Where eigenvalues are equal there are many eigenbases: the solver's is taken, once it
    is shown to be one.
    """
    names = {
        block.gather(th.arange(len(case.exact.fisher)))[0, 0].item(): block.name
        for block in layer_blocks(case.problem.layers.blocks)
    }
    bases = []
    for layer in case.exact.layers:
        name = names[layer.index[0, 0].item()]
        bases.append(tuple(solver.memory.eigen(f"{name}.{factor}").vectors for factor in "AG"))
        for q, factor in zip(bases[-1], layer.factors[solver.weight_sharing], strict=True):
            th.testing.assert_close(q.T @ q, th.eye(len(q), dtype=th.float64), rtol=0.0, atol=1e-10)
            rotated = q.T @ factor @ q
            th.testing.assert_close(rotated, th.diag(rotated.diagonal()), rtol=0.0, atol=1e-8 * float(factor.norm()))
    return ekfac_matrix(case.exact, bases)


#: By the solver's name in the registry. A solver that is not here fails the contract: give it a matrix.
MATRICES: dict[str, Callable[[Case, Any], th.Tensor]] = {
    A_USERS_OWN: lambda case, solver: case.exact.fisher,
    "cg": lambda case, solver: case.exact.fisher,
    "diagonal": lambda case, solver: th.diag(case.exact.fisher.diagonal()),
    "ekfac": in_the_solvers_eigenbasis,
    "exact": lambda case, solver: case.exact.fisher,
    "identity": lambda case, solver: (1.0 - DAMPING) * th.eye(len(case.exact.fisher), dtype=th.float64),
    "kfac": lambda case, solver: kfac_matrix(case.exact, solver.weight_sharing),
    "woodbury": lambda case, solver: sampled(case),
}
_CONVERGED = {"max_steps": 500, "rtol": 1e-12}
CONVERGED_KWARGS: dict[str, dict[str, Any]] = {"cg": _CONVERGED, A_USERS_OWN: {"rank": 1000}}
REGISTERED = (*FISHER_SOLVERS, A_USERS_OWN)
#: A name in the registry, and settings under which the solver solves its system to the last digit.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, CONVERGED_KWARGS.get(name, {})) for name in REGISTERED},
    **{f"cg, {name}": ("cg", {**_CONVERGED, "preconditioner": name}) for name in ("diagonal", "ekfac", "kfac")},
    "cg, warm start": ("cg", {**_CONVERGED, "warm_start": True}),
    "cg, momentum": ("cg", {**_CONVERGED, "momentum": 0.5}),
    "cg, kfac with memory": ("cg", {**_CONVERGED, "preconditioner": "kfac", "preconditioner_kwargs": {"decay": 0.9}}),
    "diagonal, averaged": ("diagonal", {"decay": 0.9, "statistics_interval": 2}),
    "kfac, averaged": ("kfac", {"decay": 0.9, "statistics_interval": 2, "inverse_interval": 3}),
    "ekfac, averaged": ("ekfac", {"decay": 0.9, "statistics_interval": 2, "inverse_interval": 3}),
    "kfac, one column": ("kfac", {"columns": "propagated"}),
    "kfac, reduce": ("kfac", {"weight_sharing": "reduce"}),
    "ekfac, reduce": ("ekfac", {"weight_sharing": "reduce"}),
}
each_solver = pytest.mark.parametrize("name", SETTINGS)
#: The solvers that see layers, in all their forms.
LAYERED = ("diagonal", "ekfac", "ekfac, reduce", "kfac", "kfac, reduce", "woodbury")


def make(name: str) -> FisherSolver:
    registered, kwargs = SETTINGS[name]
    return make_fisher_solver(registered, kwargs)


def solve(name, problem, gradient, damping=DAMPING):
    solver = make(name)
    solver.update(problem)
    return solver.solve(problem, gradient, damping)


def assert_solves_its_own_system(name: str, case: Case) -> None:
    gradient, solver = case.gradient, make(name)
    solver.update(case.problem)
    x = solver.solve(case.problem, gradient, DAMPING).natural_gradient
    matrix = MATRICES[SETTINGS[name][0]](case, solver)
    expected = th.linalg.solve(matrix + DAMPING * th.eye(len(matrix), dtype=th.float64), gradient)
    assert relative_error(x, expected) < 1e-8


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", REGISTERED)
def test_solution_equals_a_dense_solve_of_its_own_matrix(name, distribution, policy):
    assert_solves_its_own_system(name, policy_case(distribution, policy))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in REGISTERED and "one column" not in name])
def test_solution_equals_a_dense_solve_whatever_the_settings(name, distribution):
    assert_solves_its_own_system(name, policy_case(distribution, "Cnn"))


@pytest.mark.parametrize("distribution", ["Gaussian", "categorical"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", LAYERED)
def test_solution_equals_a_dense_solve_whatever_the_layers(name, network, distribution):
    assert_solves_its_own_system(name, network_case(network, distribution))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_sampled_solution_is_ridge_regression_of_the_advantages_on_the_scores(distribution):
    """For g = JᵀÂ/N: x = Jᵀ(JJᵀ + NλI)⁻¹ Â. Kakade (2001), section 3."""
    problem = policy_case(distribution, "Mlp").problem
    rows = scores(problem.policy, problem.observations, problem.actions, problem.parameters)
    n = len(rows)
    gradient = rows.T @ problem.advantages / n
    kernel = rows @ rows.T + n * DAMPING * th.eye(n, dtype=th.float64)
    expected = rows.T @ th.linalg.solve(kernel, problem.advantages)
    assert relative_error(solve("woodbury", problem, gradient).natural_gradient, expected) < 1e-8
    assert relative_error(problem.surrogate_gradient(), gradient) < 1e-8


@each_solver
def test_solution_is_linear_in_the_gradient_and_zero_for_zero(name):
    problem = make_problem("Gaussian", "Mlp", 20)
    gradient = problem.surrogate_gradient()
    x = solve(name, problem, gradient).natural_gradient
    th.testing.assert_close(solve(name, problem, -3.0 * gradient).natural_gradient, -3.0 * x, rtol=1e-8, atol=1e-10)
    assert not solve(name, problem, th.zeros_like(gradient)).natural_gradient.any()


@each_solver
def test_solution_ascends(name):
    problem = make_problem("categorical", "Cnn", 20)
    gradient = problem.surrogate_gradient()
    assert float(gradient @ solve(name, problem, gradient).natural_gradient) > 0


@each_solver
def test_huge_damping_leaves_the_gradients_direction(name):
    problem = make_problem("Gaussian", "Mlp", 20)
    gradient = problem.surrogate_gradient()
    x = solve(name, problem, gradient, damping=1e9).natural_gradient
    assert float(th.nn.functional.cosine_similarity(x / x.norm(), gradient, dim=0)) == pytest.approx(1.0, abs=1e-9)


@each_solver
def test_equal_calls_give_equal_answers_and_leave_no_trace(name):
    problem = make_problem("gSDE", "Mlp", 20)
    gradient = problem.surrogate_gradient()
    before, state, original = problem.vector.get(), th.get_rng_state(), gradient.clone()
    first, second = (solve(name, problem, gradient).natural_gradient for _ in range(2))
    assert th.equal(first, second)
    assert th.equal(problem.vector.get(), before)
    assert th.equal(th.get_rng_state(), state)
    assert th.equal(gradient, original)
    assert all(parameter.grad is None for parameter in problem.policy.parameters())
    assert not any(module._forward_hooks for module in problem.policy.modules())


@each_solver
def test_solving_again_with_more_damping_changes_nothing_for_the_next(name):
    problem = make_problem("Gaussian", "Mlp", 20)
    gradient, solver = problem.surrogate_gradient(), make(name)
    solver.update(problem)
    first, more, again = (solver.solve(problem, gradient, damping).natural_gradient for damping in (0.1, 10.0, 0.1))
    assert th.equal(first, again)
    assert name == "identity" or not th.allclose(first, more)


@each_solver
def test_state_survives_a_round_trip(name):
    """A solver that is loaded between two updates goes on as the one that was saved."""
    problems = [make_problem("Gaussian", "Mlp", 8, seed) for seed in range(4)]
    gradients = [problem.surrogate_gradient() for problem in problems]
    solver, twin = make(name), make(name)
    for problem, gradient in zip(problems[:3], gradients[:3], strict=True):
        solver.update(problem)
        solver.solve(problem, gradient, DAMPING)
    file = io.BytesIO()
    th.save(solver.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(th.load(file, weights_only=True))
    answers = []
    for one in (solver, twin):
        one.update(problems[3])
        answers.append(one.solve(problems[3], gradients[3], DAMPING).natural_gradient)
    assert th.equal(*answers)


class NarrowLayers:
    """The layers of a policy update in float32."""

    def __init__(self, layers):
        self.layers, self.blocks, self.n_rows = layers, layers.blocks, layers.n_rows

    def records(self, *args):
        for records in self.layers.records(*args):
            yield [LayerRecord(block, inputs.float(), deltas.float()) for block, inputs, deltas in records]

    def dense_block(self, block):
        return self.layers.dense_block(block).float()

    def scores(self, block):
        return self.layers.scores(block).float()


class Narrow:
    """A policy update in float32."""

    scale = 1.0

    def __init__(self, problem):
        self.problem = problem

    def fisher_vector_product(self, vector):
        return self.problem.fisher_vector_product(vector.double()).float()

    def dense_fisher(self):
        return self.problem.dense_fisher().float()

    @property
    def layers(self):
        return NarrowLayers(self.problem.layers)


@each_solver
def test_float32_is_close_to_float64(name):
    problem = make_problem("Gaussian", "Mlp", 20)
    gradient = problem.surrogate_gradient()
    expected = solve(name, problem, gradient).natural_gradient
    registered, kwargs = SETTINGS[name]
    solver = make_fisher_solver(registered, {**kwargs, **({"rtol": 1e-6} if registered == "cg" else {})})
    solver.update(Narrow(problem))
    x = solver.solve(Narrow(problem), gradient.float(), DAMPING).natural_gradient
    assert x.dtype == th.float32
    assert relative_error(x.double(), expected) < 1e-4


def test_exact_solver_reports_a_singular_matrix():
    problem = make_problem("Gaussian", "Mlp", 2)  # 2 rows: rank far below p
    gradient = problem.surrogate_gradient()
    with pytest.raises(ArithmeticError, match="not positive definite"):
        solve("exact", problem, gradient, damping=-1.0)


def test_exact_solver_refuses_what_does_not_fit():
    solver = make_fisher_solver("exact", {"max_parameters": 10})
    solver.check_size(10, 1)
    with pytest.raises(ValueError, match=r"`fisher_solver`='exact'.*11 parameters.*fisher_solver='cg'"):
        solver.check_size(11, 1)


class Broken:
    """An update whose curvature cannot be measured."""

    scale = 1.0

    @property
    def layers(self):
        raise ArithmeticError

    dense_fisher = fisher_vector_product = lambda self, *_: self.layers


@pytest.mark.parametrize("name", ["diagonal", "kfac", "ekfac"])
def test_solver_whose_update_failed_says_so(name):
    problem = make_problem("Gaussian", "Mlp", 6)
    solver = make_fisher_solver(name)
    solver.update(problem)
    with pytest.raises(ArithmeticError):
        solver.update(Broken())
    with pytest.raises(ArithmeticError, match="update"):
        solver.solve(problem, problem.surrogate_gradient(), 0.1)


@pytest.mark.parametrize("name", ["exact", "woodbury"])
def test_update_that_failed_leaves_nothing_of_the_rollout_before(name):
    first, second = (make_problem("Gaussian", "Mlp", 6, seed) for seed in range(2))
    solver, fresh = (make_fisher_solver(name) for _ in range(2))
    gradient = second.surrogate_gradient()
    solver.update(first)
    with pytest.raises(ArithmeticError):
        solver.update(Broken())
    fresh.update(second)
    ours, expected = (one.solve(second, gradient, 0.1).natural_gradient for one in (solver, fresh))
    assert th.equal(ours, expected)


def test_condition_of_the_exact_solver_is_the_ratio_of_the_pivots():
    problem = make_problem("categorical", "Mlp", 6)
    matrix = problem.dense_fisher() + DAMPING * th.eye(len(problem.vector), dtype=th.float64)
    eigenvalues, pivots = th.linalg.eigvalsh(matrix), th.linalg.cholesky(matrix).diagonal().square()
    solver = make_fisher_solver("exact")
    solver.update(problem)
    condition = solver.solve(problem, problem.surrogate_gradient(), DAMPING).stats["condition"]
    assert 1.0 < condition <= float(eigenvalues[-1] / eigenvalues[0])
    assert condition == pytest.approx(float(pivots.max() / pivots.min()), rel=1e-8)


@pytest.mark.parametrize("name", ["diagonal", "kfac", "ekfac"])
def test_condition_of_a_fisher_of_zeros_is_infinite_without_damping(name, monkeypatch):
    monkeypatch.setitem(DISTRIBUTIONS, "single", DistributionCase(spaces.Discrete(1)))
    problem, solver = make_problem("single", "Mlp", 6), make_fisher_solver(name)
    solver.update(problem)
    gradient = th.ones(len(problem.vector), dtype=th.float64)
    assert solver.solve(problem, gradient, 0.0).stats["condition"] == math.inf
    assert solver.solve(problem, gradient, 1.0).stats["condition"] == 1.0
