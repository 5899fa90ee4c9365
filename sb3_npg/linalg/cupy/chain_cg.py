"""Conjugate gradient on the Fisher of a small multilayer perceptron, from beginning to end in one kernel."""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_npg.linalg.chain import ChainLayer, FisherChain
from sb3_npg.linalg.cupy.device import Argument, Device, FusedSolution, Launch, forget_oldest, in_rows
from sb3_npg.linalg.cupy.sources import c_list, kernel_source, rounded_up, terms

#: Rows that a block may work on at a time.
TILES = (16, 32, 64)
THREADS = 512
_NO_SLOPE, GIVEN_SLOPE, _TANH_SLOPE = range(3)


class ChainShape(NamedTuple):
    """
    All that a kernel is compiled for.

    :param inputs: width of each layer's inputs
    :param outputs: width of each layer's outputs
    :param slopes: kind of each layer's slope
    :param groups: sizes of categoricals; empty for a diagonal metric
    :param noise: number and size of the noise's blocks
    :param scaled: whether the coordinates are scaled
    :param dtype: of all tensors
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    slopes: tuple[int, ...]
    groups: tuple[int, ...]
    noise: tuple[int, int]
    scaled: bool
    dtype: th.dtype

    @classmethod
    def of(cls, chain: FisherChain) -> "ChainShape":
        """Return a chain's shape."""
        last = chain.layers[-1]
        return cls(
            tuple(layer.weight.shape[1] for layer in chain.layers),
            tuple(len(layer.weight) for layer in chain.layers),
            tuple(_slope_kind(layer, layer is last) for layer in chain.layers),
            chain.groups,
            (0, 0) if chain.noise is None else (chain.noise.shape[0], chain.noise.shape[1]),
            chain.scale is not None,
            chain.diagonal.dtype,
        )

    def strides(self) -> list[int]:
        """Return the padded widths of each layer's inputs, and of the outputs."""
        return [rounded_up(width, 8) + 4 for width in (*self.inputs, self.outputs[-1])]

    def layer_offsets(self) -> list[int]:
        """Return where each layer begins in a padded vector, and where the noise does."""
        offsets = [0]
        for stride, width in zip(self.strides(), self.outputs, strict=False):
            offsets.append(offsets[-1] + rounded_up(width * stride + width, 4))
        return offsets

    def padded(self) -> int:
        """Return the length of a padded vector."""
        return rounded_up(self.layer_offsets()[-1] + self.noise[0] * self.noise[1], 4)

    def shared_bytes(self, tile: int) -> int:
        """Return the shared memory of a block."""
        return shared_numbers(self, tile) * self.dtype.itemsize

    def source(self, tile: int) -> str:
        """Return the kernel for tiles of so many rows."""
        layers = range(len(self.inputs))
        parameters = ", ".join(f"const real* a{i}, const real* s{i}, const real* w{i}" for i in layers)
        return kernel_source(
            "chain_cg",
            includes=("tensor_cores", "chain_product"),
            defines={
                "REAL": "float" if self.dtype == th.float32 else "double",
                "THREADS": THREADS,
                "TERMS": terms(),
                "TILE": tile,
                "LAYERS": len(self.inputs),
                "INPUTS": c_list(self.inputs),
                "OUTPUTS": c_list(self.outputs),
                "ACTIVATIONS": c_list(self.slopes),
                "GROUPS": c_list(self.groups or (0,)),
                "NOISE_GROUPS": self.noise[0],
                "NOISE_SIZE": self.noise[1],
                "SCALED": int(self.scaled),
                "LAYER_PARAMETERS": parameters,
                "LAYER_POINTERS": ", ".join(f"{{a{i}, s{i}, w{i}}}" for i in layers),
                "EXPECTED_PADDED": self.padded(),
                "EXPECTED_SHARED": shared_numbers(self, tile),
            },
        )

    def places(self, chain: FisherChain) -> list[int]:
        """Return where in a vector each number of a padded vector lies; −1 for those that are not in it."""
        places = np.full(self.padded(), -1, dtype=np.int32)
        for layer, offset, stride in zip(chain.layers, self.layer_offsets(), self.strides(), strict=False):
            outputs, inputs = layer.weight.shape
            if layer.weight_span is not None:
                flat = np.arange(layer.weight_span.start, layer.weight_span.stop).reshape(outputs, inputs)
                places[offset : offset + outputs * stride].reshape(outputs, stride)[:, :inputs] = flat
            if layer.bias_span is not None:
                begin = offset + outputs * stride
                places[begin : begin + outputs] = np.arange(layer.bias_span.start, layer.bias_span.stop)
        if chain.noise_span is not None:
            begin = self.layer_offsets()[-1]
            span = chain.noise_span
            places[begin : begin + span.stop - span.start] = np.arange(span.start, span.stop)
        return list(places)


