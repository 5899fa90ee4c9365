"""The emulated GPU tells what is wrong with a kernel."""

import numpy as np
import pytest
import torch as th

from sb3_npg.linalg.cupy.device import Argument, Launch
from sb3_npg.linalg.cupy.sources import kernel_source
from tests.linalg.emulator import COMPILER, EmulatedDevice, run_kernel

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def launch(body: str, *arguments: Argument, n_blocks: int = 1, n_threads: int = 64) -> None:
    """Run a kernel of a constant tensor, a tensor and a counter, with a shared number for each thread."""
    source = kernel_source("krylov", {"THREADS": n_threads}) + (
        'extern "C" __global__ void kernel(const real* from, real* to, unsigned long long* counter) {\n'
        "DYNAMIC_SHARED(shared);\nconst int i = threadIdx.x, all = blockDim.x;\n" + body + "\n}"
    )
    given = [*arguments, *(None,) * (3 - len(arguments))]
    EmulatedDevice().launch(source, "kernel", Launch(n_blocks, n_threads, 4 * n_threads), given)


def zeros(n: int = 64) -> th.Tensor:
    return th.zeros(n)


@pytest.mark.parametrize(
    ("barrier", "distance", "is_enough"),
    [
        ("__syncthreads();", 1, True),
        ("__syncthreads();", 32, True),
        ("__syncwarp();", 32, False),
        ("", 1, False),
        ("", 0, True),
        ("__shfl_sync(ALL_LANES, 0.0f, 0);", 1, False),
    ],
)
def test_a_missing_barrier_shows(barrier, distance, is_enough):
    to = zeros()
    body = f"shared[i] = i;\n{barrier}\nto[i] = shared[(i + {distance}) % all];"
    if is_enough:
        launch(body, None, to)
        assert to.tolist() == [(i + distance) % 64 for i in range(64)]
    else:
        with pytest.raises(AssertionError, match=r"race in shared memory at: to\[i\] = shared"):
            launch(body, None, to)


def test_a_barrier_of_the_warp_is_enough_within_it():
    to = zeros()
    launch("shared[i] = i;\n__syncwarp();\nto[i] = shared[i ^ 1];", None, to)
    assert to.tolist() == [i ^ 1 for i in range(64)]


def test_a_write_after_reads_needs_a_barrier():
    body = "const real found = shared[{}];\n{}\nif (i == {}) shared[0] = 1;\nto[i] = found;"
    launch(body.format(0, "__syncthreads();", 40), None, zeros())
    launch(body.format("i", "", 0), None, zeros())
    for place in (0, 1, 40):  # of a thread that has read too
        with pytest.raises(AssertionError, match="race in shared memory at: "):
            launch(body.format(0, "", place), None, zeros())


@pytest.mark.parametrize("barrier", ["grid_barrier(counter);", "__syncthreads();"])
def test_blocks_wait_for_each_other_only_at_a_barrier_of_the_grid(barrier):
    to, counter = zeros(3), th.zeros(1, dtype=th.int64)
    body = f"if (i == 0) to[blockIdx.x] = 1;\n{barrier}\nif (i == 1) to[(blockIdx.x + 1) % 3] += 1;"
    if barrier.startswith("grid"):
        launch(body, None, to, counter, n_blocks=3)
        assert to.tolist() == [2.0, 2.0, 2.0]
    else:
        with pytest.raises(AssertionError, match="race in argument 1 at: if"):
            launch(body, None, to, counter, n_blocks=3)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("to[i] = from[i + 1];", r"access outside of all memory at: to\[i\] = from"),
        ("to[i] = from[i - 1];", r"access outside of all memory at: to\[i\] = from"),
        ("shared[i + 1] = 1;", r"access outside of all memory at: shared\[i \+ 1\]"),
        ("if (i == 0) store4(shared + 1, load4(from));", "misaligned access at: .*real4"),
        ("real own[4] = {};\nto[i] = own[i % 8];", r"access outside of an array at: .*own\[i % 8\]"),
        ("if (i == 0) const_cast<real*>(from)[0] = 1;", "write to the constant argument 0 at: if"),
        ("if (i < 32) __syncthreads();\nelse __syncthreads();", "threads meet at a barrier from lines"),
        ("if (i > 0) __syncthreads();", "63 threads wait for ever"),
    ],
)
def test_a_wrong_access_or_wait_shows(body, message):
    with pytest.raises(AssertionError, match=message):
        launch(body, zeros(), zeros())


def test_shared_memory_is_not_cleared():
    to = zeros()
    launch("to[i] = shared[i];", None, to)
    assert bool(to.isnan().all())


@pytest.mark.parametrize(
    "to", [th.zeros(64, dtype=th.float64), th.zeros(64, 2)[:, 0], np.float32(0.0)], ids=["dtype", "strides", "number"]
)
def test_an_argument_of_another_type_shows(to):
    with pytest.raises(AssertionError, match="kernel wants"):
        launch("to[i] = 0;", None, to)


def test_an_address_is_that_of_a_living_tensor():
    whole = th.zeros(40)
    place = np.array([whole[8:].data_ptr()])
    pointers = np.array([place.ctypes.data])
    source = 'extern "C" __global__ void put(float* to) { if (to[threadIdx.x] == 0) to[threadIdx.x % 32] = 1; }'
    with pytest.raises(AssertionError, match="outside of all memory"):
        run_kernel(source, "put", Launch(1, 64), pointers.ctypes.data)
    whole.zero_()
    run_kernel(source, "put", Launch(1, 32), pointers.ctypes.data)
    assert whole.tolist() == [0.0] * 8 + [1.0] * 32
