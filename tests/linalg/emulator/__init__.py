"""A GPU for tests: kernels compiled by the machine's C++ compiler, and run thread by thread."""

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch as th

from sb3_npg.graphs import Tensors
from sb3_npg.linalg.cupy.device import Argument, Launch
from sb3_npg.linalg.cupy.packing import PackedArguments

_HERE = Path(__file__).parent
COMPILER = shutil.which("g++") or shutil.which("clang++")


class EmulatedDevice:
    """
    A GPU of few processors. Slow, and exact.

    :param backwards: whether the last thread is the first to run
    """

    def __init__(self, n_processors: int = 3, shared_bytes: int = 227 * 1024, backwards: bool = False):
        self.backwards = backwards
        self.n_processors = n_processors
        self.shared_bytes = shared_bytes
        self.has_tensor_cores = True
        self.launches: list[str] = []

    def launch(self, source: str, name: str, launch: Launch, arguments: Sequence[Argument]) -> None:
        """Run a kernel to its end."""
        assert launch.shared_bytes <= self.shared_bytes
        assert not launch.cooperative or launch.n_blocks <= self.n_processors
        self.launches.append(name)
        assert len(arguments) == len(_types(source, name))
        assert all(argument.is_contiguous() for argument in arguments if isinstance(argument, th.Tensor))
        packed = PackedArguments(arguments)
        packed.pack(arguments)
        run_kernel(source, name, launch, packed.address, self.backwards)


def run_kernel(source: str, name: str, launch: Launch, address: int, backwards: bool = False) -> None:
    """Run a kernel to its end, as a driver starts it: with the address of its arguments' addresses."""
    run = getattr(_library(source, name), f"run_{name}")
    run.restype = None
    run(
        ctypes.c_uint(launch.n_blocks),
        ctypes.c_uint(launch.n_threads),
        ctypes.c_size_t(launch.shared_bytes),
        ctypes.c_bool(backwards),
        ctypes.c_void_p(address),
    )


class EmulatedGraph:
    """
    What stands for a CUDA graph: runs again, and writes to the tensors that it wrote to first.

    :param run: what was recorded
    :param found: what it returned
    """

    def __init__(self, run: Callable[[], tuple[th.Tensor, ...]], found: tuple[th.Tensor, ...]):
        self._run = run
        self._found = found

    def replay(self) -> None:
        """Run again."""
        for written, new in zip(self._found, self._run(), strict=True):
            written.copy_(new)


def emulated_capture(run: Callable[[], Tensors]) -> tuple[EmulatedGraph, Tensors]:
    """Record a function."""
    found = run()
    return EmulatedGraph(run, found), found


@cache
def _library(source: str, name: str) -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix="emulated-"))
    values = ", ".join(f"*({kind}*)arguments[{i}]" for i, kind in enumerate(_types(source, name)))
    runner = (
        f'extern "C" void run_{name}(unsigned n_blocks, unsigned n_threads, size_t n_bytes, bool backwards,\n'
        "    void** arguments) {\n"
        f"    emulated::launch(n_blocks, n_threads, n_bytes, backwards, [=] {{ {name}({values}); }});\n}}\n"
    )
    (folder / "kernel.cpp").write_text(f'#include "cuda.h"\n{source}\n{runner}', encoding="utf-8")
    command = [
        str(COMPILER),
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        "-w",
        f"-I{_HERE}",
        "kernel.cpp",
        "-o",
        "kernel.so",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(folder / "kernel.so"))
    shutil.rmtree(folder)
    return library


@cache
def _types(source: str, name: str) -> list[str]:
    """Return the types of a kernel's parameters, the lists that are constants written out."""
    found = re.search(rf"__global__[^;{{]*?\b{name}\(([^)]*)\)", source)
    assert found, f"no kernel {name}"
    parameters = found[1]
    for constant, value in re.findall(r"^#define (\w+_PARAMETERS) (.*)$", source, flags=re.MULTILINE):
        parameters = parameters.replace(constant, value)
    return [re.sub(r"\w+$", "", parameter.strip()) for parameter in parameters.split(",")]
