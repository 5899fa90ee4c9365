"""CUDA graphs: work that is recorded once, and then repeated by a single launch."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol, TypeVar

import torch as th


class Graph(Protocol):
    """Work on the device that was recorded."""

    def replay(self) -> None:
        """Repeat it on torch's current stream, with the present contents of the same memory."""
        ...


Tensors = TypeVar("Tensors", bound=tuple[th.Tensor, ...])


class Capture(Protocol):
    """Records what a function does on the device as a graph; a replay writes to the tensors that it returned."""

    def __call__(self, run: Callable[[], Tensors]) -> tuple[Graph, Tensors]:
        """Record a function."""
        ...


#: A process records one graph at a time.
_recording = threading.Lock()


def capture(device: th.device, run: Callable[[], Tensors]) -> tuple[th.cuda.CUDAGraph, Tensors]:
    """
    Record what a function does as a graph, after it has run a few times and all its kernels are compiled.

    :param device: the GPU that it runs on
    :param run: the function, which does not wait for the device
    :return: the graph, and the tensors that it writes to
    :raises RuntimeError: if the function does something that a graph cannot record
    """
    with _recording, th.cuda.device(device):
        before, side = th.cuda.current_stream(), _stream(th.cuda.current_device())
        side.wait_stream(before)
        try:
            with th.cuda.stream(side):  # also restores the current stream if recording fails
                for _ in range(2):
                    run()
                graph = th.cuda.CUDAGraph()
                # Torch's default stream for captures belongs to the device that recorded first.
                with _independent(), th.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    found = run()
        finally:  # a failure may leave work on that stream, with tensors that are freed by then
            before.wait_stream(side)
    return graph, found


@contextmanager
def _independent() -> Iterator[None]:
    """
    Make the graph that is recorded in the block independent of all others, also of those destroyed meanwhile.

    A graph keeps the address of cuBLAS's workspace, and torch from 2.12 on frees a stream's workspace along with any
    graph that was recorded there, so each graph allocates its own. The garbage collector is off, as destroying another
    graph would end the recording.
    """
    collects = gc.isenabled()
    gc.disable()
    _clear_cublas_workspaces()
    try:
        yield
    finally:
        _clear_cublas_workspaces()
        if collects:
            gc.enable()


def _clear_cublas_workspaces() -> None:
    """Make cuBLAS allocate its workspaces anew, from the memory pool of what runs next."""
    clear: Callable[[], None] | None = getattr(th._C, "_cuda_clearCublasWorkspaces", None)  # not in CPU builds
    if clear is not None:
        clear()


@cache
def _stream(index: int) -> th.cuda.Stream:
    """Return the stream that a device's graphs are recorded on."""
    return th.cuda.Stream(index)  # type: ignore[no-untyped-call]
