"""A copy of a chain of layers at fixed addresses, which a CUDA graph can read again and again."""

from typing import Any, NamedTuple

import torch as th

from sb3_npg.linalg.chain import ChainLayer, FisherChain
from sb3_npg.linalg.cupy.chain_layout import ChainShape
from sb3_npg.linalg.cupy.sources import terms


class ChainKey(NamedTuple):
    """
    Everything about a chain except the numbers in its tensors: what kernels are compiled and graphs recorded for.

    :param shape: widths and kinds of the layers
    :param spans: where the parameters lie in a vector
    :param n_rows: N
    :param terms: precision of products, see :func:`~sb3_npg.linalg.cupy.sources.terms`
    :param device: of the tensors
    """

    shape: ChainShape
    spans: tuple[int, ...]
    n_rows: int
    terms: int
    device: th.device


def chain_key(chain: FisherChain) -> ChainKey:
    """Return a chain's key, with the precision of products that torch is set to now."""
    return ChainKey(ChainShape.of(chain), chain.spans(), chain.n_rows, terms(), chain.diagonal.device)


def chain_bytes(chain: FisherChain) -> int:
    """Return the memory that a chain's tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(chain))


class ChainCopy:
    """
    A copy of a chain.

    :param chain: the chain to copy first
    """

    def __init__(self, chain: FisherChain):
        def own(item: Any) -> Any:
            is_tensor = isinstance(item, th.Tensor)
            return item.detach().clone(memory_format=th.contiguous_format) if is_tensor else item

        layers = tuple(ChainLayer(*map(own, layer)) for layer in chain.layers)
        self.chain = FisherChain(*map(own, chain))._replace(layers=layers)
        self._tensors = _tensors(self.chain)

    @th.no_grad()
    def take(self, chain: FisherChain) -> None:
        """Copy a chain of the same key, in one launch."""
        th._foreach_copy_(self._tensors, [tensor.contiguous() for tensor in _tensors(chain)])


def _tensors(chain: FisherChain) -> list[th.Tensor]:
    """Return a chain's tensors; the inputs of a layer may be those of another network's too, and are copied."""
    found = [chain.diagonal, chain.noise, chain.scale]
    for layer in chain.layers:
        found += [layer.inputs, layer.weight, layer.slope]
    return [tensor for tensor in found if tensor is not None]
