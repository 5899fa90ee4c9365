"""A convolution's part in the Jacobian of a network."""

import torch as th
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from sb3_npg.fisher.patches import by_position, conv_arguments, mean_patch, patches
from sb3_npg.fisher.statistics import WeightSharing
from sb3_npg.fisher.steps import LayerStep, NetworkLayer, sloped, with_slope
from sb3_npg.parameters import ParameterVector
from sb3_npg.precision import convolutions_in_tf32


class ConvolutionStep(LayerStep):
    """
    A Conv2d layer's part in J.

    :param layer: the layer
    :param convolution: its linear map
    :param parameters: θ
    :param reached: whether a layer before this one has a part in θ
    """

    def __init__(self, layer: NetworkLayer, convolution: nn.Conv2d, parameters: ParameterVector, reached: bool):
        super().__init__(layer, parameters, reached)
        self._convolution = convolution
        self._layout = th.contiguous_format
        self._kernel = self.weight
        self._arguments = conv_arguments(convolution)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """Keep inputs and slopes, and return a_out."""
        self._layout = layout_for(inputs)
        self.inputs, self._kernel = self._laid_out(inputs), self._laid_out(self.weight)
        sums = F.conv2d(self.inputs, self._kernel, self._bias, *self._arguments)
        outputs, self.slope = with_slope(self.activation, sums)
        self.output_shape = outputs.shape[1:]
        return outputs

    def push(self, vector: th.Tensor, tangent: th.Tensor | None) -> th.Tensor | None:
        """Return ∂a_out."""
        if tangent is None and not self.acts:
            return None
        if self.weight_span is None:
            out = self.weight.new_zeros(len(self.inputs), *self.output_shape)
        else:
            direction = self._laid_out(vector[self.weight_span].view_as(self.weight))
            out = F.conv2d(self.inputs, direction, None, *self._arguments)
        if tangent is not None:
            out += F.conv2d(self._laid_out(tangent), self._kernel, None, *self._arguments)
        if self.bias_span is not None:
            out += vector[self.bias_span].view(-1, 1, 1)
        return out if self.slope is None else out.mul_(self.slope)

    def pull(self, delta: th.Tensor, before: LayerStep) -> th.Tensor:
        """Return the cotangent of the previous layer's sums."""
        return sloped(self._pulled(delta), before)

    def pull_all(self, deltas: th.Tensor, before: LayerStep) -> th.Tensor:
        """Return c cotangents of the previous layer's sums."""
        pulled = self._pulled(deltas.flatten(0, 1))
        return sloped(pulled.view(*deltas.shape[:2], *pulled.shape[1:]), before)

    def write_gradient(self, delta: th.Tensor, gradient: th.Tensor) -> None:
        """Write the layer's part of the gradient."""
        if self.weight_span is not None:
            weight = conv2d_weight(self.inputs, self.weight.shape, self._laid_out(delta), *self._arguments)  # type: ignore[no-untyped-call]
            gradient[self.weight_span] = weight.flatten()
        if self.bias_span is not None:
            th.sum(delta, dim=(0, 2, 3), out=gradient[self.bias_span])

    def in_chain(self) -> None:
        """Return None: a convolution is not one matrix."""
        return

    def homogeneous_inputs(self, weight_sharing: WeightSharing) -> th.Tensor:
        """Return its patches, shape (n, T, a), or their mean, shape (n, 1, a)."""
        is_reduced, has_bias = weight_sharing == "reduce", self.bias_span is not None
        if self.weight_span is None:
            return self.inputs.new_ones(len(self.inputs), 1 if is_reduced else self.output_shape[1:].numel(), 1)
        if is_reduced:
            return F.pad(mean_patch(self._convolution, self.inputs), (0, int(has_bias)), value=1.0)
        return patches(self._convolution, self.inputs, n_ones=int(has_bias))

    def by_position(self, deltas: th.Tensor, weight_sharing: WeightSharing) -> th.Tensor:
        """Return cotangents, shape (c, n, T, g), or their sum, shape (c, n, 1, g)."""
        found = by_position(deltas)
        return found.sum(dim=2, keepdim=True) if weight_sharing == "reduce" else found

    def _pulled(self, delta: th.Tensor) -> th.Tensor:
        shape = (len(delta), *self.inputs.shape[1:])
        pulled: th.Tensor = conv2d_input(  # type: ignore[no-untyped-call]
            shape, self._kernel, self._laid_out(delta), *self._arguments
        )
        return pulled

    def _laid_out(self, tensor: th.Tensor) -> th.Tensor:
        return tensor.contiguous(memory_format=self._layout)


def layout_for(images: th.Tensor) -> th.memory_format:
    """Return the memory format in which convolutions are fastest: channels last on tensor cores."""
    on_tensor_cores = images.is_cuda and images.dtype == th.float32 and convolutions_in_tf32()
    return th.channels_last if on_tensor_cores else th.contiguous_format
