"""K-FAC's factors and the solves with them in kernels, run on an emulated GPU, against plain torch."""

import pytest
import torch as th

from sb3_npg.linalg import FisherChain, damped_cholesky, factored_damping
from sb3_npg.linalg.cupy.cholesky import CholeskySolver
from sb3_npg.linalg.cupy.factors import FactorShape, FactorSolver, Plan
from tests.linalg.chains import CHAINS, in_dtype, make_chain
from tests.linalg.emulator import COMPILER, EmulatedDevice

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

NAN, INFINITY = float("nan"), float("inf")
Pairs = list[tuple[th.Tensor, th.Tensor]]


def root(chain: FisherChain) -> th.Tensor:
    """Columns c of a root of M as rows, shape (N, c, k), by eigenvectors and so another than the kernel's."""
    sizes = chain.groups or (1,) * chain.diagonal.shape[1]
    metrics = [
        th.diag_embed(p) - (p.unsqueeze(2) * p.unsqueeze(1) if chain.groups else 0.0)
        for p in th.split(chain.diagonal, list(sizes), dim=1)
    ]
    metric = th.stack([th.block_diag(*parts) for parts in zip(*metrics, strict=True)])
    values, vectors = th.linalg.eigh(metric)
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(1)).mT


def reference(chain: FisherChain) -> Pairs:
    delta, pairs = root(chain), []
    for layer in reversed(chain.layers):
        delta = delta if layer.slope is None else delta * layer.slope.unsqueeze(1)
        parts = [layer.inputs] if layer.weight_span is not None else []
        parts += [th.ones(chain.n_rows, 1, dtype=delta.dtype)] if layer.bias_span is not None else []
        if parts:
            inputs, deltas = th.cat(parts, dim=1), delta.flatten(0, 1)
            pairs.append((inputs.T @ inputs / chain.n_rows, deltas.T @ deltas / chain.n_rows))
        delta = delta @ layer.weight
    return pairs[::-1]


def assert_near(results: Pairs, expected: Pairs, tolerance: float) -> None:
    assert len(results) == len(expected)
    for mine, theirs in zip(results, expected, strict=True):
        for factor, exact in zip(mine, theirs, strict=True):
            assert factor.shape == exact.shape
            assert factor.is_contiguous()
            assert th.equal(factor, factor.T)
            assert float((factor - exact).norm()) <= tolerance * float(exact.norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(th.float64, 1e-10), (th.float32, 1e-5)])
@pytest.mark.parametrize("kind", CHAINS)
def test_factors_are_those_of_torch(kind, dtype, tolerance):
    chain = make_chain(n_rows=37, **CHAINS[kind])
    device = EmulatedDevice()
    results = FactorSolver(device).solve(in_dtype(chain, dtype))
    assert device.launches == ["chain_factors"]
    assert all(factor.dtype == dtype for pair in results for factor in pair)
    assert_near(results, reference(chain), tolerance)


@pytest.mark.parametrize(
    ("n_rows", "n_processors", "tile"),
    [(1, 3, 16), (16, 1, 16), (50, 2, 32), (150, 2, 64), (300, 2, 64)],
    ids=["one row", "one block", "larger tiles", "several tiles a block", "some more tiles than others"],
)
def test_any_number_of_rows_on_any_number_of_processors(n_rows, n_processors, tile):
    chain = make_chain(n_rows=n_rows, **CHAINS["tanh"])
    solver = FactorSolver(EmulatedDevice(n_processors))
    plan = solver.plan_of(FactorShape.of(chain), n_rows)
    assert plan is not None
    assert plan.tile == tile
    assert_near(solver.solve(chain), reference(chain), 1e-10)


@pytest.mark.parametrize(
    ("arguments", "at_once"),
    [(CHAINS["tanh"], 3), (CHAINS["categoricals"], 2), ({"widths": (5, 9, 5), "activation": "relu"}, 3)],
    ids=["two", "three", "two of different sizes"],
)
def test_columns_in_batches(arguments, at_once):
    chain = make_chain(n_rows=70, **arguments)
    shape = FactorShape.of(chain)
    solver = FactorSolver(EmulatedDevice(1, shape.shared_bytes(Plan(64, at_once))))
    assert solver.plan_of(shape, 70) == Plan(64, at_once)
    assert_near(solver.solve(chain), reference(chain), 1e-10)


