"""Choosing who runs the linear algebra, and what CuPy needs."""

import importlib.util
import io
import re
import subprocess
import sys

import pytest
import torch as th

from sb3_npg.linalg import TORCH, FisherChain, KroneckerSystem, make_linalg
from sb3_npg.linalg.cupy import CupyLinearAlgebra
from sb3_npg.linalg.cupy.chain_layout import ChainShape, RowLayout
from tests.linalg.chains import CHAINS, make_chain

CPU, CUDA = th.device("cpu"), th.device("cuda")
#: The compiler that CuPy uses, which needs no GPU.
HAS_NVRTC = importlib.util.find_spec("cuda") is not None and all(
    importlib.util.find_spec(name) is not None for name in ("cuda.core", "cuda.bindings")
)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_torch_serves_the_cpu(backend):
    assert make_linalg(backend, CPU) is TORCH


def test_cupy_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match=r"`backend`='cupy' needs the policy on a CUDA device.*backend='torch'"):
        make_linalg("cupy", CPU)


@pytest.fixture
def without_cupy(monkeypatch):
    def fail(device):
        raise ImportError("No module named 'cupy'")

    monkeypatch.setattr(CupyLinearAlgebra, "on", fail)
    monkeypatch.setattr(th.version, "cuda", "12.8")


@pytest.mark.usefixtures("without_cupy")
def test_a_missing_cupy_is_refused_with_the_command_that_installs_it():
    message = "No module named 'cupy'. Install it: pip install cupy-cuda12x, or pass backend='torch'."
    with pytest.raises(ValueError, match=re.escape(message)):
        make_linalg("cupy", CUDA)


@pytest.mark.usefixtures("without_cupy")
def test_auto_goes_on_with_torch_and_says_so_once():
    with pytest.warns(UserWarning, match=r"run on torch, not on CuPy.*pip install cupy-cuda12x") as warned:
        assert make_linalg("auto", CUDA) is TORCH
    assert len(warned) == 1


def test_the_package_does_not_import_cupy():
    code = "import sys, sb3_npg; assert not {'cupy', 'sb3_npg.linalg.cupy'} & set(sys.modules), 'cupy'"
    subprocess.run([sys.executable, "-c", code], check=True)


class RecordingDevice:
    """A GPU that keeps the sources of kernels and runs none."""

    n_processors = 132
    shared_bytes = 227 * 1024
    has_tensor_cores = True

    def __init__(self):
        self.sources: dict[str, str] = {}

    def launch(self, source, name, launch, arguments):
        self.sources[name] = source


def sources_of(chain: FisherChain) -> dict[str, str]:
    """Return the source of every kernel that serves a chain."""
    device = RecordingDevice()
    linalg = CupyLinearAlgebra(device)
    b = th.zeros(chain.size, dtype=chain.diagonal.dtype)
    linalg.chains.solve(chain, b, b, 0.1, 0.0, 2)
    linalg.steps.solve(chain.product, b, b, 0.1, 0.0, 2)
    factors = linalg.factors.solve(chain)
    eigens = linalg.symmetric_eigens([factor for pair in factors for factor in pair])
    matrices = [b.new_zeros(len(g), len(a)) for a, g in factors]
    pairs = zip(eigens[1::2], eigens[::2], matrices, strict=True)
    linalg.kronecker_solves([KroneckerSystem(g, a, None, matrix) for g, a, matrix in pairs], 0.1)
    linalg.factored_solves(factors, matrices, 0.1)
    return device.sources


KINDS = CHAINS | {
    f"64 units, {name}": {"widths": (17, 64, 64, 6), "noise": (6, 1), "activation": name} for name in ("tanh", "relu")
}
SOURCES = {
    f"{name}, {kind}": source
    for kind, arguments in KINDS.items()
    for name, source in sources_of(make_chain(n_rows=2048, dtype=th.float32, **arguments)).items()
    if name in ("chain_cg", "chain_factors") or kind.endswith("tanh")
}
for kind, arguments in KINDS.items():
    shape = ChainShape.of(make_chain(n_rows=1, dtype=th.float32, **arguments))
    SOURCES[f"chain_cg for many rows, {kind}"] = RowLayout(shape, RowLayout.size).source()


@pytest.mark.skipif(not HAS_NVRTC, reason="needs cuda-core and NVRTC, which [dev] has on Linux from Python 3.11 on")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", SOURCES)
def test_kernels_compile(name, architecture):
    core = importlib.import_module("cuda.core")
    options = core.ProgramOptions(std="c++17", arch=architecture, ptxas_options=["-v"])
    log = io.StringIO()
    core.Program(SOURCES[name], "c++", options).compile("cubin", logs=log)
    assert "warning" not in log.getvalue()
    # Out of registers, a loop spills hundreds of bytes. CUDA 13.0's compiler sets up to eight numbers aside.
    assert max(map(int, re.findall(r"(\d+) bytes spill", log.getvalue()))) <= 32
