"""Compiles kernels with CuPy and starts them on torch's stream and memory. The only file that imports CuPy."""

import importlib
import threading
from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_npg.linalg.cupy.device import Argument, Launch
from sb3_npg.linalg.cupy.packing import PackedArguments

_OPTIONS = ("-std=c++17",)


class CupyDevice:
    """
    A CUDA device through CuPy.

    Kernels get the addresses of torch's tensors, so nothing is copied and nothing is allocated; CuPy's own global
    state, its allocator and its current stream, is left alone. CuPy compiles; a start is one call of the driver.

    :param device: torch's name for it, with an index or without
    :raises ImportError: if CuPy cannot be imported
    :raises RuntimeError: if CuPy finds no CUDA, or the device is too old
    """

    def __init__(self, device: th.device):
        self._cupy: Any = importlib.import_module("cupy")
        if not self._cupy.cuda.is_available():
            raise RuntimeError("CuPy finds no CUDA device")
        capability = th.cuda.get_device_capability(device)
        if capability < (7, 0):
            raise RuntimeError("kernels need a device of compute capability 7.0 or more")
        self.device = th.device("cuda", th.cuda.current_device() if device.index is None else device.index)
        attributes = self._cupy.cuda.Device(self.device.index).attributes
        self.n_processors: int = attributes["MultiProcessorCount"]
        self.shared_bytes: int = attributes["MaxSharedMemoryPerBlockOptin"]
        self.has_tensor_cores = capability >= (8, 0)
        self._kernels: dict[tuple[str, str, Launch], _Kernel] = {}
        self._thread = threading.local()

    def launch(self, source: str, name: str, launch: Launch, arguments: Sequence[Argument]) -> None:
        """Start a kernel on torch's current stream."""
        if th.cuda.current_device() != self.device.index:
            with th.cuda.device(self.device):
                self.launch(source, name, launch, arguments)
            return
        if not hasattr(self._thread, "has_context"):
            with self._cupy.cuda.Device(self.device.index):
                self._cupy.cuda.runtime.free(0)  # binds the context to this thread, as driver calls do not
            self._thread.has_context = True
        key = (source, name, launch)
        if key not in self._kernels:
            self._kernels[key] = _Kernel(self._cupy, self._compiled(source, name, launch), launch, arguments)
        self._kernels[key].start(arguments, th._C._cuda_getCurrentRawStream(self.device.index))

    def _compiled(self, source: str, name: str, launch: Launch) -> Any:
        with self._cupy.cuda.Device(self.device.index):
            module = self._cupy.RawModule(code=source, options=_OPTIONS, enable_cooperative_groups=launch.cooperative)
            kernel = module.get_function(name)
            kernel.max_dynamic_shared_size_bytes = launch.shared_bytes
            return kernel.kernel


class _Kernel:
    """
    A compiled kernel that is started by a single driver call.

    :param cupy: the module
    :param function: CuPy's function, kept so that it stays loaded
    :param launch: grid and memory
    :param arguments: those of the first start, for their types
    """

    def __init__(self, cupy: Any, function: Any, launch: Launch, arguments: Sequence[Argument]):
        driver = cupy.cuda.driver
        self._function = function
        self._launch = driver.launchCooperativeKernel if launch.cooperative else driver.launchKernel
        self._how = (function.ptr, launch.n_blocks, 1, 1, launch.n_threads, 1, 1, launch.shared_bytes)
        self._more = () if launch.cooperative else (0,)
        self._packed = PackedArguments(arguments)
        self._lock = threading.Lock()

    def start(self, arguments: Sequence[Argument], stream: int) -> None:
        """Start the kernel; the driver has read the arguments when this returns."""
        with self._lock:
            self._packed.pack(arguments)
            self._launch(*self._how, stream, self._packed.address, *self._more)
