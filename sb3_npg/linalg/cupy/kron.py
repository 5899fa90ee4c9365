"""Damped solves with Kronecker products, for several layers in one kernel."""

from collections.abc import Sequence
from functools import lru_cache

import torch as th

from sb3_npg.linalg.backend import KroneckerSystem
from sb3_npg.linalg.cupy.device import Argument, Device, Launch, on_device
from sb3_npg.linalg.cupy.sources import by_block, kernel_source, real, rounded_up, row_stride

_MAX_THREADS = 512


class KroneckerSolver:
    """
    Solves the systems of layers' blocks, one thread block for each layer; the matrices must fit into its shared memory.

    :param device: the GPU
    """

    def __init__(self, device: Device):
        self.device = device

    def fits(self, sizes: Sequence[tuple[int, int]], dtype: th.dtype = th.float32) -> bool:
        """
        Tell whether the systems of layers can be solved here.

        :param sizes: (g, a) of each
        :param dtype: of all tensors
        """
        return all(_shared_numbers(g, a) * dtype.itemsize <= self.device.shared_bytes for g, a in sizes)

    def solve(self, systems: Sequence[KroneckerSystem], damping: float | th.Tensor) -> list[th.Tensor]:
        """
        Return X = Q_G [(Q_Gᵀ V Q_A) / (D + λ)] Q_Aᵀ of each system, without waiting for the device.

        :param systems: layers that fit, with tensors of one dtype
        :param damping: λ, or a tensor on the device that holds it, shape (), float64
        :return: X of each, shape (g, a); not finite if an entry of D + λ is zero
        """
        if not systems:
            return []
        sizes = tuple((system.matrix.shape[0], system.matrix.shape[1]) for system in systems)
        dtype = systems[0].matrix.dtype
        if not self.fits(sizes, dtype):
            raise ValueError("a layer does not fit into shared memory")
        kept = [_tensors(system) for system in systems]  # copies live until the kernel is queued
        if any(tensor is not None and tensor.dtype != dtype for tensors in kept for tensor in tensors):
            raise ValueError("the layers' tensors differ in dtype")
        results = [th.empty_like(system.matrix, memory_format=th.contiguous_format) for system in systems]
        arguments: list[Argument] = []
        for tensors, result in zip(kept, results, strict=True):
            arguments += [*tensors, result]
        arguments.append(on_device(damping, results[0].device))
        source, launch = _launch(sizes, dtype)
        self.device.launch(source, "kron_solve", launch, arguments)
        return results


@lru_cache(maxsize=8)
def _launch(sizes: tuple[tuple[int, int], ...], dtype: th.dtype) -> tuple[str, Launch]:
    """Return the kernel for layers of such sizes, and how it is started."""
    n_tiles = max(-(-g // 4) * -(-a // 4) for g, a in sizes)
    n_threads = min(rounded_up(n_tiles, 32), _MAX_THREADS)
    n_bytes = max(_shared_numbers(g, a) for g, a in sizes) * dtype.itemsize
    return _source(sizes, dtype, n_threads), Launch(len(sizes), n_threads, n_bytes)


def _tensors(system: KroneckerSystem) -> list[th.Tensor | None]:
    """Return a system's tensors in the kernel's order, row by row in memory."""
    left, right, values, matrix = system
    tensors = (left.vectors, right.vectors, left.values, right.values, values, matrix)
    return [tensor if tensor is None else tensor.contiguous() for tensor in tensors]


def _shared_numbers(g: int, a: int) -> int:
    """Return how many numbers a block keeps in shared memory."""
    rows_g, rows_a = rounded_up(g, 4), rounded_up(a, 4)
    return rows_g * row_stride(g) + rows_a * row_stride(a) + 2 * rows_g * row_stride(a)


def _source(sizes: tuple[tuple[int, int], ...], dtype: th.dtype, n_threads: int) -> str:
    pointers = "const real* p{0}, const real* q{0}, const real* w{0}, const real* v{0}, const real* d{0}"
    pointers += ", const real* m{0}, real* x{0}"
    system = "System{{p{0}, q{0}, w{0}, v{0}, d{0}, m{0}, x{0}, {1}, {2}}}"
    return kernel_source(
        "kron_solve",
        {
            "REAL": real(dtype),
            "THREADS": n_threads,
            "SYSTEM_PARAMETERS": ", ".join(pointers.format(i) for i in range(len(sizes))),
            "SYSTEM": by_block([system.format(i, g, a) for i, (g, a) in enumerate(sizes)]),
        },
    )
