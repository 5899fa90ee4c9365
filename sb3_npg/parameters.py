"""Which tensors the policy step may move, and those tensors as one flat vector."""

import functools
import itertools
from collections.abc import Iterable, Sequence

import torch as th
from torch import nn


class ParameterVector:
    """
    Some of a policy's parameters, read and written as one flat vector of shape (p,).

    :param tensors: the parameters, in the order they take in the vector
    """

    def __init__(self, tensors: Sequence[nn.Parameter]):
        self.tensors = tuple(tensors)
        self.sizes = [tensor.numel() for tensor in self.tensors]

    def __len__(self) -> int:
        return sum(self.sizes)

    @functools.cached_property
    def dtype(self) -> th.dtype:
        """Type of the vector's numbers: one that holds those of all tensors."""
        return functools.reduce(th.promote_types, (tensor.dtype for tensor in self.tensors))

    def new_zeros(self, *shape: int) -> th.Tensor:
        """Return zeros of the vector's dtype, on its device."""
        return self.tensors[0].new_zeros(shape, dtype=self.dtype)

    def spans(self) -> list[slice]:
        """Return where each tensor lies in the vector."""
        stops = list(itertools.accumulate(self.sizes))
        return [slice(stop - size, stop) for stop, size in zip(stops, self.sizes, strict=True)]

    def span_of(self, tensor: object) -> slice | None:
        """Return where a tensor lies in the vector; None if it is not in it."""
        pairs = zip(self.tensors, self.spans(), strict=True)
        return next((span for one, span in pairs if one is tensor), None)

    def get(self) -> th.Tensor:
        """Return a copy of the parameters, shape (p,)."""
        return self.flatten([tensor.detach() for tensor in self.tensors])

    def set(self, vector: th.Tensor) -> None:
        """
        Write the parameters in place.

        Counts as a modification for autograd: a graph built before can no longer be used by mistake.

        :param vector: shape (p,)
        """
        with th.no_grad():
            for tensor, values in zip(self.tensors, self.split(vector), strict=True):
                tensor.copy_(values)

    def flatten(self, tensors: Sequence[th.Tensor]) -> th.Tensor:
        """Join tensors of the parameters' shapes into one vector of shape (p,)."""
        return th.cat([tensor.reshape(-1) for tensor in tensors])

    def split(self, vector: th.Tensor) -> list[th.Tensor]:
        """Cut a vector of shape (p,) into views of the parameters' shapes."""
        pieces = th.split(vector, self.sizes)
        return [piece.view(tensor.shape) for piece, tensor in zip(pieces, self.tensors, strict=True)]


def is_trained(parameter: nn.Parameter) -> bool:
    """Tell whether a parameter requires a gradient and is not empty."""
    return parameter.requires_grad and parameter.numel() > 0


def reached_parameters(output: th.Tensor, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """
    Tell which parameters an output depends on, by following its autograd graph.

    Names do not matter: a layer called ``value_attention`` that the action passes through acts, whereas
    a frozen (``requires_grad=False``) or empty parameter does not.

    :param output: any tensor with a graph
    :param parameters: the candidates
    :return: those reached, in the candidates' order
    """
    candidates = [parameter for parameter in parameters if is_trained(parameter)]
    if not output.requires_grad or not candidates:
        return []
    gradients = th.autograd.grad(output.sum(), candidates, allow_unused=True)
    return [parameter for parameter, gradient in zip(candidates, gradients, strict=True) if gradient is not None]
