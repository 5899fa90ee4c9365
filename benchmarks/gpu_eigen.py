"""Eigendecompositions of NatureCNN's Kronecker factors on a GPU: one by one, side by side, or as one batch."""

import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import torch as th
from torch.utils.dlpack import from_dlpack

from benchmarks.gpu_timing import Contestant, Setting

#: Rows of the factors that K-FAC decomposes and that are too large for the kernel of this package.
SIZES = (257, 513, 577, 513)
ROWS = 2048
#: Decomposes a batch: values and vectors.
Decompose = Callable[[th.Tensor], tuple[th.Tensor, th.Tensor]]


def factors(sizes: Sequence[int], device: th.device) -> list[th.Tensor]:
    """Return second moments whose eigenvalues fall as those of images do, by four orders of magnitude."""
    th.manual_seed(0)
    rows = [th.randn(ROWS, n) * th.logspace(0.0, -2.0, n) for n in sizes]
    return [(one.T @ one / ROWS).to(device) for one in rows]


def padded(matrices: Sequence[th.Tensor]) -> th.Tensor:
    """
    Return positive semi-definite matrices in one batch, each in the upper left corner.

    What is added has the eigenvalue −tr A, below all others.

    :param matrices: A, shapes (n, n)
    :return: shape (b, m, m), for the largest m
    """
    size = max(map(len, matrices))
    batch = matrices[0].new_zeros(len(matrices), size, size)
    for place, matrix in zip(batch, matrices, strict=True):
        place[: len(matrix), : len(matrix)] = matrix
        place.diagonal()[len(matrix) :] = -matrix.trace()
    return batch


def _one_by_one(matrices: Sequence[th.Tensor], dtype: th.dtype) -> th.Tensor:
    return th.cat([th.linalg.eigh(matrix.to(dtype))[0] for matrix in matrices])


@cache
def _workers(device: th.device, n: int) -> tuple[ThreadPoolExecutor, list[th.cuda.Stream | None]]:
    """Return threads that stay, as their handles of cuSOLVER are slow to make, and on a GPU a stream for each."""
    if device.type != "cuda":
        return ThreadPoolExecutor(n), [None] * n
    return ThreadPoolExecutor(n), [th.cuda.Stream(device) for _ in range(n)]  # type: ignore[no-untyped-call]


def _values(stream: th.cuda.Stream | None, matrix: th.Tensor) -> th.Tensor:
    with th.cuda.stream(stream):  # None is no stream
        values, _ = th.linalg.eigh(matrix.double())
        assert isinstance(values, th.Tensor)
        return values


def _side_by_side(matrices: Sequence[th.Tensor]) -> th.Tensor:
    """Decompose each matrix in a thread and on a stream of its own, for the host waits within a decomposition."""
    pool, streams = _workers(matrices[0].device, len(matrices))
    for stream in filter(None, streams):
        stream.wait_stream(th.cuda.current_stream(stream.device))
    values = list(pool.map(_values, streams, matrices))
    for stream in filter(None, streams):
        th.cuda.current_stream(stream.device).wait_stream(stream)
    return th.cat(values)


def _at_once(matrices: Sequence[th.Tensor], decompose: Decompose) -> th.Tensor:
    batch = padded([matrix.double() for matrix in matrices])
    values, _ = decompose(batch)
    return th.cat([row[len(row) - len(matrix) :] for row, matrix in zip(values, matrices, strict=True)])


def _by_cupy(batch: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    cupy: Any = importlib.import_module("cupy")
    with cupy.cuda.ExternalStream(th.cuda.current_stream(batch.device).cuda_stream, batch.device.index or 0):
        values, vectors = cupy.linalg.eigh(cupy.from_dlpack(batch))
    return from_dlpack(values), from_dlpack(vectors)


def eigendecompositions(setting: Setting) -> list[Contestant]:
    """Decompose the factors of one update."""
    matrices = factors([setting.size(n, 16 + n % 3) for n in SIZES], setting.device)
    first = "one by one, torch"
    runs: dict[str, Callable[[], th.Tensor]] = {
        first: partial(_one_by_one, matrices, th.float64),
        "one by one in float32, torch": partial(_one_by_one, matrices, th.float32),
        "side by side, torch": partial(_side_by_side, matrices),
        "one batch, torch": partial(_at_once, matrices, th.linalg.eigh),
    }
    if "cupy" in setting.backends:
        runs["one batch, CuPy"] = partial(_at_once, matrices, _by_cupy)
    return [Contestant(name, partial(partial, run), "" if name == first else first) for name, run in runs.items()]
