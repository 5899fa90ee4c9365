"""What every Fisher solver does, whichever it is."""

import pytest
import torch as th

from sb3_npg.solvers import FISHER_SOLVERS, make_fisher_solver
from tests.cases import make_problem

pytestmark = pytest.mark.usefixtures("float64")

#: Settings under which a solver solves its system to the last digit.
CONVERGED = {"cg": {"max_steps": 500, "rtol": 1e-13}}
DAMPING = 0.05
each_solver = pytest.mark.parametrize("name", FISHER_SOLVERS)


def solve(name, problem, gradient, damping=DAMPING):
    solver = make_fisher_solver(name, CONVERGED.get(name))
    solver.update(problem)
    return solver.solve(problem, gradient, damping)


@pytest.mark.parametrize("distribution", ["Gaussian", "gSDE", "categorical", "multi-categorical", "Bernoulli"])
@each_solver
def test_solution_equals_a_dense_solve_of_its_own_matrix(name, distribution):
    problem = make_problem(distribution, "Mlp", 20)
    gradient = problem.surrogate_gradient()
    identity = th.eye(len(gradient), dtype=th.float64)
    matrix = {"identity": identity}.get(name, problem.dense_fisher() + DAMPING * identity)
    expected = th.linalg.solve(matrix, gradient)
    th.testing.assert_close(solve(name, problem, gradient).natural_gradient, expected, rtol=1e-8, atol=1e-10)


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


@each_solver
def test_state_survives_a_round_trip(name):
    problem = make_problem("Gaussian", "Mlp", 20)
    gradient = problem.surrogate_gradient()
    solver, twin = (make_fisher_solver(name, CONVERGED.get(name)) for _ in range(2))
    solver.update(problem)
    twin.load_state_dict(solver.state_dict())
    twin.update(problem)
    assert th.equal(*(one.solve(problem, gradient, DAMPING).natural_gradient for one in (solver, twin)))


@each_solver
def test_float32_is_close_to_float64(name):
    problem = make_problem("Gaussian", "Mlp", 20)
    gradient = problem.surrogate_gradient()
    expected = solve(name, problem, gradient).natural_gradient

    class Narrow:
        def fisher_vector_product(self, vector):
            return problem.fisher_vector_product(vector.double()).float()

        def dense_fisher(self):
            return problem.dense_fisher().float()

    solver = make_fisher_solver(name, {"max_steps": 100, "rtol": 1e-6} if name == "cg" else None)
    solver.update(Narrow())
    x = solver.solve(Narrow(), gradient.float(), DAMPING).natural_gradient
    assert x.dtype == th.float32
    assert float((x.double() - expected).norm() / expected.norm()) < 1e-4


def test_exact_solver_leaves_the_fisher_it_formed_as_it_was():
    problem = make_problem("Gaussian", "Mlp", 20)
    gradient = problem.surrogate_gradient()
    solver = make_fisher_solver("exact")
    solver.update(problem)
    first = solver.solve(problem, gradient, 0.1).natural_gradient
    solver.solve(problem, gradient, 10.0)
    assert th.equal(solver.solve(problem, gradient, 0.1).natural_gradient, first)


def test_exact_solver_reports_a_singular_matrix():
    problem = make_problem("Gaussian", "Mlp", 2)  # 2 rows: rank far below p
    gradient = problem.surrogate_gradient()
    with pytest.raises(ArithmeticError, match="not positive definite"):
        solve("exact", problem, gradient, damping=-1.0)


def test_exact_solver_refuses_what_does_not_fit():
    solver = make_fisher_solver("exact", {"max_parameters": 10})
    solver.check_size(10)
    with pytest.raises(ValueError, match=r"`fisher_solver`='exact'.*11 acting parameters.*fisher_solver='cg'"):
        solver.check_size(11)
