"""Small eigendecompositions and Kronecker solves of the GPU's kernels, emulated, against LAPACK."""

import pytest
import torch as th

from sb3_npg.linalg.cupy.eigen import EigenSolver
from sb3_npg.linalg.cupy.kron import KroneckerSolver, KroneckerSystem
from sb3_npg.linalg.kronecker import Eigen, rotate, rotate_back, symmetric_eigen
from tests.linalg.emulator import COMPILER, EmulatedDevice

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

NAN, INFINITY = float("nan"), float("inf")


def semidefinite(n: int, rank: int, seed: int = 0, dtype: th.dtype = th.float64) -> th.Tensor:
    factor = th.randn(n, rank, generator=th.Generator().manual_seed(seed), dtype=th.float64)
    return (factor @ factor.T / rank).to(dtype)


def with_values(values: th.Tensor, seed: int = 0) -> th.Tensor:
    basis = th.linalg.qr(semidefinite(len(values), len(values), seed))[0]
    product = basis @ th.diag(values.double()) @ basis.T
    return (product + product.T) / 2


def decompose(*matrices: th.Tensor) -> list[Eigen]:
    device = EmulatedDevice()
    results = EigenSolver(device).solve(matrices)
    assert device.launches == ["jacobi_eigen"]
    return results


def check(matrix: th.Tensor, eigen: Eigen, tolerance: float = 1e-12) -> None:
    """Errors are relative to the matrix's norm."""
    n, values, vectors = len(matrix), eigen.values.double(), eigen.vectors.double()
    assert eigen.values.dtype == eigen.vectors.dtype == matrix.dtype
    assert values.shape == (n,)
    assert vectors.shape == (n, n)
    exact = matrix.double()
    bound = tolerance * max(float(exact.norm()), 1e-300)
    assert bool((values >= 0).all())
    assert bool((values.diff() >= 0).all())
    th.testing.assert_close(values, th.linalg.eigvalsh(exact).clamp_min(0), rtol=0, atol=bound)
    th.testing.assert_close(vectors.T @ vectors, th.eye(n, dtype=th.float64), rtol=0, atol=tolerance)
    th.testing.assert_close(vectors @ th.diag(values) @ vectors.T, exact, rtol=0, atol=bound)


def test_matrices_of_several_sizes_in_one_launch():
    matrices = [semidefinite(n, rank, n) for n, rank in ((18, 30), (1, 1), (2, 2), (16, 16), (17, 17), (3, 1), (33, 5))]
    for matrix, eigen in zip(matrices, decompose(*matrices), strict=True):
        check(matrix, eigen)


def test_a_layer_of_64_inputs_and_a_bias():
    inputs = th.tanh(th.randn(500, 8, dtype=th.float64) @ th.randn(8, 65, dtype=th.float64))
    inputs[:, -1] = 1
    matrix = inputs.T @ inputs / 500
    check(matrix, decompose(matrix)[0])


def test_no_matrices():
    assert EigenSolver(EmulatedDevice()).solve([]) == []


DIFFICULT = {
    "zero": th.zeros(7, 7, dtype=th.float64),
    "zero number": th.zeros(1, 1, dtype=th.float64),
    "identity": th.eye(8, dtype=th.float64),
    "diagonal": th.diag(th.tensor([3.0, 0.0, 2.0, 0.0, 5.0], dtype=th.float64)),
    "ones": th.ones(9, 9, dtype=th.float64),
    "rank 1": semidefinite(12, 1),
    "rank 4": semidefinite(12, 4),
    "repeated": with_values(th.tensor([1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0, 0])),
    "clustered": with_values(th.tensor([1, 1 + 1e-9, 1 - 1e-9, 1 + 1e-13, 1e-9, 2e-9, 1e-14, 0, 0.5])),
    "graded": with_values(th.logspace(0, -30, 20, dtype=th.float64)),
    "graded diagonal": th.diag(th.logspace(-12, 12, 13, dtype=th.float64)),
    "tiny": with_values(th.logspace(0, -6, 9, dtype=th.float64)) * 1e-100,
    "huge": with_values(th.logspace(0, -6, 9, dtype=th.float64)) * 1e100,
    "largest": th.full((3, 3), 1.5e308, dtype=th.float64) * th.eye(3, dtype=th.float64),
    "rounded below zero": with_values(th.tensor([2, 1, 1e-3, -1e-17, -1e-16])),
}


@pytest.fixture(scope="module")
def difficult() -> dict[str, Eigen]:
    return dict(zip(DIFFICULT, decompose(*DIFFICULT.values()), strict=True))


@pytest.mark.parametrize("name", DIFFICULT)
def test_difficult_spectra(difficult, name):
    check(DIFFICULT[name], difficult[name])


def test_a_row_apart_from_the_others():
    matrix = semidefinite(10, 10)
    matrix[4], matrix[:, 4] = 0, 0
    check(matrix, decompose(matrix)[0])


def test_a_matrix_that_is_far_from_semidefinite_still_has_its_eigenvectors():
    matrix = with_values(th.tensor([-1.0, -0.5, -1e-3, 0.2, 0.7, 2.0]))
    eigen = decompose(matrix)[0]
    basis = eigen.vectors
    th.testing.assert_close(basis.T @ basis, th.eye(6, dtype=th.float64), rtol=0, atol=1e-12)
    rotated = basis.T @ matrix @ basis
    th.testing.assert_close(rotated, th.diag(th.linalg.eigvalsh(matrix)), rtol=0, atol=1e-11)
    th.testing.assert_close(eigen.values, th.linalg.eigvalsh(matrix).clamp_min(0), rtol=0, atol=1e-11)


