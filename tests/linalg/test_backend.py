"""Choosing who runs the linear algebra, and what CuPy needs."""

import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch as th

from sb3_npg.linalg import TORCH, make_linalg
from sb3_npg.linalg.cupy import CupyLinearAlgebra
from sb3_npg.linalg.cupy.chain_cg import TILES, ChainShape
from sb3_npg.linalg.cupy.sources import kernel_source
from tests.linalg.chains import CHAINS, make_chain

CPU, CUDA = th.device("cpu"), th.device("cuda")


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
    message = "No module named 'cupy'. Install it: pip install 'sb3-npg[cupy12x]', or pass backend='torch'."
    with pytest.raises(ValueError, match=re.escape(message)):
        make_linalg("cupy", CUDA)


@pytest.mark.usefixtures("without_cupy")
def test_auto_goes_on_with_torch_and_says_so_once():
    with pytest.warns(UserWarning, match=r"run on torch, not on CuPy.*sb3-npg\[cupy12x\]") as warned:
        assert make_linalg("auto", CUDA) is TORCH
    assert len(warned) == 1


def test_the_package_does_not_import_cupy():
    code = "import sys, sb3_npg; assert not {'cupy', 'sb3_npg.linalg.cupy'} & set(sys.modules), 'cupy'"
    subprocess.run([sys.executable, "-c", code], check=True)


SOURCES = {
    **{
        f"chain_cg, {kind}": ChainShape.of(make_chain(n_rows=2, **arguments)).source(TILES[i % len(TILES)])
        for i, (kind, arguments) in enumerate(CHAINS.items())
    },
    **{f"krylov, {real}": kernel_source("krylov", {"REAL": real, "THREADS": 1024}) for real in ("float", "double")},
}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", SOURCES)
def test_kernels_compile(name, architecture, tmp_path):
    (tmp_path / "kernel.cu").write_text(SOURCES[name], encoding="utf-8")
    options = ["-std=c++17", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-Werror", "all-warnings"]
    done = subprocess.run(
        ["nvcc", *options, "-o", "kernel.cubin", "kernel.cu"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, textwrap.shorten(done.stderr, 2000)
    assert set(re.findall(r"(\d+) bytes spill", done.stderr)) == {"0"}
