"""CuPy: the only file that imports it. Compiles kernels, and starts them on torch's stream and torch's memory."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_npg.linalg.cupy.device import Argument, Launch

_OPTIONS = ("-std=c++17",)


class CupyDevice:
    """
    A CUDA device through CuPy.

    Kernels get the addresses of torch's tensors, so nothing is copied and nothing is allocated; CuPy's own global
    state, its allocator and its current stream, is left alone.

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
        self._functions: dict[tuple[str, str, Launch], Any] = {}
        self._streams: dict[int, Any] = {}

    def launch(self, source: str, name: str, launch: Launch, arguments: Sequence[Argument]) -> None:
        """Start a kernel on torch's current stream."""
        if th.cuda.current_device() != self.device.index:
            with th.cuda.device(self.device):
                self.launch(source, name, launch, arguments)
            return
        function = self._function(source, name, launch)
        values = tuple(
            argument.data_ptr() if isinstance(argument, th.Tensor) else 0 if argument is None else argument
            for argument in arguments
        )
        stream = self._stream(th._C._cuda_getCurrentRawStream(self.device.index))
        grid, block = (launch.n_blocks, 1, 1), (launch.n_threads, 1, 1)
        function(grid, block, values, launch.shared_bytes, stream, launch.cooperative)

    def _stream(self, pointer: int) -> Any:
        if pointer not in self._streams:
            streams = self._cupy.cuda
            if hasattr(streams.Stream, "from_external"):
                self._streams[pointer] = streams.Stream.from_external(_Stream(pointer))
            else:
                self._streams[pointer] = streams.ExternalStream(pointer, self.device.index)
        return self._streams[pointer]

    def _function(self, source: str, name: str, launch: Launch) -> Any:
        key = (source, name, launch)
        if key not in self._functions:
            module = self._cupy.RawModule(code=source, options=_OPTIONS, enable_cooperative_groups=launch.cooperative)
            kernel = module.get_function(name)
            with self._cupy.cuda.Device(self.device.index):
                kernel.max_dynamic_shared_size_bytes = launch.shared_bytes
                self._functions[key] = kernel.kernel
        return self._functions[key]


class _Stream:
    """A stream of another library, by CUDA's stream protocol."""

    def __init__(self, pointer: int):
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer
