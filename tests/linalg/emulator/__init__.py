"""
A GPU for tests: kernels compiled by the machine's C++ compiler, and run thread by thread.

Each launch fails if two threads race for a word of memory, at an access out of bounds or misaligned, at a write to what
the kernel declares constant, and if threads meet at different barriers or wait for ever.
"""

import ctypes
import gc
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_npg.graphs import Tensors
from sb3_npg.linalg.cupy.device import Argument, Launch
from sb3_npg.linalg.cupy.packing import PackedArguments

_HERE = Path(__file__).parent
#: The emulator asks Linux where libraries lie in memory.
COMPILER = (shutil.which("g++") or shutil.which("clang++")) if sys.platform == "linux" else None
_CHECKS = ("-O1", "-g1", "-fsanitize=thread", "-fsanitize=alignment,bounds")
_FOLDER = tempfile.TemporaryDirectory(prefix="emulated-")


class EmulatedDevice:
    """A GPU of few processors. Slow, exact and strict."""

    def __init__(self, n_processors: int = 3, shared_bytes: int = 227 * 1024):
        self.n_processors = n_processors
        self.shared_bytes = shared_bytes
        self.has_tensor_cores = True
        self.launches: list[str] = []

    def launch(self, source: str, name: str, launch: Launch, arguments: Sequence[Argument]) -> None:
        """Run a kernel to its end."""
        assert launch.shared_bytes <= self.shared_bytes
        assert not launch.cooperative or launch.n_blocks <= self.n_processors
        self.launches.append(name)
        kinds = _kinds(source, name)
        for argument, kind in zip(arguments, kinds, strict=True):
            assert kind.fits(argument), f"{name} wants {kind}"
        packed = PackedArguments(arguments)
        packed.pack(arguments)
        tensors = {i: argument for i, argument in enumerate(arguments) if isinstance(argument, th.Tensor)}
        run_kernel(source, name, launch, packed.address, tensors)


def run_kernel(
    source: str, name: str, launch: Launch, address: int, tensors: "dict[int, th.Tensor] | None" = None
) -> None:
    """
    Run a kernel to its end, as a driver starts it.

    :param source: of the kernel
    :param name: of the kernel
    :param launch: how it is started
    :param address: of its arguments' addresses
    :param tensors: those that are arguments, by their places; other addresses are looked up among all living tensors
    """
    assert launch.n_threads % 32 == 0
    kernel = _Kernel.of(source, name)
    extents = list(_extents(_kinds(source, name), address, tensors or {}))
    found = _runtime().emulated_launch(
        kernel.run,
        ctypes.c_void_p(address),
        ctypes.c_uint(launch.n_blocks),
        ctypes.c_uint(launch.n_threads),
        ctypes.c_size_t(launch.shared_bytes),
        (_Extent * len(extents))(*extents),
        ctypes.c_int(len(extents)),
    )
    assert not found, f"{name}:\n{kernel.with_lines(found.decode())}"


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


class _Kind(NamedTuple):
    """
    The type of a kernel's parameter.

    :param number: the C name of the number, or of what the address points to
    :param is_address: whether it is an address
    :param is_constant: whether the kernel promises to leave what is there as it is
    """

    number: str
    is_address: bool
    is_constant: bool

    def fits(self, argument: Argument) -> bool:
        """Tell whether an argument is of this type."""
        if isinstance(argument, th.Tensor):
            return self.is_address and argument.is_contiguous() and _C_NAMES[argument.dtype] == self.number
        if isinstance(argument, np.generic):
            return not self.is_address and _C_NAMES[type(argument)] == self.number
        return self.is_address


_C_NAMES: dict[Any, str] = {
    **{th.float32: "float", th.float64: "double", th.int32: "int", th.int64: "unsigned long long"},
    **{np.float32: "float", np.float64: "double", np.int32: "int"},
}


class _Extent(ctypes.Structure):
    """A tensor as ``threads.cpp`` knows it."""

    _fields_ = [
        ("begin", ctypes.c_size_t),
        ("n_bytes", ctypes.c_size_t),
        ("argument", ctypes.c_int),
        ("is_constant", ctypes.c_bool),
    ]


