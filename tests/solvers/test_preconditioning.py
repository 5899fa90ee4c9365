"""Conjugate gradient with a preconditioner, a warm start, or momentum."""

from typing import Any

import pytest
import torch as th

from sb3_npg.local_problem import LocalProblem
from sb3_npg.numerics import NumericalFailure
from sb3_npg.solvers import make_fisher_solver
from sb3_npg.solvers.conjugate_gradient import PRECONDITIONERS
from sb3_npg.solvers.direction import find_direction
from tests.cases import make_problem
from tests.networks import freeze_problem, make_network_policy, make_observations
from tests.reference import relative_error

pytestmark = pytest.mark.usefixtures("float64")

CONVERGED = {"max_steps": 1000, "rtol": 1e-12}
DAMPING = 0.05
each_preconditioner = pytest.mark.parametrize("preconditioner", PRECONDITIONERS)


def damped(problem: LocalProblem, damping: float = DAMPING) -> th.Tensor:
    fisher = problem.dense_fisher()
    return fisher + damping * th.eye(len(fisher), dtype=fisher.dtype)


def solve(solver: Any, problem: LocalProblem, gradient: th.Tensor | None = None, damping: float = DAMPING) -> Any:
    solver.update(problem)
    return solver.solve(problem, problem.surrogate_gradient() if gradient is None else gradient, damping)


# Preconditioners


@each_preconditioner
def test_stopped_early_is_nearer_in_the_norm_that_it_minimises(preconditioner):
    """A few steps with a preconditioner come nearer than without, where the curvature of layers is far apart."""
    policy = make_network_policy(lambda: th.nn.Sequential(th.nn.Linear(3, 6), th.nn.Tanh()), (3,), net_arch=[6])
    with th.no_grad():
        policy.action_net.weight.mul_(0.03)
        policy.log_std.fill_(-1.0)
    problem = freeze_problem(policy, make_observations((3,), 60))
    gradient, damping = problem.surrogate_gradient(), 1e-6
    matrix = damped(problem, damping)
    expected = th.linalg.solve(matrix, gradient)

    def error(**kwargs: Any) -> float:
        solver = make_fisher_solver("cg", {"max_steps": 8, "rtol": 0.0, **kwargs})
        wrong = solve(solver, problem, gradient, damping).natural_gradient - expected
        return float(wrong @ matrix @ wrong)

    assert error(preconditioner=preconditioner) < 0.5 * error()


@pytest.mark.parametrize("preconditioner", ["kfac", "ekfac"])
def test_preconditioner_that_is_exact_ends_in_one_step_for_each_block(preconditioner):
    """For a linear Gaussian policy of one layer K-FAC is F."""
    policy = make_network_policy(th.nn.Flatten, (3,))
    problem = freeze_problem(policy, make_observations((3,), 20))
    kwargs = {"rtol": 1e-8, "preconditioner": preconditioner}
    solution = solve(make_fisher_solver("cg", kwargs), problem)
    assert solution.stats["steps"] == 1.0
    assert solution.stats["condition"] == pytest.approx(1.0, abs=1e-6)
    plain = solve(make_fisher_solver("cg", {"rtol": 1e-8}), problem)
    assert plain.stats["steps"] > 2.0


@each_preconditioner
def test_preconditioner_is_of_the_newest_rollout(preconditioner):
    first, second = (make_problem("categorical", "Mlp", 12, seed) for seed in range(2))
    ours, fresh = (
        make_fisher_solver("cg", {"max_steps": 2, "rtol": 0.0, "preconditioner": preconditioner}) for _ in range(2)
    )
    solve(ours, first)
    assert th.equal(solve(ours, second).natural_gradient, solve(fresh, second).natural_gradient)


def test_preconditioner_takes_its_own_arguments():
    kwargs = {"decay": 0.5, "columns": "sampled"}
    solver: Any = make_fisher_solver("cg", {"preconditioner": "kfac", "preconditioner_kwargs": kwargs})
    assert (solver.preconditioner.decay, solver.preconditioner.columns) == (0.5, "sampled")


