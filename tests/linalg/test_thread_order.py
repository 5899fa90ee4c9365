"""Kernels give the same answer bit for bit in whatever order their threads run: no barrier is missing."""

from collections.abc import Callable

import numpy as np
import pytest
import torch as th

from sb3_npg.linalg.backend import KroneckerSystem
from sb3_npg.linalg.cupy import CupyLinearAlgebra
from sb3_npg.linalg.cupy.device import Launch
from sb3_npg.linalg.cupy.sources import kernel_source
from sb3_npg.linalg.kronecker import Eigen
from tests.linalg.chains import CHAINS, in_dtype, make_chain
from tests.linalg.emulator import COMPILER, EmulatedDevice

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

Outcome = Callable[[CupyLinearAlgebra], list[th.Tensor]]


def normal(*shape: int) -> th.Tensor:
    return th.randn(*shape, generator=th.Generator().manual_seed(0))


def positive(n: int) -> th.Tensor:
    rows = normal(2 * n, n)
    return rows.T @ rows / n


def chain_cg(
    linalg: CupyLinearAlgebra, kind: str = "tanh", n_rows: int = 70, dtype: th.dtype = th.float32
) -> list[th.Tensor]:
    chain = in_dtype(make_chain(n_rows=n_rows, **CHAINS[kind]), dtype)
    b = normal(chain.size).to(dtype)
    return list(linalg.chains.solve(chain, b, b, 0.5, 0.0, 3))


def single_steps(linalg: CupyLinearAlgebra) -> list[th.Tensor]:
    b = normal(9000)
    return list(linalg.steps.solve(lambda v: v * th.linspace(1.0, 2.0, len(v)), b, b, 0.5, 0.0, 3))


def factors(linalg: CupyLinearAlgebra, kind: str = "tanh") -> list[th.Tensor]:
    return [one for pair in linalg.factors.solve(make_chain(n_rows=70, **CHAINS[kind])) for one in pair]


def eigens(linalg: CupyLinearAlgebra) -> list[th.Tensor]:
    return [part for eigen in linalg.eigens.solve([positive(n) for n in (3, 10, 33)]) for part in eigen]


def kronecker(linalg: CupyLinearAlgebra) -> list[th.Tensor]:
    systems = [
        KroneckerSystem(*(Eigen(*th.linalg.eigh(positive(n))) for n in size), None, normal(*size))
        for size in ((6, 18), (35, 9))
    ]
    return linalg.kroneckers.solve(systems, 0.1)


def cholesky(linalg: CupyLinearAlgebra) -> list[th.Tensor]:
    sizes = ((6, 18), (35, 9))
    pairs = [(positive(a), positive(g)) for g, a in sizes]
    return linalg.choleskys.solve(pairs, [normal(*size) for size in sizes], 0.1)


OUTCOMES: dict[str, Outcome] = {
    **{f"chain_cg, {kind}": lambda linalg, kind=kind: chain_cg(linalg, kind) for kind in CHAINS},
    "chain_cg, several tiles a block": lambda linalg: chain_cg(linalg, n_rows=300, dtype=th.float64),
    "many rows": lambda linalg: chain_cg(linalg, n_rows=500),
    "many rows of categoricals": lambda linalg: chain_cg(linalg, "categoricals", 500),
    "single steps": single_steps,
    "factors": factors,
    "factors of categoricals": lambda linalg: factors(linalg, "categoricals"),
    "eigendecompositions": eigens,
    "Kronecker solves": kronecker,
    "Cholesky solves": cholesky,
}


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
def test_order_of_threads_does_not_matter(outcome):
    forwards, backwards = (outcome(CupyLinearAlgebra(EmulatedDevice(backwards=order))) for order in (False, True))
    assert all(bool(tensor.isfinite().all()) for tensor in forwards)
    for one, other in zip(forwards, backwards, strict=True):
        assert th.equal(one, other)


@pytest.mark.parametrize("barrier", ["__syncthreads();", "__syncwarp();", ""])
def test_a_missing_barrier_shows(barrier):
    source = (
        kernel_source("krylov", {"THREADS": 32})
        + """extern "C" __global__ void neighbours(real* found) {
    DYNAMIC_SHARED(scratch);
    scratch[threadIdx.x] = real(threadIdx.x);
    BARRIER
    found[threadIdx.x] = scratch[(threadIdx.x + 1) % 32];
}""".replace("BARRIER", barrier)
    )
    found = [th.zeros(32), th.zeros(32)]
    for result, backwards in zip(found, (False, True), strict=True):
        EmulatedDevice(backwards=backwards).launch(source, "neighbours", Launch(1, 32, 4 * 32), [result])
    expected = th.from_numpy((np.arange(32, dtype=np.float32) + 1) % 32)
    assert [th.equal(result, expected) for result in found] == ([True, True] if barrier else [False, False])
