"""Conjugate gradient against dense solves."""

import math

import hypothesis.strategies as st
import pytest
import torch as th
from hypothesis import given, settings

from sb3_npg.linalg import conjugate_gradient
from sb3_npg.linalg.krylov import ritz_condition


def spd(n: int, log_condition: float, seed: int) -> tuple[th.Tensor, th.Tensor]:
    """Return an SPD matrix with eigenvalues from 1 down to 10^−log_condition, and a right-hand side."""
    generator = th.Generator().manual_seed(seed)
    basis, _ = th.linalg.qr(th.randn(n, n, generator=generator, dtype=th.float64))
    eigenvalues = th.logspace(0, -log_condition, n, dtype=th.float64)
    return basis @ th.diag(eigenvalues) @ basis.T, th.randn(n, generator=generator, dtype=th.float64)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 20),
    log_condition=st.floats(0, 4),
    seed=st.integers(0, 2**16),
    scale=st.floats(1e-8, 1e8),
)
def test_solution_equals_dense_solve_of_any_spd_system(n, log_condition, seed, scale):
    matrix, b = spd(n, log_condition, seed)
    result = conjugate_gradient(lambda v: matrix @ v, scale * b, max_steps=10 * n, rtol=1e-12)
    expected = th.linalg.solve(matrix, scale * b)
    assert float((result.x - expected).norm() / expected.norm()) < 1e-6


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(2, 20), steps=st.integers(1, 20), seed=st.integers(0, 2**16))
def test_reported_residual_is_the_true_one(n, steps, seed):
    matrix, b = spd(n, 2.0, seed)
    result = conjugate_gradient(lambda v: matrix @ v, b, max_steps=steps)
    true = float((b - matrix @ result.x).norm() / b.norm())
    assert result.residual == pytest.approx(true, rel=1e-5, abs=1e-10)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_low_rank_plus_damping_ends_in_rank_plus_one_steps(rank):
    factor = th.randn(40, rank, dtype=th.float64)
    b = th.randn(40, dtype=th.float64)
    result = conjugate_gradient(lambda v: factor @ (factor.T @ v) + 0.1 * v, b, max_steps=40, rtol=1e-9)
    assert result.steps <= rank + 1
    assert result.residual <= 1e-9


def test_stops_at_the_tolerance_and_not_later():
    matrix, b = spd(30, 3.0, 0)
    loose, tight = (conjugate_gradient(lambda v: matrix @ v, b, 100, rtol) for rtol in (0.1, 1e-3))
    before = conjugate_gradient(lambda v: matrix @ v, b, loose.steps - 1)
    assert loose.residual <= 0.1 < before.residual
    assert loose.steps < tight.steps


def test_first_iterate_is_a_positive_multiple_of_the_right_hand_side():
    matrix, b = spd(10, 2.0, 1)
    x = conjugate_gradient(lambda v: matrix @ v, b, max_steps=1).x
    assert float(x @ b) > 0
    assert float(th.nn.functional.cosine_similarity(x, b, dim=0)) == pytest.approx(1.0, abs=1e-12)


def test_zero_right_hand_side_gives_zero_without_a_product():
    def product(v: th.Tensor) -> th.Tensor:
        raise AssertionError("no product is needed")

    result = conjugate_gradient(product, th.zeros(5), max_steps=10)
    assert not result.x.any()
    assert (result.steps, result.residual) == (0, 0.0)


@pytest.mark.parametrize("curvature", [-1.0, 0.0, float("nan")])
def test_a_direction_without_positive_curvature_ends_the_solve(curvature):
    result = conjugate_gradient(lambda v: curvature * v, th.ones(5), max_steps=10)
    assert result.steps == 1
    assert not result.x.any()


def test_right_hand_side_is_not_modified_and_no_random_number_is_drawn():
    matrix, b = spd(8, 1.0, 2)
    copy, state = b.clone(), th.get_rng_state()
    conjugate_gradient(lambda v: matrix @ v, b, max_steps=8)
    assert th.equal(b, copy)
    assert th.equal(th.get_rng_state(), state)


# Preconditioned, and from another start


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 20), log_condition=st.floats(0, 4), seed=st.integers(0, 2**16), near=st.floats(0.0, 1.0))
def test_preconditioned_solution_equals_dense_solve(n, log_condition, seed, near):
    """Any positive definite M leaves the solution as it is, from any start."""
    matrix, b = spd(n, log_condition, seed)
    other, x0 = spd(n, 2.0, seed + 1)
    m = near * matrix + (1.0 - near) * other
    result = conjugate_gradient(
        lambda v: matrix @ v, b, 20 * n, 1e-13, preconditioner=lambda r: th.linalg.solve(m, r), x0=x0
    )
    expected = th.linalg.solve(matrix, b)
    assert float((result.x - expected).norm() / expected.norm()) < 1e-6


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(2, 20), steps=st.integers(1, 20), seed=st.integers(0, 2**16), started=st.booleans())
def test_reported_residual_of_a_preconditioned_solve_is_the_true_one(n, steps, seed, started):
    matrix, b = spd(n, 2.0, seed)
    m, x0 = spd(n, 1.0, seed + 1)
    start = x0 if started else None
    result = conjugate_gradient(lambda v: matrix @ v, b, steps, preconditioner=lambda r: m @ r, x0=start)
    true = float((b - matrix @ result.x).norm() / b.norm())
    assert result.residual == pytest.approx(true, rel=1e-5, abs=1e-10)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(1, 20), seed=st.integers(0, 2**16), scale=st.floats(1e-6, 1e6))