@each_preconditioner
def test_rank_of_the_fisher_bounds_the_steps(preconditioner):
    """F of two rows and three logits each has rank 4 at most, and M = F̂ + λI is one for both."""
    problem = make_problem("categorical", "Mlp", 2)
    solver = make_fisher_solver("cg", {"max_steps": 100, "rtol": 1e-9})
    rank = int(th.linalg.matrix_rank(problem.dense_fisher(), hermitian=True, rtol=1e-10))
    assert rank <= 6
    assert solve(solver, problem).stats["steps"] <= rank + 1
    solver = make_fisher_solver("cg", {"max_steps": 100, "rtol": 1e-9, "preconditioner": preconditioner})
    assert solve(solver, problem).stats["steps"] <= len(problem.vector)


@each_preconditioner
def test_condition_is_that_of_the_preconditioned_system(preconditioner):
    problem = make_problem("Gaussian", "Mlp", 20)
    kwargs = {"max_steps": 500, "rtol": 1e-13, "preconditioner": preconditioner}
    solver: Any = make_fisher_solver("cg", kwargs)
    found = solve(solver, problem).stats["condition"]
    units = th.eye(len(problem.vector), dtype=th.float64)
    inverse = th.stack([solver.preconditioner.apply_inverse(unit, DAMPING) for unit in units], dim=1)
    eigenvalues = th.linalg.eigvals(inverse @ damped(problem)).real
    true = float(eigenvalues.max() / eigenvalues.min())
    assert 1.0 < found <= true * (1.0 + 1e-6)
    assert found > 0.5 * true


# Momentum


def test_momentum_of_zero_is_plain():
    problems = [make_problem("Gaussian", "Mlp", 10, seed) for seed in range(3)]
    plain, other = make_fisher_solver("cg"), make_fisher_solver("cg", {"momentum": 0.0})
    for problem in problems:
        one, two = (solve(solver, problem) for solver in (plain, other))
        assert th.equal(one.natural_gradient, two.natural_gradient)
        assert one.stats == two.stats


@pytest.mark.parametrize("preconditioner", [None, "kfac"])
@pytest.mark.parametrize("momentum", [0.3, 0.9])
def test_momentum_carries_over_what_the_rollout_does_not_determine(momentum, preconditioner):
    """(F + λI) x = g + λμ x₋, several updates in a row. Goldshlager et al. (2024), section 3."""
    solver = make_fisher_solver("cg", {**CONVERGED, "momentum": momentum, "preconditioner": preconditioner})
    previous = None
    for seed in range(4):
        problem = make_problem("categorical", "Mlp", 5, seed)
        gradient = problem.surrogate_gradient()
        right = gradient if previous is None else gradient + DAMPING * momentum * previous
        expected = th.linalg.solve(damped(problem), right)
        solution = solve(solver, problem, gradient)
        assert relative_error(solution.natural_gradient, expected) < 1e-8
        previous = expected


def test_momentum_is_a_projection_in_the_space_of_samples():
    """x = μx₋ + Jᵀ(JJᵀ + NλI)⁻¹(Â − μJx₋) for g = JᵀÂ/N: the form in which SPRING is published."""
    n, p, momentum = 4, 9, 0.7
    jacobians = [th.randn(n, p, dtype=th.float64) for _ in range(3)]
    solver, previous = make_fisher_solver("cg", {**CONVERGED, "momentum": momentum}), th.zeros(p, dtype=th.float64)
    for jacobian in jacobians:
        advantages = th.randn(n, dtype=th.float64)

        class Sampled:
            scale = 1.0

            def fisher_vector_product(self, vector, jacobian=jacobian):
                return jacobian.T @ (jacobian @ vector) / n

        kernel = jacobian @ jacobian.T + n * DAMPING * th.eye(n, dtype=th.float64)
        pulled = th.linalg.solve(kernel, advantages - momentum * jacobian @ previous)
        expected = momentum * previous + jacobian.T @ pulled
        solver.update(Sampled())
        found = solver.solve(Sampled(), jacobian.T @ advantages / n, DAMPING).natural_gradient
        assert relative_error(found, expected) < 1e-8
        previous = found


