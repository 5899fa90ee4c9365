"""What a solver needs from a GPU: its limits, and a way to start kernels on torch's tensors."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch as th

#: An argument of a kernel: an address, or a tensor for its address; None for a null pointer; or a scalar in the
#: kernel's own type.
Argument = th.Tensor | int | np.generic | None


class Launch(NamedTuple):
    """
    How a kernel is started.

    :param n_blocks: blocks of the grid
    :param n_threads: threads of a block
    :param shared_bytes: dynamic shared memory of a block
    :param cooperative: whether blocks wait for each other, so that all must be resident
    """

    n_blocks: int
    n_threads: int
    shared_bytes: int = 0
    cooperative: bool = False


class FusedSolution(NamedTuple):
    """
    A solve whose figures are still on the device.

    :param vectors: x and F x as rows, shape (2, p)
    :param figures: number of steps, of those that succeeded, ‖r‖², ‖b‖², then α and β of each step that succeeded
    """

    vectors: th.Tensor
    figures: th.Tensor


class Device(Protocol):
    """A GPU: its processors, the shared memory of a block, and whether its tensor cores multiply floats."""

    n_processors: int
    shared_bytes: int
    has_tensor_cores: bool

    def launch(self, source: str, name: str, launch: Launch, arguments: Sequence[Argument]) -> None:
        """
        Start a kernel on torch's current stream, and do not wait for it.

        :param source: complete CUDA source; compiled once
        :param name: of the kernel in it
        :param launch: grid and memory
        :param arguments: in the kernel's order
        """
        ...


def in_rows(tensor: th.Tensor) -> th.Tensor:
    """Return a contiguous tensor, aligned for reading vectors of four numbers."""
    if not tensor.is_contiguous():
        return tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 32 else tensor


def on_device(number: float | th.Tensor, device: th.device) -> th.Tensor:
    """Return a number where a kernel can read it, in double precision."""
    return number if isinstance(number, th.Tensor) else th.full((), number, dtype=th.float64, device=device)


def forget_oldest(kept: dict[Any, Any], leave: int) -> None:
    """Make room in a cache: drop the oldest entries until ``leave`` remain."""
    for key in list(kept)[: max(0, len(kept) - leave)]:
        kept.pop(key, None)  # another thread may have dropped it