def test_more_pieces_than_blocks():
    chain = make_chain((40, 33, 5), n_rows=20)
    solver = FactorSolver(EmulatedDevice(2))
    assert FactorShape.of(chain).n_pieces() > 2
    for _ in range(2):
        assert_near(solver.solve(chain), reference(chain), 1e-10)


def without_training(chain: FisherChain, *layers: int) -> FisherChain:
    return chain._replace(
        layers=tuple(
            layer._replace(weight_span=None, bias_span=None) if i in layers else layer
            for i, layer in enumerate(chain.layers)
        )
    )


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1)])
def test_layers_that_are_not_trained_have_no_factors(frozen):
    chain = without_training(make_chain(n_rows=20, **CHAINS["tanh"]), *frozen)
    results = FactorSolver(EmulatedDevice()).solve(chain)
    assert len(results) == 3 - len(frozen)
    assert_near(results, reference(chain), 1e-10)


def test_a_layer_without_a_bias():
    chain = make_chain(n_rows=20, **CHAINS["tanh"])
    chain = chain._replace(layers=tuple(layer._replace(bias_span=None) for layer in chain.layers))
    results = FactorSolver(EmulatedDevice()).solve(chain)
    assert [len(a) for a, _ in results] == [5, 9, 7]
    assert_near(results, reference(chain), 1e-10)


def test_which_networks_fit():
    solver = FactorSolver(EmulatedDevice())
    chain = make_chain(n_rows=20, **CHAINS["tanh"])
    assert solver.fits(make_chain((17, 64, 64, 6), 2048, th.float32))
    assert solver.fits(make_chain((17, 64, 64, 6), 2048))
    assert not solver.fits(make_chain((17, 256, 256, 6), 20, th.float32))
    assert not solver.fits(without_training(chain, 0, 1, 2))
    assert not solver.fits(in_dtype(chain, th.bfloat16))
    with pytest.raises(ValueError, match="fit"):
        solver.solve(make_chain((17, 256, 256, 6), 20, th.float32))


def test_runs_repeat_bit_for_bit():
    solver = FactorSolver(EmulatedDevice())
    chain = make_chain(n_rows=60, dtype=th.float32, **CHAINS["tanh"])
    for mine, theirs in zip(solver.solve(chain), solver.solve(chain), strict=True):
        assert all(map(th.equal, mine, theirs))


def test_a_nan_in_the_metric_is_not_lost():
    chain = make_chain(n_rows=20, **CHAINS["tanh"])
    chain.diagonal[3, 2] = NAN
    (_, first), *_, (_, last) = FactorSolver(EmulatedDevice()).solve(chain)
    assert bool(first.isnan().all())
    assert bool(last[2, 2].isnan())


def semidefinite(n: int, rank: int, seed: int, dtype: th.dtype = th.float64) -> th.Tensor:
    factor = th.randn(n, rank, generator=th.Generator().manual_seed(seed), dtype=th.float64)
    return (factor @ factor.T / rank).to(dtype)


