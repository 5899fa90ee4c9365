"""Conjugate gradient against dense solves."""

import hypothesis.strategies as st
import pytest
import torch as th
from hypothesis import given, settings

from sb3_npg.linalg import conjugate_gradient


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
