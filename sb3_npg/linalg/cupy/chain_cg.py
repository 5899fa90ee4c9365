"""Conjugate gradient on the Fisher of a small multilayer perceptron, from beginning to end in one kernel."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_npg.linalg.chain import FisherChain
from sb3_npg.linalg.cupy.chain_copy import ChainKey, chain_key
from sb3_npg.linalg.cupy.chain_layout import GIVEN_SLOPE, ChainLayout, ChainShape, RowLayout, TileLayout
from sb3_npg.linalg.cupy.device import Argument, Device, FusedSolution, Launch, forget_oldest, in_rows

#: Solves (F + λI) x = b, given b, the vector that the residual is compared with, λ, rtol and the number of steps.
Solve = Callable[[th.Tensor, th.Tensor, float, float, int], FusedSolution]


class _Workspace(NamedTuple):
    """
    What a solve needs besides its problem, kept from one solve to the next.

    :param source: of the kernel
    :param launch: how it is started
    :param slopes: kind of each layer's slope
    :param covers: whether the chain's parameters are the whole vector
    :param n_rows: N, in the kernel's type
    :param tiny: the smallest normal number, in the kernel's type
    :param places: address of a table: where each number of a padded vector lies in a vector
    :param sums: addresses of the blocks' sums, of their total, and of the barrier between blocks
    :param tensors: the tensors at these addresses, kept alive
    """

    source: str
    launch: Launch
    slopes: tuple[int, ...]
    covers: bool
    n_rows: np.int32
    tiny: np.floating[Any]
    places: int
    sums: tuple[int, ...]
    tensors: tuple[th.Tensor, ...]


class ChainSolver:
    """
    Runs the kernel for networks that fit into the shared memory of a processor.

    A block keeps W, the search direction, the residual and one tile of the rollout in shared memory; with no more tiles
    than processors, each row of the rollout is read only once.

    :param device: the GPU
    """

    def __init__(self, device: Device):
        self.device = device
        self._workspaces: dict[ChainKey, _Workspace] = {}

    def layout_of(self, shape: ChainShape, n_rows: int) -> ChainLayout | None:
        """Return how the kernel lays out a network and ``n_rows`` rows; None if the network is too large."""
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
        :param reference: the vector that the residual is compared with, shape (p,)
        :param damping: λ
        :param rtol: stop at ‖r‖ ≤ rtol ‖reference‖
        :param max_steps: largest number of steps
        :return: x, F x and figures of the solve
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
        real, p = type(workspace.tiny), chain.size
        vectors = right.new_empty(2, p) if workspace.covers else right.new_zeros(2, p)
        figures = right.new_empty(4 + 2 * max_steps)
        arguments: list[Argument] = []
        for layer, kind in zip(chain.layers, workspace.slopes, strict=True):
            slope = in_rows(layer.slope) if layer.slope is not None and kind == GIVEN_SLOPE else None
            arguments += (in_rows(layer.inputs), slope, in_rows(layer.weight))
        noise, scale = (None if tensor is None else in_rows(tensor) for tensor in (chain.noise, chain.scale))
        arguments += (in_rows(chain.diagonal), noise, workspace.places, scale, in_rows(right), in_rows(reference))
        arguments += (workspace.n_rows, real(damping), real(rtol), np.int32(max_steps), workspace.tiny)
        x = vectors.data_ptr()
        arguments += (x, x + p * vectors.element_size(), figures, *workspace.sums)
        self.device.launch(workspace.source, "chain_cg", workspace.launch, arguments)
        return FusedSolution(vectors, figures)

    def _workspace(self, chain: FisherChain) -> _Workspace | None:
        key = chain_key(chain)
        workspace = self._workspaces.get(key)
        if workspace is None and (layout := self.layout_of(key.shape, key.n_rows)) is not None:
            forget_oldest(self._workspaces, leave=7)
            workspace = self._workspaces[key] = self._new_workspace(chain, layout)
        return workspace

    def _new_workspace(self, chain: FisherChain, layout: ChainLayout) -> _Workspace:
        n_blocks = min(-(-chain.n_rows // layout.tile), self.device.n_processors)
        found = layout.places(chain)
        new, device = chain.diagonal.new_empty, chain.diagonal.device
        places = th.tensor(found, dtype=th.int32, device=device)
        sums = new((n_blocks, layout.padded)), new(layout.padded), th.zeros(1, dtype=th.int64, device=device)
        real = np.float32 if layout.shape.dtype == th.float32 else np.float64
        return _Workspace(
            layout.source(),
            Launch(n_blocks, layout.threads, layout.shared_bytes, cooperative=True),
            layout.shape.slopes,
            sum(place >= 0 for place in found) == chain.size,
            np.int32(chain.n_rows),
            real(th.finfo(layout.shape.dtype).tiny),
            places.data_ptr(),
            tuple(tensor.data_ptr() for tensor in sums),
            (places, *sums),
        )


@cache
def _layout_by_tiles(shape: ChainShape, n_rows: int, n_processors: int, shared_bytes: int) -> ChainLayout | None:
    layouts = [TileLayout(shape, tile) for tile in TileLayout.sizes]
    fitting = [layout for layout in layouts if layout.shared_bytes <= shared_bytes]
    enough = [layout for layout in fitting if -(-n_rows // layout.tile) <= n_processors]
    return (enough or fitting[::-1])[0] if fitting else None


@cache
def _layout_by_rows(shape: ChainShape, n_rows: int, n_processors: int, shared_bytes: int) -> ChainLayout | None:
    """Return the layout by rows, if all layers are narrow and the rows do not fit into all processors at once."""
    layout = RowLayout(shape, RowLayout.size)
    is_narrow = max(shape.widths()[1:]) <= RowLayout.widest and shape.dtype == th.float32
    is_long = n_rows > TileLayout.sizes[-1] * n_processors
    return layout if is_narrow and is_long and layout.shared_bytes <= shared_bytes else None
