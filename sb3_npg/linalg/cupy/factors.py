"""The Kronecker factors of a small multilayer perceptron's layers, all in one kernel."""

import itertools
from functools import cache
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_npg.linalg.chain import FisherChain
from sb3_npg.linalg.cupy.chain_layout import GIVEN_SLOPE, ChainShape, TileLayout
from sb3_npg.linalg.cupy.device import Argument, Device, Launch, forget_oldest
from sb3_npg.linalg.cupy.sources import c_list, kernel_source, real, rounded_up, terms


class Plan(NamedTuple):
    """
    How a block goes through its rows.

    :param tile: rows at a time
    :param at_once: columns of the metric's root that are propagated together
    """

    tile: int
    at_once: int


class FactorShape(NamedTuple):
    """
    The properties of a chain that the kernel is compiled for.

    :param layers: those from the first that is trained to the last
    :param trained: whether each one's weight and its bias are trained
    """

    layers: ChainShape
    trained: tuple[tuple[bool, bool], ...]

    @classmethod
    def of(cls, chain: FisherChain) -> "FactorShape":
        """Return the shape of a chain whose first layer is trained."""
        trained = tuple((layer.weight_span is not None, layer.bias_span is not None) for layer in chain.layers)
        return cls(ChainShape.of(chain._replace(noise=None, scale=None)), trained)

    def sizes(self) -> list[tuple[int, int]]:
        """Return the sizes of each layer's A and G; zero where it is not trained."""
        widths = zip(self.layers.inputs, self.layers.outputs, self.trained, strict=True)
        return [
            (weight * inputs + bias, outputs if weight or bias else 0) for inputs, outputs, (weight, bias) in widths
        ]

    def n_pieces(self) -> int:
        """Return the number of pieces in the factors' lower triangles."""
        return sum(_pieces(size) for sizes in self.sizes() for size in sizes)

    def offsets(self) -> list[int]:
        """Return where each factor begins in the kernel's result, and where the last one ends."""
        return list(itertools.accumulate((rounded_up(n * n, 4) for pair in self.sizes() for n in pair), initial=0))

    def shared_bytes(self, plan: Plan) -> int:
        """Return the shared memory of a block."""
        return _shared_numbers(self.layers, plan) * self.layers.dtype.itemsize

    def source(self, plan: Plan) -> str:
        """Return the source of the kernel for a plan."""
        inputs, outputs, slopes, groups, *_ = self.layers
        layers = range(len(inputs))
        weights, biases = zip(*self.trained, strict=True)
        return kernel_source(
            "chain_factors",
            includes=("tensor_cores",),
            defines={
                "REAL": real(self.layers.dtype),
                "THREADS": TileLayout.threads,
                "TERMS": terms(),
                "TILE": plan.tile,
                "AT_ONCE": plan.at_once,
                "LAYERS": len(inputs),
                "INPUTS": c_list(inputs),
                "OUTPUTS": c_list(outputs),
                "ACTIVATIONS": c_list(slopes),
                "TRAINS_WEIGHT": c_list(list(map(int, weights))),
                "TRAINS_BIAS": c_list(list(map(int, biases))),
                "GROUPS": c_list(groups or (0,)),
                "LAYER_PARAMETERS": ", ".join(f"const real* a{i}, const real* s{i}, const real* w{i}" for i in layers),
                "LAYER_POINTERS": ", ".join(f"{{a{i}, s{i}, w{i}}}" for i in layers),
                "EXPECTED_PIECES": self.n_pieces(),
                "EXPECTED_SHARED": _shared_numbers(self.layers, plan),
            },
        )


def _stride(width: int) -> int:
    """Return the length of a row in shared memory; the kernel's `stride_for`."""
    whole = rounded_up(width, 8)
    return whole + 8 * (whole % 16 == 0)