def test_perfect_preconditioner_ends_in_one_step(n, seed, scale):
    """M may be any multiple of A."""
    matrix, b = spd(n, 3.0, seed)
    inverse = th.linalg.inv(scale * matrix)
    result = conjugate_gradient(lambda v: matrix @ v, b, 20, 1e-8, preconditioner=lambda r: inverse @ r)
    assert result.steps == 1
    assert result.residual <= 1e-8
    assert result.condition == pytest.approx(1.0)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_preconditioner_wrong_by_a_low_rank_ends_in_rank_plus_one_steps(rank):
    matrix, b = spd(40, 1.0, 3)
    factor = 0.2 * th.randn(40, rank, dtype=th.float64)
    m = matrix + factor @ factor.T
    result = conjugate_gradient(lambda v: matrix @ v, b, 40, 1e-8, preconditioner=lambda r: th.linalg.solve(m, r))
    assert 1 < result.steps <= rank + 1
    assert result.residual <= 1e-8


def test_preconditioned_steps_are_those_of_the_symmetric_product():
    """CG on L⁻¹AL⁻ᵀ y = L⁻¹b with x = L⁻ᵀy is CG on A with M = LLᵀ, step by step."""
    matrix, b = spd(12, 3.0, 4)
    m, _ = spd(12, 2.0, 5)
    factor = th.linalg.cholesky(m)
    inverse = th.linalg.inv(factor)
    inner = inverse @ matrix @ inverse.T
    for steps in range(1, 8):
        ours = conjugate_gradient(lambda v: matrix @ v, b, steps, preconditioner=lambda r: th.linalg.solve(m, r))
        theirs = conjugate_gradient(lambda v: inner @ v, inverse @ b, steps)
        th.testing.assert_close(ours.x, inverse.T @ theirs.x, rtol=1e-8, atol=1e-10)
        assert ours.condition == pytest.approx(theirs.condition, rel=1e-6)


def test_start_at_the_solution_needs_one_product_and_no_step():
    matrix, b = spd(10, 2.0, 6)
    products = []

    def product(v: th.Tensor) -> th.Tensor:
        products.append(v)
        return matrix @ v

    solution = th.linalg.solve(matrix, b)
    result = conjugate_gradient(product, b, 20, 1e-8, x0=solution)
    assert (result.steps, len(products)) == (0, 1)
    assert th.equal(result.x, solution)


def test_start_is_not_written_over_and_shifts_the_system():
    """CG on Ax = b from x₀ is x₀ + CG on Ad = b − Ax₀ from zero."""
    matrix, b = spd(12, 2.0, 7)
    x0 = th.randn(12, dtype=th.float64)
    copy = x0.clone()
    for steps in (1, 3, 6):
        shifted = conjugate_gradient(lambda v: matrix @ v, b - matrix @ x0, steps)
        result = conjugate_gradient(lambda v: matrix @ v, b, steps, x0=x0)
        th.testing.assert_close(result.x, x0 + shifted.x, rtol=1e-10, atol=1e-12)
    assert th.equal(x0, copy)


@pytest.mark.parametrize("answer", [-1.0, 0.0, float("nan"), float("inf")])
def test_preconditioner_that_is_not_positive_definite_ends_the_solve(answer):
    matrix, b = spd(5, 1.0, 8)
    result = conjugate_gradient(lambda v: matrix @ v, b, 10, preconditioner=lambda r: answer * r)
    assert result.steps == 1
    assert not result.x.any()


# Condition number


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(2, 15), log_condition=st.floats(0.1, 3), seed=st.integers(0, 2**16), steps=st.integers(1, 30))
def test_condition_estimate_is_a_lower_bound(n, log_condition, seed, steps):
    matrix, b = spd(n, log_condition, seed)
    estimate = conjugate_gradient(lambda v: matrix @ v, b, steps, rtol=1e-10).condition
    assert estimate >= 1.0 - 1e-9
    assert estimate <= 10.0**log_condition * (1.0 + 1e-6)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_condition_estimate_is_exact_at_the_end(preconditioned, started):
    matrix, b = spd(12, 2.0, 9)
    m, x0 = spd(12, 1.0, 10)
    m = m if preconditioned else th.eye(12, dtype=th.float64)
    result = conjugate_gradient(
        lambda v: matrix @ v, b, 30, 1e-12, preconditioner=lambda r: th.linalg.solve(m, r), x0=x0 if started else None
    )
    inverse = th.linalg.inv(th.linalg.cholesky(m))
    eigenvalues = th.linalg.eigvalsh(inverse @ matrix @ inverse.T)
    assert result.condition == pytest.approx(float(eigenvalues[-1] / eigenvalues[0]), rel=1e-6)


def test_condition_of_no_step_is_one():
    assert conjugate_gradient(lambda v: v, th.zeros(4), 5).condition == 1.0


def test_right_hand_side_whose_square_has_no_digits_counts_as_zero():
    result = conjugate_gradient(lambda v: 2.0 * v, th.full((5,), 1e-20), max_steps=10)
    assert result.steps == 0
    assert not result.x.any()


def test_curvature_that_overflows_ends_the_solve_before_it():
    b = th.ones(3, dtype=th.float64)
    result = conjugate_gradient(lambda v: v * math.inf, b, max_steps=5)
    assert result.steps == 1
    assert th.equal(result.x, th.zeros_like(b))
    assert th.equal(result.product, th.zeros_like(b))


@pytest.mark.parametrize("last", [1e10, 1e20, 1e30, 1e40])
@pytest.mark.parametrize("improvement", [1e5, 1e10, 1e15])
def test_condition_estimate_is_no_less_than_one_where_rounding_leaves_no_digit(last, improvement):
    assert ritz_condition([1.0, last], [0.0, improvement]) >= 1.0