@pytest.mark.parametrize("kwargs", [{"momentum": 0.9}, {"warm_start": True}], ids=str)
def test_solves_of_one_update_share_what_they_start_from(kwargs):
    """A retry with more damping must not take the failed solution for the last update's."""
    problems = [make_problem("Gaussian", "Mlp", 10, seed) for seed in range(2)]
    once, again = (make_fisher_solver("cg", {**kwargs, "max_steps": 4, "rtol": 0.0}) for _ in range(2))
    for solver in (once, again):
        solve(solver, problems[0])
    gradient = problems[1].surrogate_gradient()
    solve(again, problems[1], gradient, 0.01)
    retried = again.solve(problems[1], gradient, 1.0).natural_gradient
    assert th.equal(retried, solve(once, problems[1], gradient, 1.0).natural_gradient)


@pytest.mark.parametrize("kwargs", [{"momentum": 0.9}, {"warm_start": True}], ids=str)
def test_memory_of_other_parameters_is_not_used(kwargs):
    solver = make_fisher_solver("cg", {**CONVERGED, **kwargs})
    solve(solver, make_problem("Gaussian", "Mlp", 10))
    problem = make_problem("Gaussian", "Mlp, net_arch=[]", 10)
    expected = th.linalg.solve(damped(problem), problem.surrogate_gradient())
    assert relative_error(solve(solver, problem).natural_gradient, expected) < 1e-8


@pytest.mark.parametrize("kwargs", [{"momentum": 0.9}, {"warm_start": True}], ids=str)
def test_update_that_failed_leaves_nothing_to_trip_over(kwargs):
    class NoNumbers:
        scale = 1.0

        def fisher_vector_product(self, vector):
            return vector * float("nan")

    first, last = (make_problem("Gaussian", "Mlp", 10, seed) for seed in range(2))
    solver = make_fisher_solver("cg", {**CONVERGED, **kwargs})
    solve(solver, first)
    with pytest.raises(NumericalFailure):
        find_direction(solver, NoNumbers(), first.surrogate_gradient(), DAMPING)
    assert all(bool(th.isfinite(tensor).all()) for tensor in solver.memory.tensors.values())
    direction = find_direction(solver, last, last.surrogate_gradient(), DAMPING)
    assert direction.damping == DAMPING
    if "warm_start" in kwargs:
        expected = th.linalg.solve(damped(last), last.surrogate_gradient())
        assert relative_error(direction.natural_gradient, expected) < 1e-8


def test_momentum_with_relative_damping_is_of_the_natural_gradient_itself():
    """(F + Λ) x = g + μΛ x₋ with x₋ in the parameters' own coordinates."""
    solver, momentum, previous = make_fisher_solver("cg", {**CONVERGED, "momentum": 0.8}), 0.8, None
    for seed in range(3):
        problem = make_problem("categorical", "Mlp", 6, seed)
        fisher, gradient = problem.dense_fisher(), problem.surrogate_gradient()
        damping = th.empty(len(fisher), dtype=th.float64)
        for block in problem.layers.blocks:
            mean = block.gather(fisher.diagonal()).mean()
            block.scatter(DAMPING * mean.expand(block.shape).clone(), damping)
        right = gradient if previous is None else gradient + momentum * damping * previous
        expected = th.linalg.solve(fisher + th.diag(damping), right)
        direction = find_direction(solver, problem, gradient, DAMPING, relative=True)
        assert relative_error(direction.natural_gradient, expected) < 1e-8
        previous = expected


# Warm start