@cache
def shared_numbers(shape: ChainShape, tile: int) -> int:
    """Return how many numbers a block keeps in shared memory, for tiles of so many rows."""
    strides, warps = shape.strides(), THREADS // 32
    weights = sum(rounded_up(width, 8) * stride for width, stride in zip(shape.outputs[1:], strides[1:-1], strict=True))
    slopes = sum(stride for kind, stride in zip(shape.slopes, strides[1:], strict=True) if kind == GIVEN_SLOPE)
    widest = max(strides[1:])
    rows = sum(strides[:-1]) + slopes + 2 * widest + strides[-1]
    parts = max(4 * THREADS, 128 * warps, 2 * tile * widest) + 16 * widest
    return (3 + shape.scaled) * shape.padded() + weights + tile * rows + parts + 32


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
        self._workspaces: dict[tuple[object, ...], _Workspace] = {}

    def tile_of(self, shape: ChainShape, n_rows: int) -> int | None:
        """Return the rows that a block should take at a time; None if the network is too large."""
        return _tile_of(shape, n_rows, self.device.n_processors, self.device.shared_bytes)

    def fits(self, chain: FisherChain) -> bool:
        """Tell whether this network can be solved here."""
        return self.tile_of(ChainShape.of(chain), chain.n_rows) is not None

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
        workspace = self._workspace(chain)
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

    def _workspace(self, chain: FisherChain) -> _Workspace:
        shape = ChainShape.of(chain)
        key = (shape, chain.n_rows, chain.spans(), terms(), chain.diagonal.device)
        if key not in self._workspaces:
            forget_oldest(self._workspaces, leave=7)
            self._workspaces[key] = self._new_workspace(chain, shape)
        return self._workspaces[key]

    def _new_workspace(self, chain: FisherChain, shape: ChainShape) -> _Workspace:
        tile = self.tile_of(shape, chain.n_rows)
        if tile is None:
            raise ValueError("the network does not fit into shared memory")
        n_blocks = min(-(-chain.n_rows // tile), self.device.n_processors)
        places = shape.places(chain)
        new, device = chain.diagonal.new_empty, chain.diagonal.device
        return _Workspace(
            shape.source(tile),
            Launch(n_blocks, THREADS, shape.shared_bytes(tile), cooperative=True),
            shape.slopes,
            sum(place >= 0 for place in places) == chain.size,
            th.tensor(places, dtype=th.int32, device=device),
            new((n_blocks, shape.padded())),
            new(shape.padded()),
            th.zeros(1, dtype=th.int64, device=device),
        )


@cache
def _tile_of(shape: ChainShape, n_rows: int, n_processors: int, shared_bytes: int) -> int | None:
    fitting = [tile for tile in TILES if shape.shared_bytes(tile) <= shared_bytes]
    enough = [tile for tile in fitting if -(-n_rows // tile) <= n_processors]
    return (enough or fitting[::-1])[0] if fitting else None


def _slope_kind(layer: ChainLayer, is_last: bool) -> int:
    if layer.slope is None:
        return _NO_SLOPE
    return _TANH_SLOPE if layer.is_tanh and not is_last else GIVEN_SLOPE
