"""Each layer's part in the Jacobian of a feed-forward network, forwards and backwards."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_npg.fisher.patches import conv_arguments, positions_along
from sb3_npg.fisher.statistics import WeightSharing
from sb3_npg.linalg import ChainLayer
from sb3_npg.parameters import ParameterVector

#: Products with fewer columns than this are several times faster with their result stored column by column.
_NARROW = 16


class NetworkLayer(NamedTuple):
    """
    A linear map and the activation that follows it.

    :param name: of the linear map
    :param linear: s = W a + b
    :param activation: φ of a = φ(s); None for the identity
    """

    name: str
    linear: nn.Linear | nn.Conv2d
    activation: nn.Module | None

    def function(self) -> Callable[[th.Tensor], th.Tensor]:
        """Return a ↦ W a + b with its tensors bound: looking them up takes longer than a small matrix product."""
        weight, bias = self.linear.weight, self.linear.bias
        if isinstance(self.linear, nn.Conv2d):
            stride, padding, dilation = conv_arguments(self.linear)
            return partial(F.conv2d, weight=weight, bias=bias, stride=stride, padding=padding, dilation=dilation)
        return partial(F.linear, weight=weight, bias=bias)

    def follow_up(self, flattening: bool) -> Callable[[th.Tensor], th.Tensor] | None:
        """
        Return the function that is applied to W a + b; None for the identity.

        :param flattening: whether the result is an image that the next layer reads as a vector
        """
        activation = None if self.activation is None else self.activation.forward
        if not flattening:
            return activation
        return lambda sums: (sums if activation is None else activation(sums)).flatten(1)

    def output_shape(self, inputs: th.Size) -> th.Size:
        """Return the shape of a row's outputs for that of its inputs."""
        if isinstance(self.linear, nn.Linear):
            return th.Size((self.linear.out_features,))
        return th.Size(
            (self.linear.out_channels, *(positions_along(self.linear, inputs[1 + dim], dim) for dim in (0, 1)))
        )


class LayerStep(ABC):
    """
    One layer's part in J of n rows: its inputs a and its slopes φ'(s).

    :param layer: the layer
    :param parameters: θ
    :param reached: whether a layer before this one has a part in θ
    """

    inputs: th.Tensor
    slope: th.Tensor | None

    def __init__(self, layer: NetworkLayer, parameters: ParameterVector, reached: bool):
        self.name = layer.name
        self.weight = layer.linear.weight.detach()
        self.activation = layer.activation
        self._bias = None if layer.linear.bias is None else layer.linear.bias.detach()
        self.weight_span, self.bias_span = map(parameters.span_of, (layer.linear.weight, layer.linear.bias))
        self.acts = self.weight_span is not None or self.bias_span is not None
        self.reached = reached
        #: Shape of a row's outputs, set by :meth:`forward`.
        self.output_shape = th.Size()

    @abstractmethod
    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """Keep inputs and slopes, and return a_out = φ(W a + b)."""

    @abstractmethod
    def push(self, vector: th.Tensor, tangent: th.Tensor | None) -> th.Tensor | None:
        """Return ∂a_out for the directions v and ∂a_in: φ'(s) ∘ (V a + v_b + W ∂a_in)."""

    @abstractmethod
    def pull(self, delta: th.Tensor, before: "LayerStep") -> th.Tensor:
        """Return the cotangent of the previous layer's sums s, given that of this layer's: φ'(s) ∘ Wᵀδ."""

    @abstractmethod
    def pull_all(self, deltas: th.Tensor, before: "LayerStep") -> th.Tensor:
        """Do the same for c cotangents of shape (c, n, …)."""

    @abstractmethod
    def write_gradient(self, delta: th.Tensor, gradient: th.Tensor) -> None:
        """Write the layer's part of the gradient, δᵀa and δ summed over rows, for the cotangent δ of its sums."""

    @abstractmethod
    def in_chain(self) -> ChainLayer | None:
        """Return the layer as plain tensors; None if it is not one matrix."""

    @abstractmethod
    def homogeneous_inputs(self, weight_sharing: WeightSharing) -> th.Tensor:
        """Return ã by position, shape (n, T, a), or its mean: the inputs if W acts, and a one if b does."""

    @abstractmethod
    def by_position(self, deltas: th.Tensor, weight_sharing: WeightSharing) -> th.Tensor:
        """Return c cotangents of the sums by position, shape (c, n, T, g), or their sum over positions."""


