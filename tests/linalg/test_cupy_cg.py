"""Conjugate gradient in kernels, run on an emulated GPU: the same answers as torch's."""

import pytest
import torch as th

from sb3_npg.linalg import TORCH, conjugate_gradient
from sb3_npg.linalg.cupy import CupyLinearAlgebra
from sb3_npg.linalg.cupy.chain_cg import ChainSolver
from sb3_npg.linalg.cupy.chain_layout import ChainShape, RowLayout, TileLayout
from tests.linalg.chains import CHAINS, in_dtype, make_chain
from tests.linalg.emulator import COMPILER, EmulatedDevice, emulated_capture

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def emulated(**kwargs) -> tuple[CupyLinearAlgebra, EmulatedDevice]:
    device = EmulatedDevice(**kwargs)
    return CupyLinearAlgebra(device, emulated_capture), device


def right_side(chain, seed=1):
    generator = th.Generator().manual_seed(seed)
    return th.randn(chain.size, generator=generator, dtype=th.float64).to(chain.diagonal.dtype)


def assert_same(result, expected, tolerance=1e-9):
    assert (result.steps, result.x.shape) == (expected.steps, expected.x.shape)
    for mine, theirs in ((result.x, expected.x), (result.product, expected.product)):
        assert float((mine - theirs).norm()) <= tolerance * float(theirs.norm())
    assert result.residual == pytest.approx(expected.residual, rel=1e3 * tolerance, abs=tolerance)
    assert result.condition == pytest.approx(expected.condition, rel=1e3 * tolerance)


@pytest.mark.parametrize(
    ("dtype", "max_steps", "shift", "tolerance"), [(th.float64, 6, 0.1, 1e-9), (th.float32, 4, 0.5, 1e-4)]
)
@pytest.mark.parametrize("kind", CHAINS)
def test_one_kernel_solves_as_torch_does(kind, dtype, max_steps, shift, tolerance):
    exact = make_chain(n_rows=37, **CHAINS[kind])
    chain, b = in_dtype(exact, dtype), right_side(exact)
    linalg, device = emulated()
    result = linalg.conjugate_gradient(chain.product, b.to(dtype), max_steps, 1e-12, shift=shift, chain=lambda: chain)
    assert device.launches == ["chain_cg"]
    assert_same(result, conjugate_gradient(exact.product, b, max_steps, 1e-12, shift=shift), tolerance)


@pytest.mark.parametrize(
    ("n_rows", "n_processors"),
    [(1, 3), (8, 1), (100, 3), (300, 2)],
    ids=["one row", "one block", "larger tiles", "several tiles a block"],
)
def test_any_number_of_rows_on_any_number_of_processors(n_rows, n_processors):
    chain = make_chain(n_rows=n_rows, **CHAINS["tanh"])
    b = right_side(chain)
    linalg, _ = emulated(n_processors=n_processors)
    result = linalg.conjugate_gradient(chain.product, b, 5, shift=0.1, chain=lambda: chain)
    assert_same(result, conjugate_gradient(chain.product, b, 5, shift=0.1))


def test_a_solve_in_float32_is_near_and_repeats_bit_for_bit():
    exact = make_chain(n_rows=50, **CHAINS["tanh"])
    chain, b = in_dtype(exact, th.float32), right_side(exact)
    solver = ChainSolver(EmulatedDevice())
    first, second = (solver.solve(chain, b.float(), b.float(), 0.1, 0.0, 8) for _ in range(2))
    assert th.equal(first.vectors, second.vectors)
    assert th.equal(first.figures, second.figures)
    expected = conjugate_gradient(exact.product, b, 8, shift=0.1).x
    assert float((first.vectors[0] - expected).norm()) <= 1e-4 * float(expected.norm())


def test_products_in_tf32_where_torch_is_told_so():
    exact = make_chain(n_rows=50, **CHAINS["tanh"])
    chain, b = in_dtype(exact, th.float32), right_side(exact)
    expected = conjugate_gradient(exact.product, b, 4, shift=0.5).x
    solver = ChainSolver(EmulatedDevice())

    def error() -> float:
        found = solver.solve(chain, b.float(), b.float(), 0.5, 0.0, 4).vectors[0]
        return float((found - expected).norm() / expected.norm())

    before = th.get_float32_matmul_precision()
    try:
        th.set_float32_matmul_precision("high")
        in_tf32 = error()
    finally:
        th.set_float32_matmul_precision(before)
    assert error() < 1e-5 < 1e-4 < in_tf32 < 1e-2


