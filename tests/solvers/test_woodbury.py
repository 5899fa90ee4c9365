"""The Fisher of the actions taken, inverted among the samples."""

from unittest.mock import Mock

import pytest
import torch as th

from sb3_npg.solvers import make_fisher_solver, woodbury
from tests.cases import DISTRIBUTIONS, make_problem
from tests.networks import make_network_problem
from tests.reference import relative_error, scores

pytestmark = pytest.mark.usefixtures("float64")


def sampled(problem) -> th.Tensor:
    rows = scores(problem.policy, problem.observations, problem.actions, problem.parameters)
    return rows.T @ rows / len(rows)


def solve(problem, gradient, damping, **kwargs):
    solver = make_fisher_solver("woodbury", kwargs)
    solver.update(problem)
    return solver.solve(problem, gradient, damping)


@pytest.mark.parametrize("damping", [1e-6, 1e-2, 10.0])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_solution_equals_a_dense_solve_of_the_sampled_fisher(distribution, damping):
    """Fewer rows than parameters, and any right-hand side: one in the scores' span and one outside."""
    problem = make_problem(distribution, "Mlp", 6)
    fisher = sampled(problem)
    matrix = fisher + damping * th.eye(len(fisher), dtype=th.float64)
    for gradient in (problem.surrogate_gradient(), th.randn(len(fisher), dtype=th.float64)):
        x = solve(problem, gradient, damping).natural_gradient
        assert relative_error(x, th.linalg.solve(matrix, gradient)) < 1e-8


def test_more_rows_than_parameters_do_well():
    problem = make_problem("categorical", "Mlp, net_arch=[]", 80)
    fisher, gradient = sampled(problem), problem.surrogate_gradient()
    assert len(fisher) < 80
    matrix = fisher + 0.01 * th.eye(len(fisher), dtype=th.float64)
    assert relative_error(solve(problem, gradient, 0.01).natural_gradient, th.linalg.solve(matrix, gradient)) < 1e-8


def test_condition_is_bounded_by_the_true_one():
    """The ratio of the pivots never exceeds that of the eigenvalues of JJᵀ + NλI."""
    problem = make_problem("categorical", "Mlp", 6)
    rows = scores(problem.policy, problem.observations, problem.actions, problem.parameters)
    matrix = rows @ rows.T + 6 * 0.01 * th.eye(6, dtype=th.float64)
    eigenvalues, pivots = th.linalg.eigvalsh(matrix), th.linalg.cholesky(matrix).diagonal().square()
    condition = solve(problem, problem.surrogate_gradient(), 0.01).stats["condition"]
    assert 1.0 < condition <= float(eigenvalues[-1] / eigenvalues[0])
    assert condition == pytest.approx(float(pivots.max() / pivots.min()), rel=1e-8)


def test_sampled_fisher_is_the_expected_one_on_average():
    """Many rows of one state: the mean over actions. In a single row it is far off."""
    few = make_problem("categorical", "Mlp", 2)
    observations = few.observations.repeat(1500, 1)
    th.manual_seed(0)
    actions = few.policy.get_distribution(observations).sample()
    many = type(few)(few.policy, observations, actions, few.advantages.repeat(1500))
    gradient, damping = few.surrogate_gradient(), 0.1
    expected = make_fisher_solver("exact").solve(few, gradient, damping).natural_gradient
    assert relative_error(solve(few, gradient, damping).natural_gradient, expected) > 0.1
    assert relative_error(solve(many, gradient, damping).natural_gradient, expected) < 0.1


@pytest.mark.parametrize("network", ["two convolutions", "at every position", "used twice", "shared weight"])
def test_pieces_of_many_positions_change_nothing(network, monkeypatch):
    problem = make_network_problem(network, "categorical", 5)
    gradient = problem.surrogate_gradient()
    whole = solve(problem, gradient, 0.1).natural_gradient
    monkeypatch.setattr(woodbury, "LARGEST_TEMPORARY", 1)  # one output at a time
    assert relative_error(solve(problem, gradient, 0.1).natural_gradient, whole) < 1e-10


def test_sub_sampled_rows_are_those_of_the_fisher():
    problem = make_problem("categorical", "Mlp", 9, sub_sampling_factor=2)
    rows = scores(problem.policy, problem.observations[::2], problem.actions[::2], problem.parameters)
    matrix = rows.T @ rows / 5 + 0.1 * th.eye(rows.shape[1], dtype=th.float64)
    gradient = problem.surrogate_gradient()
    assert relative_error(solve(problem, gradient, 0.1).natural_gradient, th.linalg.solve(matrix, gradient)) < 1e-8


def test_there_is_no_inverse_without_damping():
    problem = make_problem("categorical", "Mlp", 5)
    with pytest.raises(ArithmeticError, match="damping"):
        solve(problem, problem.surrogate_gradient(), 0.0)


def test_rollout_that_does_not_fit_is_refused():
    solver = make_fisher_solver("woodbury", {"max_rows": 10})
    solver.check_size(10**9, 10)
    with pytest.raises(ValueError, match=r"`fisher_solver`='woodbury'.*11 × 11 rows.*`sub_sampling_factor`"):
        solver.check_size(10, 11)


@pytest.mark.parametrize("distribution", ["Gaussian", "categorical"])
def test_scores_of_single_precision_are_multiplied_in_double(distribution):
    """Records and blocks that are formed, log_std's among them, are float32 where the policy is."""
    problem = make_problem(distribution, "Mlp", 6)
    plain = woodbury.Scores(problem.layers)
    records, scores_of = problem.layers.records, problem.layers.scores
    single = Mock(wraps=problem.layers, blocks=problem.layers.blocks, n_rows=problem.layers.n_rows)
    single.records = lambda columns: (
        [each._replace(inputs=each.inputs.float(), deltas=each.deltas.float()) for each in chunk]
        for chunk in records(columns)
    )
    single.scores = lambda block: scores_of(block).float()
    found = woodbury.Scores(single)
    assert found.gram().dtype == th.float64
    assert found.push(th.ones(len(problem.vector), dtype=th.float64)).dtype == th.float64
    assert relative_error(found.gram(), plain.gram()) < 1e-5


def test_failure_to_measure_leaves_no_system_of_an_earlier_rollout(monkeypatch):
    first, second = make_problem("categorical", "Mlp", 5), make_problem("categorical", "Mlp", 5, seed=1)
    solver = make_fisher_solver("woodbury")
    solver.update(first)
    with monkeypatch.context() as patch:
        patch.setattr(woodbury.Scores, "gram", Mock(side_effect=ArithmeticError("no product")))
        with pytest.raises(ArithmeticError, match="no product"):
            solver.update(second)
    gradient = second.surrogate_gradient()
    expected = solve(second, gradient, 0.1).natural_gradient
    assert th.equal(solver.solve(second, gradient, 0.1).natural_gradient, expected)
