"""Conjugate gradient on the Fisher of a small multilayer perceptron, from beginning to end in one kernel."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_npg.linalg.chain import FisherChain
from sb3_npg.linalg.cupy.chain_copy import ChainKey, chain_key
from sb3_npg.linalg.cupy.chain_layout import GIVEN_SLOPE, ChainLayout, ChainShape, RowLayout, TileLayout
from sb3_npg.linalg.cupy.device import Argument, Device, FusedSolution, Launch, forget_oldest, in_rows

#: Solves (F + λI) x = b for b, what the residual is compared with, λ, rtol and the largest number of steps.
Solve = Callable[[th.Tensor, th.Tensor, float, float, int], FusedSolution]


class _Workspace(NamedTuple):
    """What a solve needs besides its problem, kept from one to the next."""

    source: str
    launch: Launch
    slopes: tuple[int, ...]
    covers: bool
    places: th.Tensor
    partial: th.Tensor
    reduced: th.Tensor
    barrier: th.Tensor


class ChainSolver:
    """
    Runs the kernel for networks that fit into the shared memory of a processor.

    A block keeps W, the search direction, the residual and one tile of the rollout in shared memory; with no more tiles
    than processors nothing of the rollout is read twice.

    :param device: the GPU
    """

    def __init__(self, device: Device):
        self.device = device
        self._workspaces: dict[ChainKey, _Workspace] = {}

    def layout_of(self, shape: ChainShape, n_rows: int) -> ChainLayout | None:
        """Return how the kernel lays out a network and so many rows; None if the network is too large."""
        device = self.device
        if device.has_tensor_cores:
            layout = _layout_by_rows(shape, n_rows, device.n_processors, device.shared_bytes)
            if layout is not None:
                return layout
        return _layout_by_tiles(shape, n_rows, device.n_processors, device.shared_bytes)

    def solve_of(self, chain: FisherChain) -> Solve | None:
        """Return :meth:`solve` for a network; None if it does not fit."""
        workspace = self._workspace(chain)
        return None if workspace is None else partial(self._solve, workspace, chain)

    def solve(
        self, chain: FisherChain, right: th.Tensor, reference: th.Tensor, damping: float, rtol: float, max_steps: int
    ) -> FusedSolution:
        """
        Solve (F + λI) x = b from x = 0, without waiting for the device.

        :param chain: F, which fits
        :param right: b, shape (p,)
        :param reference: what the residual is compared with, shape (p,)
        :param damping: λ
        :param rtol: stop at ‖r‖ ≤ rtol ‖reference‖
        :param max_steps: largest number of steps
        :return: x, F x and what happened
        """
        solve = self.solve_of(chain)
        if solve is None:
            raise ValueError("the network does not fit into shared memory")
        return solve(right, reference, damping, rtol, max_steps)

    def _solve(
        self,
        workspace: _Workspace,
        chain: FisherChain,
        right: th.Tensor,
        reference: th.Tensor,
        damping: float,
        rtol: float,
        max_steps: int,
    ) -> FusedSolution:
        scalar = np.float32 if right.dtype == th.float32 else np.float64
        vectors = right.new_empty(2, len(right)) if workspace.covers else right.new_zeros(2, len(right))
        figures = right.new_empty(4 + 2 * max_steps)
        tensors: list[th.Tensor | None] = []
        for layer, kind in zip(chain.layers, workspace.slopes, strict=True):
            tensors += (layer.inputs, layer.slope if kind == GIVEN_SLOPE else None, layer.weight)
        tensors += (chain.diagonal, chain.noise, workspace.places, chain.scale, right, reference)
        arguments: list[Argument] = [tensor if tensor is None else in_rows(tensor) for tensor in tensors]
        arguments += [np.int32(chain.n_rows), scalar(damping), scalar(rtol), np.int32(max_steps)]
        arguments += [scalar(th.finfo(right.dtype).tiny), vectors[0], vectors[1], figures]
        arguments += [workspace.partial, workspace.reduced, workspace.barrier]
        self.device.launch(workspace.source, "chain_cg", workspace.launch, arguments)
        return FusedSolution(vectors, figures)

    def _workspace(self, chain: FisherChain) -> _Workspace | None:
        key = chain_key(chain)
        if key not in self._workspaces:
            layout = self.layout_of(key.shape, key.n_rows)
            if layout is None:
                return None
            forget_oldest(self._workspaces, leave=7)
            self._workspaces[key] = self._new_workspace(chain, layout)
        return self._workspaces[key]

    def _new_workspace(self, chain: FisherChain, layout: ChainLayout) -> _Workspace:
        n_blocks = min(-(-chain.n_rows // layout.tile), self.device.n_processors)
        places = layout.places(chain)
        new, device = chain.diagonal.new_empty, chain.diagonal.device
        return _Workspace(
            layout.source(),
            Launch(n_blocks, layout.threads, layout.shared_bytes, cooperative=True),
            layout.shape.slopes,
            sum(place >= 0 for place in places) == chain.size,
            th.tensor(places, dtype=th.int32, device=device),
            new((n_blocks, layout.padded)),
            new(layout.padded),
            th.zeros(1, dtype=th.int64, device=device),
        )


@cache
def _layout_by_tiles(shape: ChainShape, n_rows: int, n_processors: int, shared_bytes: int) -> ChainLayout | None:
    layouts = [TileLayout(shape, tile) for tile in TileLayout.sizes]
    fitting = [layout for layout in layouts if layout.shared_bytes <= shared_bytes]
    enough = [layout for layout in fitting if -(-n_rows // layout.tile) <= n_processors]
    return (enough or fitting[::-1])[0] if fitting else None


@cache
def _layout_by_rows(shape: ChainShape, n_rows: int, n_processors: int, shared_bytes: int) -> ChainLayout | None:
    """Return the layout of a network of narrow layers, where its rows do not fit into all processors at once."""
    layout = RowLayout(shape, RowLayout.size)
    is_narrow = max(shape.widths()[1:]) <= RowLayout.widest and shape.dtype == th.float32
    is_long = n_rows > TileLayout.sizes[-1] * n_processors
    return layout if is_narrow and is_long and layout.shared_bytes <= shared_bytes else None