class TestManyRows:
    """Sixteen rows in the registers of each warp."""

    def solver(self, **kwargs):
        return ChainSolver(EmulatedDevice(**kwargs))

    @pytest.mark.parametrize("kind", CHAINS)
    def test_solves_as_in_float64(self, kind):
        exact = make_chain(n_rows=300, **CHAINS[kind])
        b = right_side(exact)
        chain, solver = in_dtype(exact, th.float32), self.solver(n_processors=2)
        assert isinstance(solver.layout_of(ChainShape.of(chain), chain.n_rows), RowLayout)
        found = solver.solve(chain, b.float(), b.float(), 0.5, 0.0, 4)
        expected = conjugate_gradient(exact.product, b, 4, shift=0.5)
        for mine, theirs in zip(found.vectors, (expected.x, expected.product), strict=True):
            assert float((mine - theirs).norm()) <= 1e-5 * float(theirs.norm())
        assert found.figures[:2].tolist() == [4.0, 4.0]

    @pytest.mark.parametrize("n_rows", [65, 128, 129, 500])
    def test_any_number_of_rows(self, n_rows):
        exact = make_chain(n_rows=n_rows, **CHAINS["tanh"])
        chain, b = in_dtype(exact, th.float32), right_side(exact)
        found = self.solver(n_processors=1).solve(chain, b.float(), b.float(), 0.5, 0.0, 4).vectors[0]
        expected = conjugate_gradient(exact.product, b, 4, shift=0.5).x
        assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())

    def test_stops_at_the_tolerance(self):
        exact = make_chain(n_rows=200, **CHAINS["one layer"])
        chain, b = in_dtype(exact, th.float32), right_side(exact)
        found = self.solver(n_processors=1).solve(chain, b.float(), b.float(), 0.1, 0.05, 20)
        expected = conjugate_gradient(exact.product, b, 20, 0.05, shift=0.1)
        assert 1 < expected.steps < 20
        assert int(found.figures[0]) == expected.steps

    def test_a_nan_moves_nothing(self):
        chain = in_dtype(make_chain(n_rows=200, **CHAINS["tanh"]), th.float32)
        chain.diagonal[150, 2] = th.nan
        b = right_side(chain)
        found = self.solver(n_processors=1).solve(chain, b, b, 0.1, 0.0, 4)
        assert found.figures[:2].tolist() == [1.0, 0.0]
        assert not found.vectors.any()

    @pytest.mark.parametrize(
        ("change", "n_rows"),
        [({}, 192), ({"dtype": th.float64}, 193), ({"widths": (5, 72, 6)}, 193)],
        ids=["few rows", "float64", "wide layers"],
    )
    def test_others_are_taken_by_tiles(self, change, n_rows):
        chain = make_chain(n_rows=n_rows, **{"dtype": th.float32, **CHAINS["tanh"], **change})
        assert isinstance(self.solver().layout_of(ChainShape.of(chain), n_rows), TileLayout)

    def test_needs_tensor_cores(self):
        solver = self.solver()
        shape = ChainShape.of(make_chain(n_rows=300, dtype=th.float32, **CHAINS["tanh"]))
        assert isinstance(solver.layout_of(shape, 300), RowLayout)
        solver.device.has_tensor_cores = False
        assert isinstance(solver.layout_of(shape, 300), TileLayout)


@pytest.mark.parametrize("way", ["kernel", "graph", "preconditioned steps"])
class TestEveryWay:
    """One kernel, a graph, and single steps stop and fail alike."""

    def solve(self, way, b, chain, **kwargs):
        linalg, device = emulated(shared_bytes=1000 if way == "graph" else 227 * 1024)
        result = linalg.conjugate_gradient(
            chain.product,
            b,
            preconditioner=(lambda r: 2.0 * r) if way == "preconditioned steps" else None,
            chain=lambda: chain,
            **kwargs,
        )
        assert ("chain_cg" in device.launches, "cg_step" in device.launches) == (way == "kernel", way != "kernel")
        return result

    def test_stops_at_the_tolerance(self, way):
        chain = make_chain(n_rows=37, **CHAINS["one layer"])
        b = right_side(chain)
        result = self.solve(way, b, chain, max_steps=20, rtol=0.05, shift=0.1)
        expected = conjugate_gradient(chain.product, b, 20, 0.05, shift=0.1)
        assert 1 < expected.steps < 20
        assert_same(result, expected)

    def test_starts_where_it_is_told(self, way):
        chain = make_chain(n_rows=37, **CHAINS["one layer"])
        b, x0 = right_side(chain), right_side(chain, seed=2)
        result = self.solve(way, b, chain, max_steps=4, shift=0.1, x0=x0)
        assert_same(result, conjugate_gradient(chain.product, b, 4, shift=0.1, x0=x0))

    def test_zero_right_hand_side(self, way):
        chain = make_chain(n_rows=37, **CHAINS["one layer"])
        result = self.solve(way, th.zeros(chain.size, dtype=th.float64), chain, max_steps=4, shift=0.1)
        assert (result.steps, result.residual, result.condition) == (0, 0.0, 1.0)
        assert not result.x.any()

    def test_no_positive_curvature(self, way):
        chain = make_chain(n_rows=37, **CHAINS["one layer"])
        chain = chain._replace(diagonal=-chain.diagonal)
        result = self.solve(way, right_side(chain), chain, max_steps=4)
        assert (result.steps, result.residual) == (1, 1.0)
        assert not result.x.any()

    def test_a_nan_ends_the_solve(self, way):
        chain = make_chain(n_rows=37, **CHAINS["one layer"])
        chain.diagonal[3, 2] = th.nan
        result = self.solve(way, right_side(chain), chain, max_steps=4, shift=0.1)
        assert result.steps == 1
        assert not result.x.any()