def test_asymmetry_is_averaged():
    matrix = semidefinite(6, 6)
    skew = th.randn(6, 6, generator=th.Generator().manual_seed(1), dtype=th.float64)
    eigen = decompose(matrix + skew - skew.T)[0]
    check(matrix, eigen)


def test_single_precision():
    matrices = [semidefinite(n, rank, n, th.float32) for n, rank in ((20, 40), (7, 3), (11, 11))]
    for matrix, eigen in zip(matrices, decompose(*matrices), strict=True):
        check(matrix, eigen, 1e-6)


@pytest.mark.parametrize("bad", [NAN, INFINITY, -INFINITY])
def test_an_entry_that_is_not_finite_spoils_its_matrix_alone(bad):
    good, spoilt = semidefinite(9, 9), semidefinite(6, 6)
    spoilt[4, 1] = bad
    bad_eigen, eigen = decompose(spoilt, good)
    assert bool(bad_eigen.values.isnan().all())
    assert bool(bad_eigen.vectors.isnan().all())
    check(good, eigen)


def test_runs_repeat_bit_for_bit_whatever_else_is_decomposed():
    matrix = semidefinite(18, 9)
    first, again, beside = decompose(matrix)[0], decompose(matrix)[0], decompose(semidefinite(33, 2), matrix)[1]
    for other in (again, beside):
        assert th.equal(first.values, other.values)
        assert th.equal(first.vectors, other.vectors)


def test_strided_matrices():
    wide = semidefinite(16, 16)
    check(wide[::2, ::2].contiguous(), decompose(wide[::2, ::2])[0])


def test_what_fits():
    solver = EigenSolver(EmulatedDevice())
    assert solver.fits(1)
    assert solver.fits(100)
    assert not solver.fits(0)
    assert not solver.fits(113)
    small = EigenSolver(EmulatedDevice(shared_bytes=48 * 1024))
    assert small.fits(32)
    assert not small.fits(64)
    with pytest.raises(ValueError, match="do not fit"):
        small.solve([semidefinite(64, 64)])
    with pytest.raises(ValueError, match="dtype"):
        solver.solve([semidefinite(3, 3), semidefinite(3, 3, dtype=th.float32)])


def system(g: int, a: int, given: bool, dtype: th.dtype = th.float64) -> KroneckerSystem:
    generator = th.Generator().manual_seed(10 * g + a)
    left, right = symmetric_eigen(semidefinite(g, g, g, dtype)), symmetric_eigen(semidefinite(a, a, a, dtype))
    values = th.rand(g, a, generator=generator, dtype=dtype) if given else None
    return KroneckerSystem(left, right, values, th.randn(g, a, generator=generator, dtype=dtype))


def reference(problem: KroneckerSystem, damping: float) -> th.Tensor:
    left, right = (Eigen(eigen.values.double(), eigen.vectors.double()) for eigen in (problem.left, problem.right))
    values = th.outer(left.values, right.values) if problem.values is None else problem.values.double()
    return rotate_back(left, rotate(left, problem.matrix.double(), right) / (values + damping), right)


@pytest.mark.parametrize(("dtype", "tolerance"), [(th.float64, 1e-12), (th.float32, 1e-5)])
@pytest.mark.parametrize("given", [False, True])
def test_solves_of_several_layers_in_one_launch(given, dtype, tolerance):
    systems = [system(g, a, given, dtype) for g, a in ((8, 9), (1, 1), (3, 18), (19, 4), (6, 65))]
    device = EmulatedDevice()
    results = KroneckerSolver(device).solve(systems, 0.1)
    assert device.launches == ["kron_solve"]
    for problem, result in zip(systems, results, strict=True):
        expected = reference(problem, 0.1)
        assert result.dtype == dtype
        assert result.is_contiguous()
        th.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance * float(expected.norm()))


def test_layers_with_and_without_their_own_eigenvalues():
    systems = [system(4, 5, True), system(4, 5, False)]
    for problem, result in zip(systems, KroneckerSolver(EmulatedDevice()).solve(systems, 1e-3), strict=True):
        th.testing.assert_close(result, reference(problem, 1e-3), rtol=1e-10, atol=1e-10)


def test_more_tiles_than_threads():
    problem = system(92, 93, False)
    result = KroneckerSolver(EmulatedDevice(shared_bytes=1 << 20)).solve([problem], 1.0)[0]
    th.testing.assert_close(result, reference(problem, 1.0), rtol=1e-9, atol=1e-10)


def test_strided_systems():
    whole = system(10, 12, True)
    transposed = Eigen(whole.left.values, whole.left.vectors.T.contiguous().T)
    problem = whole._replace(left=transposed, matrix=whole.matrix.T.contiguous().T)
    result = KroneckerSolver(EmulatedDevice()).solve([problem], 0.5)[0]
    th.testing.assert_close(result, reference(whole, 0.5), rtol=1e-11, atol=1e-12)


def test_a_layer_that_is_not_finite_spoils_no_other():
    bad, good = system(5, 6, False), system(7, 3, False)
    bad.matrix[2, 2] = NAN
    results = KroneckerSolver(EmulatedDevice()).solve([bad, good], 0.1)
    assert bool(results[0].isnan().any())
    th.testing.assert_close(results[1], reference(good, 0.1), rtol=1e-11, atol=1e-12)


def test_which_layers_fit():
    solver = KroneckerSolver(EmulatedDevice())
    assert solver.solve([], 1.0) == []
    assert solver.fits([(64, 65), (6, 65)])
    assert solver.fits([(64, 65)], th.float64)
    assert not solver.fits([(6, 65), (256, 256)])
    with pytest.raises(ValueError, match="fit"):
        solver.solve([system(100, 101, False)], 1.0)
    with pytest.raises(ValueError, match="dtype"):
        solver.solve([system(3, 3, False), system(3, 3, False, th.float32)], 1.0)
