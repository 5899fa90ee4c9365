"""K-FAC's solves with the damping split between the factors, for several layers in one kernel."""

from collections.abc import Sequence
from functools import lru_cache

import torch as th

from sb3_npg.linalg.cupy.device import Argument, Device, Launch, on_device
from sb3_npg.linalg.cupy.sources import by_block, kernel_source, real

_SIDE, _THREADS = 16, 512
#: Rows and columns of a matrix that a thread may hold in its registers.
_MOST_HELD = 6


class CholeskySolver:
    """
    Solves the systems of layers' damped factors, one thread block for each layer, in double precision.

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
        return dtype in (th.float32, th.float64) and all(
            min(size) >= 1 and _held(size) <= _MOST_HELD and _shared_bytes(size) <= self.device.shared_bytes
            for size in sizes
        )

    def solve(
        self,
        factors: Sequence[tuple[th.Tensor, th.Tensor]],
        matrices: Sequence[th.Tensor],
        damping: float | th.Tensor,
    ) -> list[th.Tensor]:
        """
        Return X = (G + λ_G I)⁻¹ V (A + λ_A I)⁻¹ of each layer, without waiting for the device.

        λ_A = π√λ and λ_G = √λ/π; see :func:`~sb3_npg.linalg.factored_damping`.

        :param factors: A, shape (a, a), and G, shape (g, g), of layers that fit; lower triangles are read
        :param matrices: V of each, shape (g, a), of the factors' dtype
        :param damping: λ, or a tensor on the device that holds it, shape (), float64
        :return: X of each, shape (g, a); NaN if a damped factor is not finite or not positive definite
        """
        if not matrices:
            return []
        pairs = zip(factors, matrices, strict=True)
        kept = [(a.contiguous(), g.contiguous(), v.contiguous()) for (a, g), v in pairs]  # lives until all is queued
        sizes = tuple((len(g), len(a)) for a, g, _ in kept)
        dtype = kept[0][0].dtype
        if not self.fits(sizes, dtype):
            raise ValueError("a layer does not fit into a processor")
        if any(tensor.dtype != dtype for tensors in kept for tensor in tensors):
            raise ValueError("the layers' tensors differ in dtype")
        results = [th.empty_like(v) for _, _, v in kept]
        arguments: list[Argument] = []
        for tensors, result in zip(kept, results, strict=True):
            arguments += [*tensors, result]
        arguments.append(on_device(damping, results[0].device))
        source, launch = _launch(sizes, dtype)
        self.device.launch(source, "cholesky_solve", launch, arguments)
        return results


@lru_cache(maxsize=8)
def _launch(sizes: tuple[tuple[int, int], ...], dtype: th.dtype) -> tuple[str, Launch]:
    """Return the kernel for layers of such sizes, and how it is started."""
    held = max(map(_held, sizes))
    n_bytes = max(_shared_bytes(size, held) for size in sizes)
    return _source(sizes, dtype), Launch(len(sizes), _THREADS, n_bytes)


def _held(size: tuple[int, int]) -> int:
    """Return how many rows, and columns, of the larger factor a thread holds."""
    return -(-max(size) // _SIDE)


def _shared_bytes(size: tuple[int, int], held: int = _MOST_HELD) -> int:
    """Return the shared memory of a block: two rows of each factor, the inverses, and V."""
    g, a = size
    return 8 * (4 * _SIDE * held + a * a + g * g + g * a)


def _source(sizes: tuple[tuple[int, int], ...], dtype: th.dtype) -> str:
    pointers = "const real* a{0}, const real* g{0}, const real* v{0}, real* x{0}"
    layers = [f"Layer{{a{i}, g{i}, v{i}, x{i}, {a}, {g}}}" for i, (g, a) in enumerate(sizes)]
    return kernel_source(
        "cholesky_solve",
        {
            "REAL": real(dtype),
            "HELD": max(map(_held, sizes)),
            "LAYER_PARAMETERS": ", ".join(pointers.format(i) for i in range(len(sizes))),
            "LAYER": by_block(layers),
        },
    )
