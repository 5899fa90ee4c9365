"""Conjugate gradient with scalars that stay on the device, for products computed by torch."""

import threading
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_npg.graphs import Capture, Graph
from sb3_npg.linalg.chain import FisherChain
from sb3_npg.linalg.cupy.chain_copy import ChainCopy, chain_key
from sb3_npg.linalg.cupy.device import Argument, Device, FusedSolution, Launch, forget_oldest
from sb3_npg.linalg.cupy.sources import kernel_source, real
from sb3_npg.linalg.krylov import Operator

_THREADS = 1024
#: Numbers of a vector that one block handles before a second is used.
BLOCK_UNKNOWNS = 8192
#: Numbers of the state that follow the coefficients of the steps.
_MORE = 4


class Vectors(NamedTuple):
    """
    The tensors of a solve with p unknowns.

    :param settings: σ and rtol, shape (2,)
    :param right: b, shape (p,)
    :param reference: the vector that the residual is compared with, shape (p,)
    :param solution: x and A x as rows, shape (2, p)
    :param residual: r, shape (p,)
    :param direction: the search direction, shape (p,)
    :param state: scalars on the device, beginning with the figures of a :class:`FusedSolution`
    :param partial: the blocks' sums
    :param barrier: the barrier between blocks
    """

    settings: th.Tensor
    right: th.Tensor
    reference: th.Tensor
    solution: th.Tensor
    residual: th.Tensor
    direction: th.Tensor
    state: th.Tensor
    partial: th.Tensor
    barrier: th.Tensor

    @classmethod
    def like(cls, right: th.Tensor, max_steps: int, n_processors: int) -> "Vectors":
        """Allocate the tensors of a solve."""
        new = right.new_empty
        barrier = th.zeros(1, dtype=th.int64, device=right.device)
        vectors = (new(2), new(right.shape), new(right.shape), new(2, len(right)), new(right.shape), new(right.shape))
        return cls(*vectors, new(4 + 2 * max_steps + _MORE), new(2 * n_processors), barrier)


class StepSolver:
    """
    Runs conjugate gradient without waiting for the device.

    All ``max_steps`` products are computed; those after convergence change nothing.

    :param device: the GPU
    """

    def __init__(self, device: Device):
        self.device = device

    def solve(
        self,
        matvec: Operator,
        right: th.Tensor,
        reference: th.Tensor,
        damping: float,
        rtol: float,
        max_steps: int,
        preconditioner: Operator | None = None,
    ) -> FusedSolution:
        """
        Solve (A + σI) x = b from x = 0.

        :param matvec: v ↦ A v
        :param right: b, shape (p,)
        :param reference: the vector that the residual is compared with, shape (p,)
        :param damping: σ
        :param rtol: stop at ‖r‖ ≤ rtol ‖reference‖
        :param max_steps: largest number of steps
        :param preconditioner: r ↦ M⁻¹ r
        :return: x, A x and figures of the solve
        """
        vectors = Vectors.like(right, max_steps, self.device.n_processors)
        vectors.settings[0].fill_(damping)
        vectors.settings[1].fill_(rtol)
        vectors = vectors._replace(right=right.contiguous(), reference=reference.contiguous())
        return self.run(matvec, vectors, max_steps, preconditioner)

    def run(
        self, matvec: Operator, vectors: Vectors, max_steps: int, preconditioner: Operator | None = None
    ) -> FusedSolution:
        """Solve the system that the vectors hold."""
        v, n = vectors, len(vectors.right)
        dtype, x, product = v.right.dtype, v.solution[0], v.solution[1]
        scalar = np.float32 if dtype == th.float32 else np.float64
        source = kernel_source("krylov", {"REAL": real(dtype), "THREADS": _THREADS})
        n_blocks = max(1, min(-(-n // BLOCK_UNKNOWNS), self.device.n_processors))
        launch = Launch(n_blocks, _THREADS, _THREADS // 32 * dtype.itemsize, cooperative=n_blocks > 1)
        sizes: list[Argument] = [np.int32(n), np.int32(max_steps)]
        sums: list[Argument] = [v.partial, v.barrier]
        begin = [*sizes, scalar(th.finfo(dtype).tiny), v.settings, v.right, v.reference]
        begin += [x, product, v.residual, v.direction, v.state, *sums]
        self.device.launch(source, "cg_begin", launch, begin)
        for _ in range(max_steps):
            z = v.residual if preconditioner is None else preconditioner(v.residual).contiguous()
            self.device.launch(source, "cg_direction", launch, [*sizes, v.residual, z, v.direction, v.state, *sums])
            moved = matvec(v.direction).contiguous()
            step = [*sizes, v.settings, v.direction, moved, x, product, v.residual, v.state, *sums]
            self.device.launch(source, "cg_step", launch, step)
        return FusedSolution(v.solution, v.state[: len(v.state) - _MORE])


class _Captured(NamedTuple):
    """A solve as a graph, with the memory that it reads and writes."""

    graph: Graph
    own: ChainCopy
    vectors: Vectors
    solution: FusedSolution


class GraphSolver:
    """
    Runs :class:`StepSolver` on a chain of layers as a CUDA graph: one launch for a whole solve.

    A graph reads from fixed addresses, so a chain is copied to the graph's own tensors before each replay, and
    parameters may be moved, loaded or replaced. Other shapes are captured anew.

    :param steps: the solver to capture
    :param capture: records a function as a CUDA graph
    """

    def __init__(self, steps: StepSolver, capture: Capture):
        self.steps = steps
        self._capture = capture
        self._captured: dict[tuple[object, ...], _Captured] = {}
        self._lock = threading.Lock()  # of the graphs' memory, which agents in several threads share

    def solve(
        self, chain: FisherChain, right: th.Tensor, reference: th.Tensor, damping: float, rtol: float, max_steps: int
    ) -> FusedSolution:
        """Solve (F + λI) x = b as :class:`StepSolver` does."""
        with self._lock:
            captured = self._for(chain, right, max_steps)
            captured.own.take(chain)
            vectors = captured.vectors
            vectors.right.copy_(right)
            vectors.reference.copy_(reference)
            vectors.settings[0].fill_(damping)
            vectors.settings[1].fill_(rtol)
            captured.graph.replay()
            solution = captured.solution
            return FusedSolution(solution.vectors.clone(), solution.figures.clone())

    def _for(self, chain: FisherChain, right: th.Tensor, max_steps: int) -> _Captured:
        key = (chain_key(chain), max_steps)
        if key not in self._captured:
            forget_oldest(self._captured, leave=3)
            own = ChainCopy(chain)
            vectors = Vectors.like(right, max_steps, self.steps.device.n_processors)
            vectors.right.copy_(right)
            vectors.reference.copy_(right)
            vectors.settings.fill_(0.0)
            graph, solution = self._capture(lambda: self.steps.run(own.chain.product, vectors, max_steps))
            self._captured[key] = _Captured(graph, own, vectors, solution)
        return self._captured[key]