def _extents(kinds: Sequence[_Kind], address: int, tensors: dict[int, th.Tensor]) -> Iterator[_Extent]:
    """Return the memory that a kernel's arguments point to; an argument that shares it with another may write there."""
    pointers = (ctypes.c_void_p * len(kinds)).from_address(address)
    values = {i: ctypes.c_size_t.from_address(pointers[i]).value for i, kind in enumerate(kinds) if kind.is_address}
    begins = {i: value for i, value in values.items() if value}
    living = _living_storages() if begins.keys() - tensors.keys() else []
    found: dict[tuple[int, int], list[int]] = {}
    for i, begin in begins.items():
        extent = _extent(tensors[i]) if i in tensors else next(one for one in living if one[0] <= begin < sum(one))
        found.setdefault(extent, []).append(i)
    for (begin, n_bytes), places in found.items():
        if n_bytes:
            yield _Extent(begin, n_bytes, places[0], all(kinds[i].is_constant for i in places))


def _extent(tensor: th.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel() * tensor.element_size()


def _living_storages() -> list[tuple[int, int]]:
    """Return the memory of all living tensors."""
    tensors = (one for one in gc.get_objects() if type(one) is th.Tensor and one.is_cpu)
    return [(storage.data_ptr(), storage.nbytes()) for storage in (tensor.untyped_storage() for tensor in tensors)]


class _Kernel:
    """
    A compiled kernel.

    :param source: of the kernel
    :param name: of the kernel
    """

    def __init__(self, source: str, name: str):
        kinds = enumerate(re.sub(r"\w+$", "", parameter) for parameter in _parameters(source, name))
        values = ", ".join(f"*({kind}*)arguments[{i}]" for i, kind in kinds)
        start = f'extern "C" UNCHECKED void run(void** arguments) {{ {name}({values}); }}'
        text = f'#include "cuda.h"\n#line 1\n{source}\n{start}\n'
        self._lines = source.splitlines()
        self._file = _compiled(text, _CHECKS, [_runtime_file()])
        self.run = ctypes.cast(ctypes.CDLL(str(self._file)).run, ctypes.c_void_p)

    @classmethod
    @cache
    def of(cls, source: str, name: str) -> "_Kernel":
        """Return a kernel, which is compiled only once."""
        return cls(source, name)

    def with_lines(self, found: str) -> str:
        """Put lines of the source in the place of addresses in the code."""
        return re.sub("<(0x[0-9a-f]+)>", lambda address: self._line_at(address[1]), found)

    def _line_at(self, address: str) -> str:
        if not (tool := shutil.which("addr2line")):
            return address
        done = subprocess.run([tool, "-e", str(self._file), address], capture_output=True, text=True, check=True)
        number = re.search(r":(\d+)", done.stdout)
        return f"at: {self._lines[int(number[1]) - 1].strip()}" if number else address


@cache
def _runtime_file() -> Path:
    """Return the library whose functions the kernels call."""
    return _compiled((_HERE / "threads.cpp").read_text(encoding="utf-8"), ["-O2"])


@cache
def _runtime() -> ctypes.PyDLL:
    """Return the library that runs the kernels, one launch at a time: other threads of Python wait."""
    library = ctypes.PyDLL(str(_runtime_file()))
    library.emulated_launch.restype = ctypes.c_char_p
    return library


def _compiled(source: str, options: Sequence[str], libraries: Sequence[Path] = ()) -> Path:
    """Compile a library, which is linked by itself: without the sanitizers' own libraries."""
    folder = Path(tempfile.mkdtemp(dir=_FOLDER.name))
    (folder / "source.cpp").write_text(source, encoding="utf-8")
    for command in (
        [*options, f"-I{_HERE}", "-c", "source.cpp"],
        ["-shared", "source.o", *map(str, libraries), "-o", "library.so"],
    ):
        whole = [str(COMPILER), "-std=c++17", "-fPIC", "-w", *command]
        done = subprocess.run(whole, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder / "library.so"


@cache
def _kinds(source: str, name: str) -> tuple[_Kind, ...]:
    """Return the types of a kernel's parameters."""
    real = re.search(r"^#define REAL (\w+)$", source, flags=re.MULTILINE)
    found = []
    for parameter in _parameters(source, name):
        words = [word for word in re.findall(r"\w+", parameter)[:-1] if word != "const"]
        number = " ".join(words).replace("real", real[1] if real else "float")
        found.append(_Kind(number, "*" in parameter, "const" in parameter))
    return tuple(found)


def _parameters(source: str, name: str) -> list[str]:
    """Return a kernel's parameters, the lists that are constants written out."""
    found = re.search(rf"__global__[^;{{]*?\b{name}\(([^)]*)\)", source)
    assert found, f"no kernel {name}"
    parameters = found[1]
    for constant, value in re.findall(r"^#define (\w+_PARAMETERS) (.*)$", source, flags=re.MULTILINE):
        parameters = parameters.replace(constant, value)
    return [parameter.strip() for parameter in parameters.split(",")]