def layer(g: int, a: int, dtype: th.dtype = th.float64) -> tuple[tuple[th.Tensor, th.Tensor], th.Tensor]:
    """Factors of half rank, A much larger than G, and V."""
    factors = 30 * semidefinite(a, -(-a // 2), a, dtype), semidefinite(g, -(-g // 2), g, dtype) / 20
    return factors, th.randn(g, a, generator=th.Generator().manual_seed(g), dtype=th.float64).to(dtype)


def solved(factors: tuple[th.Tensor, th.Tensor], matrix: th.Tensor, damping: float) -> th.Tensor:
    damping_a, damping_g = factored_damping(*factors, damping)
    half = th.cholesky_solve(matrix.double(), damped_cholesky(factors[1], damping_g))
    return th.cholesky_solve(half.T, damped_cholesky(factors[0], damping_a)).T


SIZES = [(8, 9), (1, 1), (3, 18), (19, 4), (6, 65), (64, 65)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(th.float64, 1e-10), (th.float32, 1e-6)])
@pytest.mark.parametrize("damping", [1.0, 1e-3])
def test_damped_solves_of_several_layers_in_one_launch(damping, dtype, tolerance):
    factors, matrices = zip(*(layer(g, a, dtype) for g, a in SIZES), strict=True)
    device = EmulatedDevice()
    results = CholeskySolver(device).solve(factors, matrices, damping)
    assert device.launches == ["cholesky_solve"]
    for pair, matrix, result in zip(factors, matrices, results, strict=True):
        expected = solved(pair, matrix, damping)
        assert result.dtype == dtype
        assert result.is_contiguous()
        assert float((result - expected).norm()) <= tolerance * float(expected.norm())


def test_without_damping():
    factors = semidefinite(17, 40, 1), semidefinite(5, 20, 2)
    _, matrix = layer(5, 17)
    result = CholeskySolver(EmulatedDevice()).solve([factors], [matrix], 0.0)[0]
    th.testing.assert_close(result, solved(factors, matrix, 0.0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("zero", [0, 1])
def test_damping_is_split_evenly_beside_a_factor_of_zero(zero):
    factors, matrix = layer(4, 7)
    factors[zero].zero_()
    of_a, of_g = factored_damping(*factors, 0.1)
    assert of_a == of_g
    result = CholeskySolver(EmulatedDevice()).solve([factors], [matrix], 0.1)[0]
    th.testing.assert_close(result, solved(factors, matrix, 0.1), rtol=1e-10, atol=1e-10)


def test_the_largest_layer():
    factors, matrix = layer(96, 96)
    solver = CholeskySolver(EmulatedDevice())
    assert solver.fits([(96, 96)])
    result = solver.solve([factors], [matrix], 0.1)[0]
    expected = solved(factors, matrix, 0.1)
    assert float((result - expected).norm()) <= 1e-10 * float(expected.norm())


def spoil(factors: tuple[th.Tensor, th.Tensor], how: str) -> None:
    a, g = factors
    if how == "not positive":
        g[2, 2] = -5.0
    elif how == "zero":
        a.zero_()
    else:
        factor = g if how.startswith("G") else a
        factor[3, 1] = factor[1, 3] = INFINITY if "infinite" in how else NAN


@pytest.mark.parametrize("how", ["not positive", "zero", "A, NaN", "G, NaN", "A, infinite", "G, infinite"])
def test_factors_that_cannot_be_factorised_spoil_their_layer_alone(how):
    (bad, bad_matrix), (_, matrix) = layer(5, 6), layer(7, 3)
    spoil(bad, how)
    damping = 0.0 if how == "zero" else 0.1
    good = (semidefinite(3, 9, 1), semidefinite(7, 20, 2))
    results = CholeskySolver(EmulatedDevice()).solve([bad, good], [bad_matrix, matrix], damping)
    assert bool(results[0].isnan().all())
    th.testing.assert_close(results[1], solved(good, matrix, damping), rtol=1e-9, atol=1e-9)


def test_strided_layers_and_the_upper_triangle_is_not_read():
    (a, g), matrix = layer(5, 17)
    strided = (a.tril().T.contiguous().T, g.tril())
    result = CholeskySolver(EmulatedDevice()).solve([strided], [matrix.T.contiguous().T], 0.1)[0]
    th.testing.assert_close(result, solved((a, g), matrix, 0.1), rtol=1e-10, atol=1e-10)


def test_which_layers_fit():
    solver = CholeskySolver(EmulatedDevice())
    assert solver.solve([], [], 1.0) == []
    assert solver.fits([(64, 65), (6, 65)])
    assert solver.fits([(64, 65)], th.float64)
    assert not solver.fits([(64, 65)], th.bfloat16)
    assert not solver.fits([(6, 65), (97, 4)])
    assert not CholeskySolver(EmulatedDevice(shared_bytes=99 * 1024)).fits([(64, 65)])
    factors, matrix = layer(3, 97)
    with pytest.raises(ValueError, match="fit"):
        solver.solve([factors], [matrix], 1.0)
    factors, matrix = layer(3, 4)
    with pytest.raises(ValueError, match="dtype"):
        solver.solve([factors], [matrix.float()], 1.0)