def test_several_blocks_share_a_long_vector():
    chain = make_chain((90, 100, 6), n_rows=10)
    b = right_side(chain)
    assert chain.size > 8192
    linalg, device = emulated()
    result = linalg.conjugate_gradient(chain.product, b, 3, shift=0.1, preconditioner=th.clone)
    assert set(device.launches) == {"cg_begin", "cg_direction", "cg_step"}
    assert_same(result, conjugate_gradient(chain.product, b, 3, shift=0.1))


def test_a_graph_is_replayed_on_new_tensors_and_captured_anew_for_new_shapes():
    runs = []

    def counted(run):
        runs.append(run)
        return emulated_capture(run)

    linalg = CupyLinearAlgebra(EmulatedDevice(shared_bytes=1000), counted)
    for n_rows, damping, expected_captures in ((20, 0.1, 1), (20, 0.3, 1), (30, 0.3, 2), (20, 0.2, 2)):
        chain = make_chain(n_rows=n_rows, **CHAINS["tanh"])
        chain = chain._replace(diagonal=chain.diagonal * (1.0 + damping))
        b = right_side(chain, seed=n_rows)
        result = linalg.conjugate_gradient(chain.product, b, 4, shift=damping, chain=lambda chain=chain: chain)
        assert_same(result, conjugate_gradient(chain.product, b, 4, shift=damping))
        assert len(runs) == expected_captures


@pytest.mark.parametrize("dtype", [th.bfloat16, th.float64], ids=str)
def test_half_precision_and_what_is_no_chain_are_left_to_torch(dtype):
    linalg, device = emulated()
    matrix = th.eye(3, dtype=dtype)
    b = th.ones(3, dtype=dtype)
    assert th.equal(linalg.conjugate_gradient(matrix.mv, b, 2).x, TORCH.conjugate_gradient(matrix.mv, b, 2).x)
    assert device.launches == []


def test_networks_too_large_for_a_graph_are_left_to_torch(monkeypatch):
    monkeypatch.setattr("sb3_npg.linalg.cupy.algebra.LARGEST_GRAPH", 100)
    chain = make_chain(n_rows=5, **CHAINS["tanh"])
    b = right_side(chain)
    linalg, device = emulated(shared_bytes=1000)
    result = linalg.conjugate_gradient(chain.product, b, 3, shift=0.1, chain=lambda: chain)
    assert th.equal(result.x, conjugate_gradient(chain.product, b, 3, shift=0.1).x)
    assert device.launches == []


def test_an_installation_is_tried_out_before_training(monkeypatch):
    linalg, device = emulated()
    linalg.try_out(th.device("cpu"))
    monkeypatch.setattr(device, "launch", lambda *arguments: None)
    monkeypatch.setattr(th.Tensor, "new_empty", th.Tensor.new_zeros)
    with pytest.raises(RuntimeError, match=r"numbers from 0 to 0 in the place of 0\.5"):
        linalg.try_out(th.device("cpu"))

    def fail(*arguments):
        raise OSError("libnvrtc.so is missing")

    monkeypatch.setattr(device, "launch", fail)
    with pytest.raises(RuntimeError, match=r"CuPy cannot run a kernel: libnvrtc.so is missing"):
        linalg.try_out(th.device("cpu"))


def test_what_is_compiled_is_kept_by_shape():
    first, second = (make_chain(n_rows=n, **CHAINS["tanh"]) for n in (10, 11))
    assert ChainShape.of(first) == ChainShape.of(second)
    assert ChainShape.of(first) != ChainShape.of(make_chain(n_rows=10, **CHAINS["frozen"]))
