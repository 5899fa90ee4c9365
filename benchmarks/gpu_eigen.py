"""Eigendecompositions of NatureCNN's Kronecker factors on a GPU: one by one, or as one batch of the largest's size."""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
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
        "one batch, torch": partial(_at_once, matrices, th.linalg.eigh),
    }
    if "cupy" in setting.backends:
        runs["one batch, CuPy"] = partial(_at_once, matrices, _by_cupy)
    return [Contestant(name, partial(partial, run), "" if name == first else first) for name, run in runs.items()]
