"""The backend "cupy": which kernel is used for what."""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch as th

from sb3_npg.graphs import Capture, capture
from sb3_npg.linalg.backend import KroneckerSystem, LinearAlgebra
from sb3_npg.linalg.chain import FisherChain
from sb3_npg.linalg.cupy.chain_cg import ChainSolver, Solve
from sb3_npg.linalg.cupy.chain_copy import chain_bytes
from sb3_npg.linalg.cupy.cholesky import CholeskySolver
from sb3_npg.linalg.cupy.device import Device, FusedSolution
from sb3_npg.linalg.cupy.eigen import EigenSolver
from sb3_npg.linalg.cupy.factors import FactorSolver
from sb3_npg.linalg.cupy.kron import KroneckerSolver
from sb3_npg.linalg.cupy.krylov import BLOCK_UNKNOWNS, GraphSolver, StepSolver
from sb3_npg.linalg.cupy.recorded_chain import Kernels, RecordedChain
from sb3_npg.linalg.kronecker import Eigen, symmetric_eigen
from sb3_npg.linalg.krylov import ConjugateGradientResult, History, Operator

_DTYPES = (th.float32, th.float64)
#: Bytes of the largest chain that is copied into a graph.
LARGEST_GRAPH = 2**26
#: Unknowns of the largest system whose preconditioned solve never waits to see whether it has converged.
LARGEST_STEPS = 2**19


