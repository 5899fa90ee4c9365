"""How the kernels for conjugate gradient lay out a network of fully connected layers in memory."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
import torch as th

from sb3_npg.linalg.chain import ChainLayer, FisherChain
from sb3_npg.linalg.cupy.sources import c_list, kernel_source, real, rounded_up, terms

_NO_SLOPE, GIVEN_SLOPE, _TANH_SLOPE = range(3)


class ChainShape(NamedTuple):
    """
    The properties of a chain that a kernel is compiled for.

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
        outputs, inputs = zip(*(layer.weight.shape for layer in chain.layers), strict=True)
        return cls(
            inputs,
            outputs,
            tuple([_slope_kind(layer, layer is last) for layer in chain.layers]),
            chain.groups,
            (0, 0) if chain.noise is None else (chain.noise.shape[0], chain.noise.shape[1]),
            chain.scale is not None,
            chain.diagonal.dtype,
        )

    def widths(self) -> tuple[int, ...]:
        """Return the widths of all layers' inputs, and of the outputs."""
        return (*self.inputs, self.outputs[-1])


@dataclass(frozen=True)
class ChainLayout(ABC):
    """
    Where vectors, weights and rows lie in a block's shared memory.

    Vectors are padded: layer after layer, each weight in rows of one stride, then the bias; the noise at the end.

    :param shape: of the chain
    :param tile: rows that a block works on at a time
    """

    shape: ChainShape
    tile: int
    #: Threads of a block.
    threads: ClassVar[int]
    #: The file with the product over a tile's rows.
    product: ClassVar[str]

    @cached_property
    @abstractmethod
    def strides(self) -> list[int]:
        """The padded widths of each layer's inputs, and of the outputs."""

    @property
    @abstractmethod
    def shared_numbers(self) -> int:
        """How many numbers a block keeps in shared memory."""

    @property
    def shared_bytes(self) -> int:
        """The shared memory of a block."""
        return self.shared_numbers * self.shape.dtype.itemsize

    @cached_property
    def offsets(self) -> list[int]:
        """Where each layer begins in a padded vector, and where the noise does."""
        offsets = [0]
        for stride, width in zip(self.strides, self.shape.outputs, strict=False):
            offsets.append(offsets[-1] + rounded_up(width * stride + width, 4))
        return offsets

    @property
    def padded(self) -> int:
        """The length of a padded vector."""
        return rounded_up(self.offsets[-1] + self.shape.noise[0] * self.shape.noise[1], 4)

    @property
    def weights(self) -> int:
        """How many numbers the weights of all layers but the first take."""
        pairs = zip(self.shape.outputs[1:], self.strides[1:-1], strict=True)
        return sum(rounded_up(width, 8) * stride for width, stride in pairs)

    def source(self) -> str:
        """Return the source of the kernel."""
        shape, layers = self.shape, range(len(self.shape.inputs))
        parameters = ", ".join(f"const real* a{i}, const real* s{i}, const real* w{i}" for i in layers)
        return kernel_source(
            "chain_cg",
            includes=("tensor_cores", "chain_layout", self.product),
            defines={
                "REAL": real(shape.dtype),
                "THREADS": self.threads,
                "TERMS": terms(),
                "TILE": self.tile,
                "LAYERS": len(shape.inputs),
                "INPUTS": c_list(shape.inputs),
                "OUTPUTS": c_list(shape.outputs),
                "STRIDES": c_list(self.strides),
                "ACTIVATIONS": c_list(shape.slopes),
                "GROUPS": c_list(shape.groups or (0,)),
                "NOISE_GROUPS": shape.noise[0],
                "NOISE_SIZE": shape.noise[1],
                "SCALED": int(shape.scaled),
                "LAYER_PARAMETERS": parameters,
                "LAYER_POINTERS": ", ".join(f"{{a{i}, s{i}, w{i}}}" for i in layers),
                "EXPECTED_PADDED": self.padded,
                "EXPECTED_SHARED": self.shared_numbers,
            },
        )

    def places(self, chain: FisherChain) -> list[int]:
        """Return where each number of a padded vector lies in a vector; −1 for padding and what is not trained."""
        places = np.full(self.padded, -1, dtype=np.int32)
        for layer, offset, stride in zip(chain.layers, self.offsets, self.strides, strict=False):
            outputs, inputs = layer.weight.shape
            if layer.weight_span is not None:
                flat = np.arange(layer.weight_span.start, layer.weight_span.stop).reshape(outputs, inputs)
                places[offset : offset + outputs * stride].reshape(outputs, stride)[:, :inputs] = flat
            if layer.bias_span is not None:
                begin = offset + outputs * stride
                places[begin : begin + outputs] = np.arange(layer.bias_span.start, layer.bias_span.stop)
        if chain.noise_span is not None:
            begin = self.offsets[-1]
            span = chain.noise_span
            places[begin : begin + span.stop - span.start] = np.arange(span.start, span.stop)
        return list(places)


class TileLayout(ChainLayout):
    """A tile of rows in shared memory, on which all warps work layer by layer; a block's only tile stays there."""

    threads = 512
    product = "chain_product"
    #: Rows of a tile.
    sizes = (16, 32, 64)

    @cached_property
    def strides(self) -> list[int]:
        """Row lengths at which eight consecutive rows begin in different banks."""
        return [rounded_up(width, 8) + 4 for width in self.shape.widths()]

    @property
    def shared_numbers(self) -> int:
        """Three or four vectors, and for a tile all that passes from layer to layer."""
        shape, strides, warps = self.shape, self.strides, self.threads // 32
        slopes = sum(stride for kind, stride in zip(shape.slopes, strides[1:], strict=True) if kind == GIVEN_SLOPE)
        widest = max(strides[1:])
        rows = sum(strides[:-1]) + slopes + 2 * widest + strides[-1]
        parts = max(4 * self.threads, 128 * warps, 2 * self.tile * widest) + 16 * widest
        gap = 4  # between what a layer passes on and what the next does
        return (3 + shape.scaled) * self.padded + self.weights + self.tile * rows + gap + parts + 32


class RowLayout(ChainLayout):
    """For many rows: each warp takes sixteen of them through all layers and back in its registers."""

    threads = 256
    product = "chain_rows"
    #: Rows of a tile.
    size = threads // 2
    #: Largest width of a layer of which a warp's registers can hold sixteen rows.
    widest = 64

    @cached_property
    def strides(self) -> list[int]:
        """Row lengths at which pairs of numbers from four rows, or single ones from eight, lie in different banks."""
        return [rounded_up(width + 8, 16) - 8 for width in self.shape.widths()]

    @property
    def shared_numbers(self) -> int:
        """Two or three vectors, the inputs of all layers for a tile, and one layer's δ."""
        widest = max(self.strides[1:])
        tile = self.tile * (sum(self.strides[:-1]) + widest) + 16 * widest
        between = self.padded + 4 * self.threads
        return (2 + self.shape.scaled) * self.padded + self.weights + max(tile, between) + 32


def _slope_kind(layer: ChainLayer, is_last: bool) -> int:
    if layer.slope is None:
        return _NO_SLOPE
    return _TANH_SLOPE if layer.is_tanh and not is_last else GIVEN_SLOPE