def test_warm_start_leads_to_the_same_solution():
    solver = make_fisher_solver("cg", {**CONVERGED, "warm_start": True})
    for seed in range(3):
        problem = make_problem("categorical", "Mlp", 8, seed)
        expected = th.linalg.solve(damped(problem), problem.surrogate_gradient())
        assert relative_error(solve(solver, problem).natural_gradient, expected) < 1e-8


def test_warm_start_near_the_solution_takes_fewer_steps():
    problem = make_problem("Gaussian", "Mlp", 30)
    kwargs = {"max_steps": 200, "rtol": 1e-4}
    cold, warm = make_fisher_solver("cg", kwargs), make_fisher_solver("cg", {**kwargs, "warm_start": True})
    gradient = problem.surrogate_gradient()
    first = solve(warm, problem, gradient)
    near = gradient + 1e-3 * gradient.norm() * th.randn_like(gradient) / len(gradient) ** 0.5
    assert first.stats["steps"] == solve(cold, problem, gradient).stats["steps"]
    assert solve(warm, problem, near).stats["steps"] < 0.7 * solve(cold, problem, near).stats["steps"]
    assert solve(warm, problem, near).stats["steps"] == 0.0


def test_natural_gradient_of_the_update_before_costs_no_update():
    """Where x₋ is long and points downhill, g + λμx₋ does too: more damping leads to μx₋, and must lead to g."""

    class Flat:
        scale = 1.0

        def fisher_vector_product(self, vector):
            return 0.01 * vector

    gradient = th.ones(5, dtype=th.float64)
    solver = make_fisher_solver("cg", {**CONVERGED, "momentum": 0.9})
    find_direction(solver, Flat(), -100.0 * gradient, DAMPING)
    direction = find_direction(solver, Flat(), gradient, DAMPING)
    assert direction.slope > 0.0


def test_momentum_starts_at_its_part_of_the_natural_gradient_of_the_update_before():
    """Where μx₋ is the solution, as for g = μFx₋, there is no step to take."""
    problem = make_problem("Gaussian", "Mlp", 10)
    solver = make_fisher_solver("cg", {"max_steps": 100, "rtol": 1e-6, "momentum": 0.5})
    start = 0.5 * solve(solver, problem).natural_gradient
    solution = solve(solver, problem, problem.fisher_vector_product(start))
    assert solution.stats["steps"] == 0.0
    assert th.equal(solution.natural_gradient, start)


def test_warm_start_with_relative_damping_is_at_the_natural_gradient_itself():
    problem = make_problem("Gaussian", "Mlp", 30)
    solver = make_fisher_solver("cg", {"max_steps": 200, "rtol": 1e-4, "warm_start": True})
    gradient = problem.surrogate_gradient()
    first, second = (find_direction(solver, problem, gradient, DAMPING, relative=True).stats for _ in range(2))
    assert first["steps"] > 0.0 == second["steps"]


class Flat:
    """A curvature of nearly nothing."""

    scale = 1.0

    def fisher_vector_product(self, vector):
        return 1e-30 * vector


@pytest.mark.parametrize("kwargs", [{"momentum": 0.9}, {"warm_start": True}], ids=str)
def test_natural_gradient_that_overflows_is_not_carried_over(kwargs):
    solver = make_fisher_solver("cg", {**CONVERGED, **kwargs})
    x = solve(solver, Flat(), th.full((5,), 1e10, dtype=th.float32), 0.0).natural_gradient
    assert not bool(x.isfinite().any())
    assert not solver.memory.tensors


def test_what_was_carried_over_is_left_out_where_it_points_downhill():
    problem = make_problem("Gaussian", "Mlp", 10)
    gradient, solver = problem.surrogate_gradient(), make_fisher_solver("cg", {**CONVERGED, "momentum": 0.9})
    solver.memory.tensors["latest"] = -1e3 * gradient
    solution = solve(solver, problem, gradient)
    assert relative_error(solution.natural_gradient, th.linalg.solve(damped(problem), gradient)) < 1e-8