class CupyLinearAlgebra(LinearAlgebra):
    """
    The linear algebra of the solvers on a GPU.

    Conjugate gradient does not wait for the device: it is one kernel for a multilayer perceptron that fits into shared
    memory, a CUDA graph for a larger one, and separate kernels between the products if there is a preconditioner.
    Torch is used if kernels would not be faster (products that take milliseconds) or cannot be used (half precision);
    it stops as soon as a solve has converged.

    :param device: the GPU
    :param capture: records a function as a CUDA graph; None to do without graphs
    """

    name = "cupy"

    def __init__(self, device: Device, capture: Capture | None = None):
        self.chains = ChainSolver(device)
        self.steps = StepSolver(device)
        self.eigens = EigenSolver(device)
        self.factors = FactorSolver(device)
        self.choleskys = CholeskySolver(device)
        self.kroneckers = KroneckerSolver(device)
        self.graphs = None if capture is None else GraphSolver(self.steps, capture)
        self._device, self._capture = device, capture

    @classmethod
    def on(cls, device: th.device) -> "CupyLinearAlgebra":
        """
        Return the backend of a CUDA device, which is made only once.

        :param device: torch's name for it; without an index, the current device
        :raises ImportError: if CuPy cannot be imported
        :raises RuntimeError: if CuPy finds no CUDA, or cannot run a kernel
        """
        return cls._on(th.cuda.current_device() if device.index is None else device.index)

    @classmethod
    @cache
    def _on(cls, index: int) -> "CupyLinearAlgebra":
        from sb3_npg.linalg.cupy.gpu import CupyDevice

        device = th.device("cuda", index)
        made = cls(CupyDevice(device), partial(capture, device))
        made.try_out(device)
        return made

    def try_out(self, device: th.device) -> None:
        """
        Solve (I + I) x = b on several blocks, so that a broken installation shows before training.

        :param device: torch's name for the GPU
        :raises RuntimeError: if no kernel can be compiled and run, or the answer is wrong
        """
        b = th.ones(2 * BLOCK_UNKNOWNS, device=device)
        try:
            x = self.steps.solve(th.clone, b, b, 1.0, 0.0, 1).vectors[0]
        except Exception as error:  # CuPy raises many kinds
            raise RuntimeError(f"CuPy cannot run a kernel: {error}") from error
        if not th.allclose(x, 0.5 * b):
            raise RuntimeError(f"a kernel gave numbers from {x.min():g} to {x.max():g} in the place of 0.5")

    def conjugate_gradient(
        self,
        matvec: Operator,
        b: th.Tensor,
        max_steps: int,
        rtol: float = 0.0,
        preconditioner: Operator | None = None,
        x0: th.Tensor | None = None,
        shift: float = 0.0,
        chain: Callable[[], FisherChain | None] | None = None,
    ) -> ConjugateGradientResult:
        """Solve (A + σI) x = b; see :func:`~sb3_npg.linalg.conjugate_gradient`."""
        use_steps = preconditioner is not None and len(b) <= LARGEST_STEPS
        system = chain() if chain is not None and preconditioner is None else None
        solve = None if system is None or b.dtype not in _DTYPES else self._solve_of(system)
        if b.dtype not in _DTYPES or not (use_steps or solve is not None):
            return super().conjugate_gradient(matvec, b, max_steps, rtol, preconditioner, x0, shift)
        applied = None if x0 is None else matvec(x0)
        right = b if x0 is None or applied is None else b - applied - shift * x0
        if solve is None:
            result = _result(self.steps.solve(matvec, right, b, shift, rtol, max_steps, preconditioner))
        else:
            result = _result(solve(right, b, shift, rtol, max_steps))
        return result if x0 is None or applied is None else result.from_start(x0, applied)

    def _solve_of(self, chain: FisherChain) -> Solve | None:
        """Return a function that solves a whole chain without separate products, if there is one."""
        solve = self.chains.solve_of(chain)
        if solve is None and self.graphs is not None and chain_bytes(chain) <= LARGEST_GRAPH:
            return partial(self.graphs.solve, chain)
        return solve

    def symmetric_eigens(self, matrices: Sequence[th.Tensor]) -> list[Eigen]:
        """
        Decompose several matrices, the small ones in one kernel; see :func:`~sb3_npg.linalg.symmetric_eigen`.

        For a small matrix that is not finite the result is NaN, which is found when the solution is checked.
        """
        small = {
            i: [matrix] if matrix.dim() == 2 else matrix.reshape(-1, *matrix.shape[-2:]).unbind()
            for i, matrix in enumerate(matrices)
            if matrix.shape[-1] > 1 and matrix.dtype in _DTYPES and self.eigens.fits(matrix.shape[-1])
        }
        found = iter(self.eigens.solve([one for batch in small.values() for one in batch]))
        results = {i: _stacked([next(found) for _ in batch], matrices[i].shape) for i, batch in small.items()}
        return [results[i] if i in results else _eigen(matrix) for i, matrix in enumerate(matrices)]

    def kronecker_solves(self, systems: Sequence[KroneckerSystem], damping: float) -> list[th.Tensor]:
        """Solve several damped Kronecker systems, in one kernel if they are small."""
        dtypes = {system.matrix.dtype for system in systems}
        sizes = [(system.matrix.shape[0], system.matrix.shape[1]) for system in systems]
        if len(dtypes) != 1 or not dtypes <= set(_DTYPES) or not self.kroneckers.fits(sizes, *dtypes):
            return super().kronecker_solves(systems, damping)
        return self.kroneckers.solve(systems, damping)

    def kronecker_factors(self, chain: Callable[[], FisherChain | None]) -> list[tuple[th.Tensor, th.Tensor]] | None:
        """Measure K-FAC's factors of all layers of a chain in one kernel, if they fit into shared memory."""
        system = chain()
        if system is None or system.scale is not None or not self.factors.fits(system):
            return None
        return self.factors.solve(system)

    def factored_chain(self, chain: FisherChain, largest_eigen: int) -> RecordedChain | None:
        """Record K-FAC of a chain as two graphs, if kernels can do all of it."""
        kernels = Kernels(FactorSolver(self._device), self.eigens, self.kroneckers, self.choleskys)
        if self._capture is None or not kernels.fit(chain, largest_eigen):
            return None
        return RecordedChain(kernels, self._capture, self.symmetric_eigens, chain, largest_eigen)

    def factored_solves(
        self, factors: Sequence[tuple[th.Tensor, th.Tensor]], matrices: Sequence[th.Tensor], damping: float
    ) -> list[th.Tensor] | None:
        """Solve K-FAC's systems with the damping split in one kernel, if all of them fit into shared memory."""
        dtypes = {matrix.dtype for matrix in matrices}
        sizes = [(matrix.shape[0], matrix.shape[1]) for matrix in matrices]
        if len(dtypes) != 1 or not dtypes <= set(_DTYPES) or not self.choleskys.fits(sizes, *dtypes):
            return None
        return self.choleskys.solve(factors, matrices, damping)


def _eigen(matrix: th.Tensor) -> Eigen:
    """Decompose a matrix, or a batch of them, that no kernel handles."""
    if matrix.shape[-1] > 1:
        return symmetric_eigen(matrix)
    return Eigen(matrix.squeeze(-1).clamp_min(0.0), th.ones_like(matrix))


def _stacked(eigens: list[Eigen], shape: th.Size) -> Eigen:
    """Return the decompositions of a batch, shape (…, n, n)."""
    if len(shape) == 2:
        return eigens[0]
    values, vectors = (th.stack(parts) for parts in zip(*eigens, strict=True))
    return Eigen(values.view(shape[:-1]), vectors.view(shape))


def _result(solution: FusedSolution) -> ConjugateGradientResult:
    """Return a solution whose figures stay on the device until they are read."""
    x, product = solution.vectors.unbind()
    return ConjugateGradientResult(x, product, partial(_history, solution.figures))


def _history(figures: th.Tensor) -> History:
    """Wait for the device, and read the history of a solve."""
    steps, taken, squared_residual, squared_right, *coefficients = figures.tolist()
    coefficients = coefficients[: 2 * int(taken)]
    residual = math.sqrt(squared_residual / squared_right) if squared_right > 0.0 else 0.0
    return History(int(steps), residual, coefficients[::2], coefficients[1::2])