def _pieces(size: int) -> int:
    """Return how many pieces of 16 × 8 a lower triangle has; the kernel's `pieces_of`."""
    bands, columns = -(-size // 16), -(-size // 8)
    return bands * (bands + 1) - (2 * bands - columns)


@cache
def _shared_numbers(shape: ChainShape, plan: Plan) -> int:
    """Return how many numbers a block keeps in shared memory."""
    deltas = [_stride(width) for width in shape.outputs]
    later = zip(shape.inputs[1:], shape.outputs[1:], strict=True)
    weights = sum(rounded_up(outputs, 8) * _stride(inputs) for inputs, outputs in later)
    slopes = sum(stride for kind, stride in zip(shape.slopes, deltas, strict=True) if kind == GIVEN_SLOPE)
    rows = sum(_stride(width + 1) for width in shape.inputs) + slopes + deltas[-1]
    delta = max(plan.tile * plan.at_once * max(deltas), 2 * TileLayout.threads)
    return weights + plan.tile * rows + 2 * delta + 32


class _Workspace(NamedTuple):
    """What a call needs besides its problem, kept from one call to the next."""

    source: str
    launch: Launch
    shape: FactorShape
    offsets: list[int]
    partial: th.Tensor
    barrier: th.Tensor


class FactorSolver:
    """
    Runs the kernel for networks that fit into the shared memory of a processor.

    A block takes a tile of the rollout at a time, with as many columns of the metric's root as fit.

    :param device: the GPU
    """

    def __init__(self, device: Device):
        self.device = device
        self._workspaces: dict[tuple[object, ...], _Workspace] = {}

    def plan_of(self, shape: FactorShape, n_rows: int) -> Plan | None:
        """Return the plan for blocks: one tile each if there are enough processors; None if nothing fits."""
        return _plan_of(shape, n_rows, self.device.n_processors, self.device.shared_bytes)

    def fits(self, chain: FisherChain) -> bool:
        """Tell whether the kernel can compute the factors of a network."""
        chain = _from_first_trained(chain)
        if not chain.layers or chain.diagonal.dtype not in (th.float32, th.float64):
            return False
        return self.plan_of(FactorShape.of(chain), chain.n_rows) is not None

    def solve(self, chain: FisherChain) -> list[tuple[th.Tensor, th.Tensor]]:
        """
        Return the factors A = (1/N) Σ_n ã ãᵀ and G = (1/N) Σ_n Σ_c δ_nc δ_ncᵀ, without waiting for the device.

        δ_nc is column c of an exact root of M_n, propagated back to a layer's outputs. ã ends with a one if the bias
        is trained, and leaves out the inputs if the weight is not.

        :param chain: a network that fits; its noise and its scale are ignored
        :return: A, shape (a, a), and G, shape (g, g), of each layer that is trained; views of one tensor
        """
        chain = _from_first_trained(chain)
        workspace = self._workspace(chain)
        arguments: list[Argument] = []
        for i, (layer, kind) in enumerate(zip(chain.layers, workspace.shape.layers.slopes, strict=True)):
            tensors = layer.inputs, layer.slope if kind == GIVEN_SLOPE else None, layer.weight if i > 0 else None
            arguments += [tensor if tensor is None else tensor.contiguous() for tensor in tensors]
        factors = chain.diagonal.new_empty(workspace.offsets[-1])
        arguments += [chain.diagonal.contiguous(), np.int32(chain.n_rows), factors]
        arguments += [workspace.partial, workspace.barrier]
        self.device.launch(workspace.source, "chain_factors", workspace.launch, arguments)
        sizes = [size for pair in workspace.shape.sizes() for size in pair]
        views = [
            factors[begin : begin + n * n].view(n, n) for begin, n in zip(workspace.offsets, sizes, strict=False) if n
        ]
        return list(zip(views[::2], views[1::2], strict=True))

    def _workspace(self, chain: FisherChain) -> _Workspace:
        key = (FactorShape.of(chain), chain.n_rows, terms(), chain.diagonal.device)
        workspace = self._workspaces.get(key)
        if workspace is None:
            forget_oldest(self._workspaces, leave=7)
            workspace = self._workspaces[key] = self._new_workspace(chain, key[0])
        return workspace

    def _new_workspace(self, chain: FisherChain, shape: FactorShape) -> _Workspace:
        plan = self.plan_of(shape, chain.n_rows)
        if plan is None:
            raise ValueError("the network does not fit into shared memory")
        n_blocks = min(-(-chain.n_rows // plan.tile), self.device.n_processors)
        return _Workspace(
            shape.source(plan),
            Launch(n_blocks, TileLayout.threads, shape.shared_bytes(plan), cooperative=True),
            shape,
            shape.offsets(),
            chain.diagonal.new_empty((n_blocks, shape.n_pieces(), 128)),
            th.zeros(1, dtype=th.int64, device=chain.diagonal.device),
        )


@cache
def _plan_of(shape: FactorShape, n_rows: int, n_processors: int, shared_bytes: int) -> Plan | None:
    batches = {tile: _most_at_once(shape, tile, shared_bytes) for tile in TileLayout.sizes}
    fitting = [Plan(tile, at_once) for tile, at_once in batches.items() if at_once]
    enough = [plan for plan in fitting if -(-n_rows // plan.tile) <= n_processors]
    return (enough or fitting[::-1])[0] if fitting else None


def _most_at_once(shape: FactorShape, tile: int, shared_bytes: int) -> int:
    """Return the largest number of columns that fits, in batches as even as possible; 0 if none fits."""
    n_columns = shape.layers.outputs[-1]
    for n_batches in range(1, n_columns + 1):
        at_once = -(-n_columns // n_batches)
        if shape.shared_bytes(Plan(tile, at_once)) <= shared_bytes:
            return at_once
    return 0


def _from_first_trained(chain: FisherChain) -> FisherChain:
    """Drop the layers before the first that is trained: nothing is propagated back to them."""
    is_trained = [layer.weight_span is not None or layer.bias_span is not None for layer in chain.layers]
    first = is_trained.index(True) if any(is_trained) else len(is_trained)
    return chain._replace(layers=chain.layers[first:])
