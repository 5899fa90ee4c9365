"""Solvers on the backend "cupy", its kernels run on an emulated GPU: the natural gradients of the backend "torch"."""

import copy
import pickle

import pytest
import torch as th

from sb3_npg.linalg import TORCH
from sb3_npg.linalg.cupy import CupyLinearAlgebra
from sb3_npg.solvers import make_fisher_solver
from sb3_npg.solvers.direction import find_direction
from tests.cases import make_problem
from tests.linalg.emulator import COMPILER, EmulatedDevice, emulated_capture

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler"),
]
SOLVERS = {
    "cg": ("cg", {}, "chain_cg"),
    "cg, warm": ("cg", {"warm_start": True, "max_steps": 5}, "chain_cg"),
    "cg, momentum": ("cg", {"momentum": 0.5, "max_steps": 5}, "chain_cg"),
    "cg, preconditioned": ("cg", {"preconditioner": "kfac"}, "cg_step"),
    "kfac": ("kfac", {"decay": 0.5}, "kron_solve"),
    "kfac, Cholesky": ("kfac", {"decay": 0.5, "largest_eigen": 0}, "cholesky_solve"),
    "kfac, recorded": ("kfac", {}, "kron_solve"),
    "kfac, Cholesky, recorded": ("kfac", {"largest_eigen": 0}, "cholesky_solve"),
    "kfac, both, recorded": ("kfac", {"largest_eigen": 5}, "kron_solve"),
    "ekfac": ("ekfac", {}, "jacobi_eigen"),
}


def natural_gradients(solver, problem, relative):
    """Find the natural gradients of two updates: what is carried over counts in the second."""
    gradient = problem.surrogate_gradient()
    return [find_direction(solver, problem, g, 1.0, relative) for g in (gradient, gradient + gradient.roll(1))]


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("distribution", "policy"),
    [("Gaussian", "Mlp"), ("gSDE", "Mlp"), ("multi-categorical", "Mlp, ReLU, discrete observation")],
    ids=lambda name: name,
)
def test_backends_agree(distribution, policy, solver, relative):
    problem = make_problem(distribution, policy, 12)
    name, kwargs, kernel = SOLVERS[solver]
    reference, mine = (make_fisher_solver(name, kwargs) for _ in range(2))
    device = EmulatedDevice()
    mine.use(CupyLinearAlgebra(device, emulated_capture))
    pairs = zip(*(natural_gradients(one, problem, relative) for one in (reference, mine)), strict=True)
    for expected, found in pairs:
        error = float((found.natural_gradient - expected.natural_gradient).norm())
        # Conjugate gradient amplifies rounding from step to step.
        assert error < 1e-5 * float(expected.natural_gradient.norm())
        assert found.stats["condition"] == pytest.approx(expected.stats["condition"], rel=1e-3)
    assert kernel in device.launches


def test_convolutions_are_left_to_torch():
    problem = make_problem("categorical", "Cnn", 5)
    reference, mine = (make_fisher_solver("cg", {"max_steps": 5}) for _ in range(2))
    device = EmulatedDevice()
    mine.use(CupyLinearAlgebra(device, emulated_capture))
    gradient = problem.surrogate_gradient()
    expected, found = (find_direction(one, problem, gradient, 0.1) for one in (reference, mine))
    th.testing.assert_close(found.natural_gradient, expected.natural_gradient, rtol=1e-8, atol=1e-12)
    assert device.launches == []


def test_a_solver_on_a_device_is_copied_with_it_and_pickled_without():
    solver = make_fisher_solver("cg", {"preconditioner": "kfac"})
    linalg = CupyLinearAlgebra(EmulatedDevice(), lambda run: (None, run()))
    solver.use(linalg)
    copied, pickled = copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))
    assert copied.linalg is copied.preconditioner.linalg is linalg
    assert pickled.linalg is pickled.preconditioner.linalg is TORCH


def test_a_nan_in_the_curvature_is_found_out():
    problem = make_problem("Gaussian", "Mlp", 12)
    solver = make_fisher_solver("kfac")
    solver.use(CupyLinearAlgebra(EmulatedDevice()))
    solver.update(problem)
    for tensor in solver.memory.tensors.values():
        tensor.fill_(th.nan)
    assert not bool(solver.solve(problem, problem.surrogate_gradient(), 0.1).natural_gradient.isfinite().any())


def test_factors_that_are_saved_are_tensors_of_their_own():
    solver, problem = make_fisher_solver("kfac", {"statistics_interval": 2}), make_problem("Gaussian", "Mlp", 12)
    solver.use(CupyLinearAlgebra(EmulatedDevice(), emulated_capture))
    solver.update(problem)
    tensors = [tensor for name, tensor in solver.memory.tensors.items() if name.endswith((".A", ".G"))]
    assert tensors
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)
