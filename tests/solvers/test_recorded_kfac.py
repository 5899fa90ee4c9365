"""K-FAC that a GPU records once and replays: every update is that of its own rollout."""

import copy
import pickle

import pytest
import torch as th

from sb3_npg.linalg.cupy import CupyLinearAlgebra
from sb3_npg.solvers import make_fisher_solver
from sb3_npg.solvers.kfac import KFACSolver
from sb3_npg.solvers.scaling import ScaledProblem
from tests.cases import make_problem
from tests.linalg.emulator import COMPILER, EmulatedDevice, emulated_capture

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler"),
]


class Recorder:
    """Counts what is recorded."""

    def __init__(self):
        self.count = 0

    def __call__(self, run):
        self.count += 1
        return emulated_capture(run)


def solver_on(linalg, name="kfac", **kwargs):
    solver = make_fisher_solver(name, kwargs)
    solver.use(linalg)
    return solver


def assert_as_torch(solver, problem, damping, **kwargs):
    gradient, reference = problem.surrogate_gradient(), make_fisher_solver("kfac", kwargs)
    reference.update(problem)
    expected = reference.solve(problem, gradient, damping)
    found = solver.solve(problem, gradient, damping)
    th.testing.assert_close(found.natural_gradient, expected.natural_gradient, rtol=1e-7, atol=1e-10)
    assert found.stats["condition"] == pytest.approx(expected.stats["condition"], rel=1e-6)
    values, exact = solver.eigenvalues(), reference.eigenvalues()
    assert values.keys() == exact.keys()
    for name in exact:
        th.testing.assert_close(values[name].sort().values, exact[name].sort().values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("distribution", "largest_eigen"),
    [("Gaussian", 1024), ("Gaussian", 5), ("Gaussian", 0), ("gSDE", 1024), ("categorical", 0)],
)
def test_another_rollout_and_another_damping_record_nothing_anew(distribution, largest_eigen):
    recorder = Recorder()
    solver = solver_on(CupyLinearAlgebra(EmulatedDevice(), recorder), largest_eigen=largest_eigen)
    for seed, damping in ((0, 1.0), (1, 1.0), (2, 0.1)):
        problem = make_problem(distribution, "Mlp", 12, seed=seed)
        solver.update(problem)
        for stronger in (damping, 10.0 * damping):
            assert_as_torch(solver, problem, stronger, largest_eigen=largest_eigen)
    assert recorder.count == 2


def test_another_number_of_rows_is_recorded_anew():
    recorder = Recorder()
    solver = solver_on(CupyLinearAlgebra(EmulatedDevice(), recorder))
    for n_rows, count in ((12, 2), (20, 4), (20, 4), (12, 6)):
        problem = make_problem("Gaussian", "Mlp", n_rows)
        solver.update(problem)
        assert_as_torch(solver, problem, 0.1)
        assert recorder.count == count


def test_solvers_do_not_see_each_others_rollouts():
    linalg = CupyLinearAlgebra(EmulatedDevice(), emulated_capture)
    problems = [make_problem("Gaussian", "Mlp", 12, seed=seed) for seed in (0, 1)]
    solvers = [solver_on(linalg) for _ in problems]
    for solver, problem in zip(solvers, problems, strict=True):
        solver.update(problem)
    for solver, problem in zip(solvers, problems, strict=True):
        assert_as_torch(solver, problem, 0.1)


def test_a_solution_stays_when_the_next_one_is_found():
    problem = make_problem("Gaussian", "Mlp", 12)
    solver, gradient = solver_on(CupyLinearAlgebra(EmulatedDevice(), emulated_capture)), problem.surrogate_gradient()
    solver.update(problem)
    first = solver.apply_inverse(gradient, 0.1)
    kept = first.clone()
    assert not th.equal(solver.apply_inverse(-gradient, 0.1), kept)
    assert th.equal(first, kept)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda solver: pickle.loads(pickle.dumps(solver))])
def test_a_copy_has_to_see_a_rollout_first_and_leaves_the_original_alone(copied):
    problem, other = (make_problem("Gaussian", "Mlp", 12, seed=seed) for seed in (0, 1))
    solver = solver_on(CupyLinearAlgebra(EmulatedDevice(), emulated_capture))
    solver.update(problem)
    copy_of_it = copied(solver)
    with pytest.raises(ArithmeticError, match="update"):
        copy_of_it.solve(problem, problem.surrogate_gradient(), 0.1)
    copy_of_it.update(other)
    assert_as_torch(copy_of_it, other, 0.1)
    assert_as_torch(solver, problem, 0.1)


@pytest.mark.parametrize(
    ("name", "kwargs", "policy", "scale"),
    [
        ("kfac", {"decay": 0.5}, "Mlp", None),
        ("kfac", {"inverse_interval": 2}, "Mlp", None),
        ("kfac", {"columns": "propagated"}, "Mlp", None),
        ("kfac", {}, "Cnn", None),
        ("kfac", {}, "Mlp", 2.0),
        ("ekfac", {}, "Mlp", None),
    ],
    ids=["decay", "interval", "random columns", "convolutions", "scaled", "EKFAC"],
)
def test_what_is_more_than_one_rollouts_factors_is_not_recorded(name, kwargs, policy, scale):
    recorder = Recorder()
    solver = solver_on(CupyLinearAlgebra(EmulatedDevice(), recorder), name, **kwargs)
    problem = make_problem("Gaussian", policy, 12)
    gradient = problem.surrogate_gradient()
    solver.update(problem if scale is None else ScaledProblem(problem, th.full_like(gradient, scale)))
    assert bool(solver.apply_inverse(gradient, 0.1).isfinite().all())
    assert recorder.count == 0


def test_a_subclass_measures_as_it_says():
    class Doubled(KFACSolver):
        def _factors(self, layers):
            return {name: 2.0 * factor for name, factor in super()._factors(layers).items()}

    linalg, problem = CupyLinearAlgebra(EmulatedDevice(), emulated_capture), make_problem("Gaussian", "Mlp", 12)
    doubled, plain = Doubled(), solver_on(linalg)
    doubled.use(linalg)
    for solver in (doubled, plain):
        solver.update(problem)
    for name, values in plain.eigenvalues().items():
        factor = 2.0 if name == "log_std" else 4.0  # of two factors
        th.testing.assert_close(doubled.eigenvalues()[name], factor * values, rtol=1e-6, atol=1e-9)


def test_a_nan_in_a_decomposition_is_one_in_the_solution_and_gone_with_the_next_update():
    problem = make_problem("Gaussian", "Mlp", 12)
    solver = solver_on(CupyLinearAlgebra(EmulatedDevice(), emulated_capture))
    solver.update(problem)
    for name, tensor in solver.memory.tensors.items():
        if name.endswith(".A.vectors"):
            tensor.fill_(th.nan)
    assert not bool(solver.apply_inverse(problem.surrogate_gradient(), 0.1).isfinite().all())
    solver.update(problem)
    assert_as_torch(solver, problem, 0.1)
