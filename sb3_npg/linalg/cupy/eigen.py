"""Eigendecompositions of several small matrices in one kernel."""

from collections.abc import Sequence
from functools import lru_cache

import torch as th

from sb3_npg.linalg.cupy.device import Argument, Device, Launch
from sb3_npg.linalg.cupy.sources import by_block, kernel_source, real, rounded_up
from sb3_npg.linalg.kronecker import Eigen

#: Threads that share two columns, and the most rows of a column that one of them can hold.
_LANES, _MAX_ROWS = 16, 7
_MAX_SWEEPS = 20


class EigenSolver:
    """
    Decomposes symmetric positive semi-definite matrices, a block for each, by one-sided Jacobi in double precision.

    Errors are of the order ε‖A‖ in the matrices' precision. A matrix with an entry that is not finite gives NaN.

    :param device: the GPU
    """

    def __init__(self, device: Device):
        self.device = device

    def fits(self, n: int) -> bool:
        """Tell whether a matrix of n rows can be decomposed."""
        return 1 <= n <= _LANES * _MAX_ROWS and 8 * _shared_numbers(n) <= self.device.shared_bytes

    def solve(self, matrices: Sequence[th.Tensor]) -> list[Eigen]:
        """
        Decompose matrices, without waiting for the device.

        :param matrices: symmetric positive semi-definite, shapes (n, n) of sizes that fit, of one dtype; read as
            (A + Aᵀ)/2
        :return: eigenvalues in ascending order and eigenvectors of each, in the matrices' precision
        """
        if not matrices:
            return []
        rows = [matrix.contiguous() for matrix in matrices]
        dtype = rows[0].dtype
        if any(matrix.dtype != dtype or not self.fits(len(matrix)) for matrix in rows):
            raise ValueError("the matrices differ in dtype or do not fit into shared memory")
        results = [Eigen(matrix.new_empty(len(matrix)), th.empty_like(matrix)) for matrix in rows]
        arguments: list[Argument] = []
        for matrix, (values, vectors) in zip(rows, results, strict=True):
            arguments += [matrix, values, vectors]
        source, launch = _launch(tuple(len(matrix) for matrix in rows), dtype)
        self.device.launch(source, "jacobi_eigen", launch, arguments)
        return results


@lru_cache(maxsize=8)
def _launch(sizes: tuple[int, ...], dtype: th.dtype) -> tuple[str, Launch]:
    """Return the kernel for matrices of such sizes, and how it is started."""
    n_threads = rounded_up(_LANES * _groups(max(sizes)), 32)
    launch = Launch(len(sizes), n_threads, 8 * _shared_numbers(max(sizes)))
    return _source(sizes, dtype, n_threads), launch


def _groups(n: int) -> int:
    """Return how many pairs of columns are worked on at a time."""
    return max(1, n // 2)


def _shared_numbers(n: int) -> int:
    """Return how many doubles a block keeps in shared memory."""
    groups, slot = _groups(n), rounded_up(n, _LANES) + 1
    return n * (n | 1) + (groups + 1) * slot + 2 * groups + 1 + 32


def _source(sizes: tuple[int, ...], dtype: th.dtype, n_threads: int) -> str:
    matrices = range(len(sizes))
    is_single = dtype == th.float32
    # A single-precision matrix is positive semi-definite only up to rounding; eigenvectors need no more accuracy.
    tolerance = 1e-11 if is_single else 2.0**-47
    return kernel_source(
        "jacobi_eigen",
        {
            "REAL": real(dtype),
            "THREADS": n_threads,
            "LARGEST": max(sizes),
            "ROWS_USED": sum({1 << -(-n // _LANES) for n in sizes}),
            "TOLERANCE": repr(tolerance),
            "SHIFT": repr(2.0**-21 if is_single else 2.0**-38),
            "MAX_SWEEPS": _MAX_SWEEPS,
            "MATRIX_PARAMETERS": ", ".join(f"const real* m{i}, real* w{i}, real* q{i}" for i in matrices),
            "PROBLEM": by_block([f"Problem{{m{i}, w{i}, q{i}, {sizes[i]}}}" for i in matrices]),
            "EXPECTED_SHARED": _shared_numbers(max(sizes)),
        },
    )