class LinearStep(LayerStep):
    """
    A Linear layer's part in J, with one buffer for the tangents and cotangents that pass through.

    :param layer: the layer
    :param n_rows: n
    :param parameters: θ
    :param reached: whether an earlier layer has parameters in θ
    """

    def __init__(self, layer: NetworkLayer, n_rows: int, parameters: ParameterVector, reached: bool):
        super().__init__(layer, parameters, reached)
        n_outputs = len(self.weight)
        narrow = n_outputs < _NARROW
        self._passing = self.weight.new_empty((n_outputs, n_rows) if narrow else (n_rows, n_outputs))
        if narrow:
            self._passing = self._passing.T

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """Keep inputs and slopes, and return a_out."""
        self.inputs = inputs.flatten(1)
        outputs, self.slope = with_slope(self.activation, F.linear(self.inputs, self.weight, self._bias))
        self.output_shape = outputs.shape[1:]
        return outputs

    def push(self, vector: th.Tensor, tangent: th.Tensor | None) -> th.Tensor | None:
        """Return ∂a_out."""
        if tangent is None and not self.acts:
            return None
        out = self._passing
        if self.bias_span is None:
            out.zero_()
        else:
            out.copy_(vector[self.bias_span])
        if self.weight_span is not None:
            out.addmm_(self.inputs, vector[self.weight_span].view_as(self.weight).T)
        if tangent is not None:
            out.addmm_(tangent.flatten(1), self.weight.T)
        return out if self.slope is None else out.mul_(self.slope)

    def pull(self, delta: th.Tensor, before: LayerStep) -> th.Tensor:
        """Return the cotangent of the previous layer's sums."""
        if isinstance(before, LinearStep):
            return sloped(th.mm(delta, self.weight, out=before._passing), before)
        return sloped((delta @ self.weight).view(-1, *before.output_shape), before)

    def pull_all(self, deltas: th.Tensor, before: LayerStep) -> th.Tensor:
        """Return c cotangents of the previous layer's sums."""
        return sloped((deltas @ self.weight).view(*deltas.shape[:2], *before.output_shape), before)

    def write_gradient(self, delta: th.Tensor, gradient: th.Tensor) -> None:
        """Write the layer's part of the gradient."""
        if self.weight_span is not None:
            th.mm(delta.T, self.inputs, out=gradient[self.weight_span].view_as(self.weight))
        if self.bias_span is not None:
            th.sum(delta, dim=0, out=gradient[self.bias_span])

    def in_chain(self) -> ChainLayer:
        """Return the layer as plain tensors."""
        is_tanh = type(self.activation) is nn.Tanh
        return ChainLayer(self.inputs, self.weight, self.slope, is_tanh, self.weight_span, self.bias_span)

    def homogeneous_inputs(self, weight_sharing: WeightSharing) -> th.Tensor:
        """Return ã, shape (n, 1, a)."""
        inputs = self.inputs if self.weight_span is not None else self.inputs[:, :0]
        ones = [inputs.new_ones(len(inputs), 1)] if self.bias_span is not None else []
        return th.cat([inputs, *ones], dim=1).unsqueeze(1)

    def by_position(self, deltas: th.Tensor, weight_sharing: WeightSharing) -> th.Tensor:
        """Return cotangents, shape (c, n, 1, g)."""
        return deltas.unsqueeze(2)


def with_slope(activation: nn.Module | None, sums: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
    """Return φ(s) and φ'(s); φ is elementwise, so autograd's gradient of its sum is φ'."""
    if activation is None:
        return sums, None
    if type(activation) is nn.Tanh:
        outputs = sums.tanh()
        return outputs, th.addcmul(outputs.new_ones(()), outputs, outputs, value=-1.0)
    if type(activation) is nn.ReLU:
        outputs = sums.relu_()
        return outputs, outputs.sign()
    with th.enable_grad():
        leaf = sums.requires_grad_()
        outputs = activation(leaf.clone())  # a copy, as the activation may work in place
        (slope,) = th.autograd.grad(outputs.sum(), leaf)
    return outputs.detach(), slope


def sloped(pulled: th.Tensor, before: LayerStep) -> th.Tensor:
    """Turn cotangents of a layer's outputs into cotangents of its sums, in place."""
    return pulled if before.slope is None else pulled.mul_(before.slope)
