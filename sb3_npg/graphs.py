"""CUDA graphs: work that is recorded once, and done again at the price of one launch."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch as th


class Graph(Protocol):
    """Work on the device that was recorded."""

    def replay(self) -> None:
        """Do it again, on torch's current stream, with what is at the same addresses now."""
        ...


Tensors = TypeVar("Tensors", bound=tuple[th.Tensor, ...])


class Capture(Protocol):
    """Records what a function does on the device as a graph; a replay writes to the tensors that it returned."""

    def __call__(self, run: Callable[[], Tensors]) -> tuple[Graph, Tensors]:
        """Record a function."""
        ...


def capture(device: th.device, run: Callable[[], Tensors]) -> tuple[th.cuda.CUDAGraph, Tensors]:
    """
    Record what a function does as a graph, after it has run a few times and all its kernels are compiled.

    :param device: the GPU that it runs on
    :param run: the function, which does not wait for the device
    :return: the graph, and the tensors that it writes to
    :raises RuntimeError: if the function does what no graph can hold
    """
    side = th.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(th.cuda.current_stream(device))
    with th.cuda.device(device), th.cuda.stream(side):
        for _ in range(2):
            run()
    th.cuda.current_stream(device).wait_stream(side)
    graph = th.cuda.CUDAGraph()
    with th.cuda.device(device), th.cuda.graph(graph, capture_error_mode="thread_local"):
        found = run()
    return graph, found
