"""Factors, their Kronecker products and their damped inverses against dense algebra."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch as th
from hypothesis import given, settings

from sb3_npg.linalg import (
    DampedInverse,
    Gram,
    damped_cholesky,
    damped_solve,
    factored_damping,
    factored_solve,
    rotate,
    rotate_back,
    symmetric_eigen,
)

NAN, INFINITY = float("nan"), float("inf")


def semidefinite(n: int, rank: int, seed: int, dtype: th.dtype = th.float64) -> th.Tensor:
    generator = th.Generator().manual_seed(seed)
    factor = th.randn(n, rank, generator=generator, dtype=th.float64)
    return (factor @ factor.T).to(dtype)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(g=st.integers(1, 6), a=st.integers(1, 6), seed=st.integers(0, 2**16), log_damping=st.floats(-4, 2))
def test_damped_kronecker_product_is_inverted_in_the_eigenbasis(g, a, seed, log_damping):
    """(G ⊗ A + λI) vec(X) = vec(V), with matrices of shape (g, a) read row by row."""
    big_a, big_g = semidefinite(a, 2, seed), semidefinite(g, 2, seed + 1)
    v = th.randn(g, a, generator=th.Generator().manual_seed(seed + 2), dtype=th.float64)
    damping = 10.0**log_damping
    left, right = symmetric_eigen(big_g), symmetric_eigen(big_a)
    x = rotate_back(left, rotate(left, v, right) / (th.outer(left.values, right.values) + damping), right)
    dense = th.kron(big_g, big_a) + damping * th.eye(g * a, dtype=th.float64)
    th.testing.assert_close(x.flatten(), th.linalg.solve(dense, v.flatten()), rtol=1e-7, atol=1e-9)


def test_rotation_is_the_kronecker_product_of_the_bases_and_is_undone():
    left, right = symmetric_eigen(semidefinite(3, 3, 0)), symmetric_eigen(semidefinite(4, 4, 1))
    v = th.randn(3, 4, dtype=th.float64)
    rotated = rotate(left, v, right)
    th.testing.assert_close(rotated.flatten(), th.kron(left.vectors, right.vectors).T @ v.flatten())
    th.testing.assert_close(rotate_back(left, rotated, right), v)


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_eigenvalues_are_never_negative_and_rebuild_the_matrix(rank, dtype):
    matrix = semidefinite(4, rank, 3, dtype)
    values, vectors = symmetric_eigen(matrix)
    assert values.dtype == vectors.dtype == dtype
    assert bool((values >= 0.0).all())
    assert bool((values.diff() >= 0.0).all())
    th.testing.assert_close(vectors @ th.diag(values) @ vectors.T, matrix)


def test_matrices_are_decomposed_in_a_batch():
    batch = th.stack([semidefinite(3, 2, seed) for seed in range(4)])
    eigen, v = symmetric_eigen(batch), th.randn(4, 3, dtype=th.float64)
    expected = th.linalg.solve(batch + 0.1 * th.eye(3, dtype=th.float64), v)
    th.testing.assert_close(damped_solve(eigen, v, 0.1), expected)


def test_decomposition_of_float32_is_made_in_float64():
    """Eigenvalues from 1 to 1e-6 in a basis that hides the small ones from float32 arithmetic."""
    basis = symmetric_eigen(semidefinite(6, 6, 0)).vectors
    matrix = (basis @ th.diag(th.logspace(-6, 0, 6, dtype=th.float64)) @ basis.T).float()
    expected = th.linalg.eigvalsh(matrix.double()).float()
    th.testing.assert_close(symmetric_eigen(matrix).values, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_matrix_that_is_not_finite_is_not_decomposed(value):
    matrix = th.eye(3)
    matrix[1, 2] = matrix[2, 1] = value
    with pytest.raises(ArithmeticError, match="not finite"):
        symmetric_eigen(matrix)


def test_decomposition_that_does_not_converge_is_an_arithmetic_error(monkeypatch):
    def fail(_matrix):
        raise th.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(th.linalg, "eigh", fail)
    with pytest.raises(ArithmeticError, match="did not converge"):
        symmetric_eigen(th.eye(3))


def test_decomposition_that_returns_nan_is_an_arithmetic_error(monkeypatch):
    monkeypatch.setattr(th.linalg, "eigh", lambda matrix: (matrix.diagonal() * NAN, matrix * NAN))
    with pytest.raises(ArithmeticError):
        symmetric_eigen(th.eye(3))


# Damping


@settings(max_examples=40, deadline=None, derandomize=True)
@given(scale=st.floats(1e-6, 1e6), damping=st.floats(1e-8, 1e4), seed=st.integers(0, 2**16))
def test_damping_is_split_by_the_mean_eigenvalues(scale, damping, seed):
    a, g = semidefinite(4, 3, seed), scale * semidefinite(3, 2, seed + 1)
    of_a, of_g = factored_damping(a, g, damping)
    assert of_a * of_g == pytest.approx(damping, rel=1e-10)
    means = [float(th.linalg.eigvalsh(factor).mean()) for factor in (a, g)]
    assert of_a / of_g == pytest.approx(means[0] / means[1], rel=1e-6)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(scale=st.floats(1e-4, 1e4), seed=st.integers(0, 2**16))
def test_split_damping_does_not_see_which_factor_carries_the_scale(scale, seed):
    a, g, damping = semidefinite(4, 3, seed), semidefinite(3, 2, seed + 1), 0.1

    def product(a, g):
        of_a, of_g = factored_damping(a, g, damping)
        return th.kron(g + of_g * th.eye(3, dtype=th.float64), a + of_a * th.eye(4, dtype=th.float64))

    th.testing.assert_close(product(scale * a, g / scale), product(a, g), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("zero", ["A", "G", "both"])
def test_damping_of_a_factor_of_zeros_is_split_evenly(zero):
    a, g = (th.zeros(3, 3) if zero in (name, "both") else th.eye(3) for name in "AG")
    assert factored_damping(a, g, 0.25) == (0.5, 0.5)


# Cholesky


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_cholesky_is_of_the_damped_matrix_in_float64(dtype):
    matrix = semidefinite(5, 2, 4, dtype)
    original = matrix.clone()
    factor = damped_cholesky(matrix, 0.3)
    assert factor.dtype == th.float64
    assert th.equal(matrix, original)
    th.testing.assert_close(factor @ factor.T, matrix.double() + 0.3 * th.eye(5, dtype=th.float64))


@pytest.mark.parametrize(
    ("matrix", "damping"),
    [(-th.eye(3), 0.5), (th.zeros(3, 3), 0.0), (th.full((3, 3), NAN), 1.0), (th.eye(3) * INFINITY, 1.0)],
    ids=["negative", "singular", "NaN", "infinite"],
)
def test_cholesky_reports_what_is_not_positive_definite(matrix, damping):
    with pytest.raises(ArithmeticError, match="3 rows is not positive definite"):
        damped_cholesky(matrix, damping)


@pytest.mark.parametrize("value", [INFINITY, NAN])
@pytest.mark.parametrize("place", [(0, 0), (1, 0), (1, 1)])
def test_cholesky_reports_what_is_not_finite(value, place):
    matrix = th.eye(2)
    matrix[place] = value
    with pytest.raises(ArithmeticError, match="not positive definite"):
        damped_cholesky(matrix, 0.1)


# Few rows


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(1, 6), r=st.integers(1, 8), seed=st.integers(0, 2**16), log_damping=st.floats(-4, 2))
def test_inverse_in_the_space_of_rows_is_the_matrix_s(n, r, seed, log_damping):
    generator, damping = th.Generator().manual_seed(seed), th.tensor(10.0**log_damping, dtype=th.float64)
    first, second = (th.randn(r, n, generator=generator, dtype=th.float64) for _ in range(2))
    gram = (Gram(first) + Gram(second)) / 4.0
    matrix = (first.T @ first + second.T @ second) / 4.0
    th.testing.assert_close(gram.matrix(), matrix)
    vectors = th.randn(n, 3, generator=generator, dtype=th.float64)
    expected = th.linalg.solve(matrix + damping * th.eye(n, dtype=th.float64), vectors)
    for factor in (gram, matrix):
        inverse, succeeded = DampedInverse.of(factor, damping)
        assert succeeded
        th.testing.assert_close(inverse.solve(vectors), expected, rtol=1e-8, atol=1e-8 / float(damping))
    a, g = (DampedInverse.of(factor, damping)[0] for factor in (gram, matrix))
    square = th.randn(n, n, generator=generator, dtype=th.float64)
    damped = matrix + damping * th.eye(n, dtype=th.float64)
    th.testing.assert_close(damped @ factored_solve(a, g, square) @ damped, square, rtol=1e-6, atol=1e-6)
    for one, other in zip(factored_damping(gram, matrix, 0.3), factored_damping(matrix, gram, 0.3), strict=True):
        th.testing.assert_close(one, other)


@pytest.mark.parametrize(("value", "damping"), [(1.0, 0.0), (NAN, 1.0), (INFINITY, 1.0)])
def test_inverse_in_the_space_of_rows_tells_that_there_is_none(value, damping):
    _, succeeded = DampedInverse.of(Gram(value * th.eye(2, 3)), th.tensor(damping))
    assert not succeeded


@pytest.mark.parametrize("batched", [False, True])
def test_decomposition_that_gives_up_is_made_from_the_other_end(batched, monkeypatch):
    """LAPACK does so now and then where a matrix has a low rank."""
    matrix = semidefinite(5, 2, 0)
    matrix = th.stack([matrix, semidefinite(5, 5, 1)]) if batched else matrix
    calls, decompose = [], th.linalg.eigh

    def gives_up_once(one: th.Tensor) -> Any:
        calls.append(one)
        if len(calls) == 1:
            raise th.linalg.LinAlgError("the algorithm failed to converge")
        return decompose(one)

    monkeypatch.setattr(th.linalg, "eigh", gives_up_once)
    values, vectors = symmetric_eigen(matrix)
    assert len(calls) == 2
    assert (values.diff(dim=-1) >= 0.0).all()
    th.testing.assert_close(vectors @ th.diag_embed(values) @ vectors.mT, matrix)
    th.testing.assert_close(vectors.mT @ vectors, th.eye(5, dtype=matrix.dtype).expand_as(matrix))
