"""Kernels started through CuPy, of which a stand-in passes on what the driver is told."""

import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_npg.linalg import conjugate_gradient
from sb3_npg.linalg.cupy import CupyLinearAlgebra
from sb3_npg.linalg.cupy.device import Launch, forget_oldest
from sb3_npg.linalg.cupy.gpu import CupyDevice
from tests.linalg.chains import CHAINS, make_chain
from tests.linalg.emulator import COMPILER, run_kernel

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
STREAM, N_PROCESSORS, SHARED_BYTES = 77, 3, 227 * 1024


class StandIn:
    """As much of CuPy as is used, on a device that the machine's compiler emulates."""

    def __init__(self):
        self.started: list[tuple[bool, int]] = []
        self.contexts: list[int] = []
        self._functions: list[tuple[str, str, SimpleNamespace]] = []
        driver = SimpleNamespace(launchKernel=self.launch_kernel, launchCooperativeKernel=self.launch_cooperative)
        runtime = SimpleNamespace(free=lambda address: self.contexts.append(threading.get_ident()))
        self.cuda = SimpleNamespace(is_available=lambda: True, Device=_Device, driver=driver, runtime=runtime)

    def RawModule(self, code, options, enable_cooperative_groups):  # noqa: N802
        assert options == ("-std=c++17",)
        return SimpleNamespace(get_function=lambda name: self._compiled(code, name))

    def _compiled(self, code, name):
        kernel = SimpleNamespace(max_dynamic_shared_size_bytes=0, kernel=SimpleNamespace(ptr=len(self._functions)))
        self._functions.append((code, name, kernel))
        return kernel

    def launch_kernel(self, function, *how):
        assert how[-1] == 0  # the other way to pass arguments
        self._start(False, function, *how[:-1])

    def launch_cooperative(self, function, *how):
        self._start(True, function, *how)

    def _start(self, cooperative, function, *how):
        n_blocks, *ones, n_threads, one_more, last, shared_bytes, stream, address = how
        assert [*ones, one_more, last] == [1] * 4
        assert stream == STREAM
        code, name, kernel = self._functions[function]
        assert shared_bytes <= kernel.max_dynamic_shared_size_bytes <= SHARED_BYTES
        self.started.append((cooperative, function))
        run_kernel(code, name, Launch(n_blocks, n_threads, shared_bytes), address)


class _Device:
    def __init__(self, index):
        assert index == 0
        self.attributes = {"MultiProcessorCount": N_PROCESSORS, "MaxSharedMemoryPerBlockOptin": SHARED_BYTES}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.fixture
def cupy(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    monkeypatch.setattr(th.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(th.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(th._C, "_cuda_getCurrentRawStream", lambda index: STREAM, raising=False)
    return stand_in


@pytest.mark.parametrize("kind", ["tanh", "categoricals"])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_a_solve_gets_its_arguments_through_the_driver(dtype, kind, cupy):
    linalg = CupyLinearAlgebra(CupyDevice(th.device("cuda")))
    chain = make_chain(n_rows=37, dtype=dtype, **CHAINS[kind])
    for seed in (0, 1):  # other addresses and other numbers
        b = th.randn(chain.size, dtype=dtype, generator=th.Generator().manual_seed(seed))
        found = linalg.conjugate_gradient(chain.product, b, 4 + seed, rtol=0.0, shift=0.5, chain=lambda: chain)
        expected = conjugate_gradient(chain.product, b, 4 + seed, shift=0.5)
        assert found.steps == expected.steps
        th.testing.assert_close(found.x, expected.x, rtol=1e-4, atol=1e-5)
        th.testing.assert_close(found.product, expected.product, rtol=1e-4, atol=1e-5)
    assert cupy.started == [(True, 0), (True, 0)]  # compiled once


def test_kernels_of_one_block_start_without_cooperation(cupy):
    steps = CupyLinearAlgebra(CupyDevice(th.device("cuda"))).steps
    found = steps.solve(th.clone, b := th.ones(2), b, 1.0, 0.0, 1)
    assert found.vectors[0].tolist() == [0.5, 0.5]
    assert [cooperative for cooperative, _ in cupy.started] == [False, False, False]


def test_kernels_of_several_blocks_are_tried_out(cupy):
    CupyLinearAlgebra(CupyDevice(th.device("cuda"))).try_out(th.device("cpu"))
    assert [cooperative for cooperative, _ in cupy.started] == [True, True, True]


def test_each_device_gets_kernels_of_its_own(cupy, monkeypatch):
    monkeypatch.setattr(CupyLinearAlgebra, "_on", classmethod(lambda cls, index: index))
    current = iter([0, 1])
    monkeypatch.setattr(th.cuda, "current_device", lambda: next(current))
    asked = ["cuda", "cuda", "cuda:2"]  # "cuda" is whichever is current
    assert [CupyLinearAlgebra.on(th.device(name)) for name in asked] == [0, 1, 2]


def test_each_thread_gets_its_context_once(cupy):
    device = CupyDevice(th.device("cuda"))
    source = 'extern "C" __global__ void put(int n, double* to) { if (threadIdx.x == 0) to[0] = n; }'
    found = th.zeros(3, dtype=th.float64)

    def put(place: int) -> None:
        for _ in range(2):
            device.launch(source, "put", Launch(1, 32), [np.int32(5 + place), found[place:]])

    threads = [threading.Thread(target=put, args=(place,)) for place in (1, 2)]
    for thread in threads:
        thread.start()
        thread.join()
    put(0)
    assert found.tolist() == [5.0, 6.0, 7.0]
    assert len(cupy.contexts) == len(threads) + 1


def test_an_old_device_is_refused(cupy, monkeypatch):
    monkeypatch.setattr(th.cuda, "get_device_capability", lambda device: (6, 1))
    with pytest.raises(RuntimeError, match=r"compute capability 7\.0"):
        CupyDevice(th.device("cuda"))


class Racing(dict):
    """What two threads keep in common: the other drops the oldest once this one has looked."""

    def __iter__(self) -> Iterator[Any]:
        keys = list(self.keys())
        yield from keys
        self.pop(keys[0])


def test_two_threads_may_forget_the_same():
    kept = Racing({size: size for size in range(3)})
    forget_oldest(kept, leave=1)
    assert sorted(kept.keys()) == [1, 2]
