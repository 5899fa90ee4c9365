"""Chains of layers to try kernels on."""

import itertools
from collections.abc import Sequence

import torch as th

from sb3_npg.linalg import ChainLayer, FisherChain


def make_chain(
    widths: Sequence[int],
    n_rows: int,
    dtype: th.dtype = th.float64,
    activation: str | None = "tanh",
    groups: tuple[int, ...] = (),
    noise: tuple[int, int] | None = None,
    scaled: bool = False,
    last_activation: str | None = None,
    frozen: int | None = None,
) -> FisherChain:
    """
    Make a chain of random layers.

    :param widths: of the inputs, of what is between layers, and of the outputs
    :param n_rows: N
    :param dtype: of all tensors
    :param activation: "tanh", "relu" or None between layers
    :param groups: sizes of categoricals
    :param noise: number and size of the noise's blocks
    :param scaled: whether the coordinates are scaled
    :param last_activation: after the last layer
    :param frozen: a layer whose weight is not trained
    """
    generator = th.Generator().manual_seed(0)

    def normal(*shape: int) -> th.Tensor:
        return th.randn(*shape, generator=generator, dtype=th.float64)

    inputs, layers, size = normal(n_rows, widths[0]), [], 0
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        weight = normal(after, before) / before**0.5
        weight_span = slice(size, size + before * after)
        bias_span = slice(weight_span.stop, weight_span.stop + after)
        if i == frozen:
            weight_span, bias_span = None, slice(size, size + after)
        size = bias_span.stop
        kind = last_activation if i == len(widths) - 2 else activation
        outputs, slope = _activated(inputs @ weight.T + normal(after), kind)
        layers.append(ChainLayer(inputs, weight, slope, kind == "tanh", weight_span, bias_span))
        inputs = outputs
    diagonal = th.rand(n_rows, widths[-1], generator=generator, dtype=th.float64) + 0.1
    if groups:
        diagonal = th.cat([part / part.sum(1, keepdim=True) for part in th.split(diagonal, list(groups), 1)], 1)
    blocks = span = None
    if noise is not None:
        root = normal(noise[0], noise[1], noise[1])
        blocks, span = root @ root.mT, slice(size, size + noise[0] * noise[1])
        size = span.stop
    scale = th.rand(size, generator=generator, dtype=th.float64) + 0.5 if scaled else None
    return in_dtype(FisherChain(tuple(layers), diagonal, groups, blocks, span, size, scale), dtype)


def in_dtype(chain: FisherChain, dtype: th.dtype, device: str = "cpu") -> FisherChain:
    """Return a chain in another precision, on another device."""

    def moved(item):
        return item.to(device, dtype) if isinstance(item, th.Tensor) else item

    layers = tuple(ChainLayer(*map(moved, layer)) for layer in chain.layers)
    return FisherChain(*map(moved, chain))._replace(layers=layers)


def _activated(sums: th.Tensor, kind: str | None) -> tuple[th.Tensor, th.Tensor | None]:
    if kind is None:
        return sums, None
    if kind == "relu":
        return sums.relu(), (sums > 0).to(sums.dtype)
    return sums.tanh(), 1 - sums.tanh() ** 2


#: What distinguishes the kernels that are compiled.
CHAINS = {
    "one layer": {"widths": (3, 6)},
    "tanh": {"widths": (5, 9, 7, 6)},
    "relu": {"widths": (5, 8, 8, 2), "activation": "relu"},
    "no activation, noise": {"widths": (4, 7, 3), "activation": None, "noise": (3, 1)},
    "slope after the last layer": {"widths": (4, 5, 3), "last_activation": "tanh"},
    "categorical": {"widths": (5, 12, 6), "groups": (6,)},
    "categoricals": {"widths": (5, 12, 6), "groups": (2, 4)},
    "noise of features, scaled": {"widths": (5, 6, 4), "noise": (4, 6), "scaled": True},
    "frozen": {"widths": (5, 8, 7, 6), "frozen": 1},
    "one output": {"widths": (17, 33, 1)},
}
