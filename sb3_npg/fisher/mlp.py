"""
Products with the Jacobian of a multilayer perceptron, by hand: no graph, one pass over the layers each.

J v is the R-operator of Pearlmutter (1994), Fast Exact Multiplication by the Hessian, section 3, and Jᵀu is
backpropagation; Schraudolph (2002), Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent, section 3,
puts them together to F v. What a forward pass computes is kept: each layer's inputs, and the slopes of its activation.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn.modules import module as torch_modules

from sb3_npg.fisher.autograd import OutputMetric
from sb3_npg.linalg import ChainLayer, FisherChain
from sb3_npg.parameters import ParameterVector

#: Activations that act on each element by itself, without parameters and without chance in evaluation mode.
ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.Mish,
    nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink,
)  # fmt: skip
#: Products with fewer columns than this are several times faster with their result stored column by column.
_NARROW = 16


class MlpLayer(NamedTuple):
    """
    A linear map and what follows it.

    :param name: of the linear map
    :param linear: s = W a + b
    :param activation: φ of a = φ(s); None for the identity
    """

    name: str
    linear: nn.Linear
    activation: nn.Module | None


class Mlp:
    """
    Linear layers with activations of elements between them.

    :param layers: in the order of their use, at least one
    """

    def __init__(self, layers: Sequence[MlpLayer]):
        self.layers = tuple(layers)
        # Looking these up in their modules takes longer than a small matrix product.
        self._maps = [
            (layer.linear.weight, layer.linear.bias, layer.activation and layer.activation.forward) for layer in layers
        ]

    @classmethod
    def read(cls, root: nn.Module, modules: Iterable[nn.Module]) -> "Mlp | None":
        """
        Read a network from the modules that it applies one after the other.

        :param root: the module that gives the layers their names
        :param modules: Linear layers, activations, and Sequentials of these
        :return: the network; None if it holds anything else, or anything that changes what a module does
        """
        names = {id(module): name for name, module in root.named_modules()}
        layers: list[MlpLayer] = []
        for module in _flattened(modules):
            if type(module) is nn.Linear and is_plain(module):
                layers.append(MlpLayer(names[id(module)], module, None))
            elif type(module) in ELEMENTWISE and is_plain(module) and layers and layers[-1].activation is None:
                layers[-1] = layers[-1]._replace(activation=module)
            elif not (type(module) is nn.Identity and is_plain(module)):
                return None
        tensors = [tensor for layer in layers for tensor in layer.linear.parameters()]
        shared = len({id(tensor) for tensor in tensors}) < len(tensors)
        return None if shared or not layers else cls(layers)

    def parameters(self) -> list[nn.Parameter]:
        """Return the weights and biases that are trained."""
        tensors = [tensor for layer in self.layers for tensor in layer.linear.parameters()]
        return [tensor for tensor in tensors if tensor.requires_grad]

    def bytes_per_row(self) -> int:
        """Return what the Jacobian of one row takes: inputs, sums, slopes and a buffer for each layer."""
        linears = [layer.linear for layer in self.layers]
        numbers = sum(linear.in_features + 3 * linear.out_features for linear in linears)
        return numbers * linears[0].weight.element_size()

    def hidden(self, inputs: th.Tensor) -> th.Tensor:
        """Return what goes into the last layer, shape (n, d)."""
        for weight, bias, activation in self._maps[:-1]:
            inputs = nn.functional.linear(inputs, weight, bias)
            if activation is not None:
                inputs = activation(inputs)
        return inputs

    def head(self, hidden: th.Tensor) -> th.Tensor:
        """Apply the last layer, shape (n, k)."""
        weight, bias, activation = self._maps[-1]
        sums = nn.functional.linear(hidden, weight, bias)
        return sums if activation is None else activation(sums)

    def __call__(self, inputs: th.Tensor) -> th.Tensor:
        """Return the outputs, shape (n, k)."""
        return self.head(self.hidden(inputs))


class MlpJacobian:
    """
    J = ∂z/∂θ of a network's outputs on some rows.

    Buffers are reused: at most one product at a time. It is the Jacobian at the parameters it was made with; once these
    have moved it refuses to go on, as autograd does.

    :param network: the network
    :param inputs: what it is applied to, shape (n, d)
    :param parameters: θ, which may hold other parameters too, and not all of the network's
    """

    def __init__(self, network: Mlp, inputs: th.Tensor, parameters: ParameterVector):
        self.size = len(parameters)
        spans = {id(tensor): span for tensor, span in zip(parameters.tensors, parameters.spans(), strict=True)}
        self.steps: list[LayerStep] = []
        for layer in network.layers:
            self.steps.append(LayerStep(layer, len(inputs), spans, any(before.acts for before in self.steps)))
        self._tensors = [tensor for layer in network.layers for tensor in layer.linear.parameters()]
        self.linearize(inputs)

    @th.no_grad()
    def linearize(self, inputs: th.Tensor) -> None:
        """Move to other inputs, of the same shape, and to the parameters as they are now."""
        for step in self.steps:
            inputs = step.forward(inputs)
        self.outputs = inputs
        self._versions = [tensor._version for tensor in self._tensors]

    def is_current(self) -> bool:
        """Tell whether the parameters are still where they were."""
        return self._versions == [tensor._version for tensor in self._tensors]

    @th.no_grad()
    def push(self, vector: th.Tensor) -> th.Tensor:
        """Return J v, shape (n, k), for v of shape (p,)."""
        self._require_current()
        tangent = None
        for step in self.steps:
            tangent = step.push(vector, tangent)
        return th.zeros_like(self.outputs) if tangent is None else tangent.clone()

    @th.no_grad()
    def pull(self, cotangent: th.Tensor) -> th.Tensor:
        """Return Jᵀ u, shape (p,), for u of shape (n, k)."""
        gradient = cotangent.new_zeros(self.size)
        self.pull_into(cotangent, gradient)
        return gradient

    @th.no_grad()
    def pull_into(self, cotangent: th.Tensor, gradient: th.Tensor) -> None:
        """Write Jᵀ u into its places of a vector of shape (p,), for u of shape (n, k)."""
        self._require_current()
        last = self.steps[-1]
        delta = cotangent if last.slope is None else cotangent * last.slope
        for step, before in zip(reversed(self.steps), [*reversed(self.steps[:-1]), None], strict=True):
            step.write_gradient(delta, gradient)
            if before is None or not step.reached:
                return
            delta = step.pull(delta, before)

    @th.no_grad()
    def deltas(self, cotangents: th.Tensor) -> list[th.Tensor]:
        """
        Backpropagate several cotangents.

        :param cotangents: c of them, shape (c, n, k)
        :return: for each layer the derivatives by its outputs s, shape (c, n, g)
        """
        self._require_current()
        found: list[th.Tensor] = []
        delta = cotangents
        for step in reversed(self.steps):
            delta = delta if step.slope is None else delta * step.slope
            found.append(delta)
            if step is not self.steps[0]:
                delta = delta @ step.weight
        return found[::-1]

    def chain(self, metric: OutputMetric) -> FisherChain:
        """Return the Fisher of the rows as a chain."""
        self._require_current()
        return self.weighted_chain(*metric.weights_at(self.outputs))

    def weighted_chain(self, diagonal: th.Tensor, groups: tuple[int, ...] = ()) -> FisherChain:
        """Return the chain for an output metric, of shape (n, k), and its groups."""
        layers = tuple(step.in_chain() for step in self.steps)
        return FisherChain(layers, diagonal, groups, None, None, self.size)

    def _require_current(self) -> None:
        if not self.is_current():
            raise RuntimeError("the parameters have moved since this Jacobian was made")


class LayerStep:
    """
    One layer's part in J: its inputs a, its slopes φ'(s), and one buffer for what passes through.

    :param layer: the layer
    :param n_rows: n
    :param spans: where parameters lie in θ, by their id
    :param reached: whether a layer before this one has a part in θ
    """

    inputs: th.Tensor
    slope: th.Tensor | None

    def __init__(self, layer: MlpLayer, n_rows: int, spans: dict[int, slice], reached: bool):
        self.name = layer.name
        self.weight = layer.linear.weight.detach()
        self._bias = None if layer.linear.bias is None else layer.linear.bias.detach()
        self._activation = layer.activation
        self.weight_span, self.bias_span = spans.get(id(layer.linear.weight)), spans.get(id(layer.linear.bias))
        self.acts = self.weight_span is not None or self.bias_span is not None
        self.reached = reached
        n_outputs = len(self.weight)
        narrow = n_outputs < _NARROW
        self._passing = self.weight.new_empty((n_outputs, n_rows) if narrow else (n_rows, n_outputs))
        if narrow:
            self._passing = self._passing.T

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """Keep inputs and slopes, and return a_out = φ(W a + b)."""
        self.inputs = inputs
        outputs, self.slope = _with_slope(self._activation, nn.functional.linear(inputs, self.weight, self._bias))
        return outputs

    def push(self, vector: th.Tensor, tangent: th.Tensor | None) -> th.Tensor | None:
        """Return ∂a_out for the directions v and ∂a_in: φ'(s) ∘ (V a + v_b + W ∂a_in)."""
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
            out.addmm_(tangent, self.weight.T)
        return out if self.slope is None else out.mul_(self.slope)

    def pull(self, delta: th.Tensor, before: "LayerStep") -> th.Tensor:
        """Return the cotangent of the sums s of the layer before, for that of this layer's: φ'(s) ∘ Wᵀδ."""
        th.mm(delta, self.weight, out=before._passing)
        return before._passing if before.slope is None else before._passing.mul_(before.slope)

    def in_chain(self) -> ChainLayer:
        """Return the layer as plain tensors."""
        is_tanh = type(self._activation) is nn.Tanh
        return ChainLayer(self.inputs, self.weight, self.slope, is_tanh, self.weight_span, self.bias_span)

    def write_gradient(self, delta: th.Tensor, gradient: th.Tensor) -> None:
        """Write the layer's part of the gradient, δᵀa and δ summed over rows, for the cotangent δ of its sums."""
        if self.weight_span is not None:
            th.mm(delta.T, self.inputs, out=gradient[self.weight_span].view_as(self.weight))
        if self.bias_span is not None:
            th.sum(delta, dim=0, out=gradient[self.bias_span])


def is_plain(module: nn.Module) -> bool:
    """Tell whether a module does what its class says: no hooks, no parametrisation, no forward of its own."""
    hooks = (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
        torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks,
        torch_modules._global_backward_hooks, torch_modules._global_backward_pre_hooks,
    )  # fmt: skip
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    return not (any(hooks) or "forward" in vars(module) or compiled)


def _flattened(modules: Iterable[nn.Module]) -> Iterable[nn.Module]:
    for module in modules:
        if type(module) is nn.Sequential and is_plain(module):
            yield from _flattened(module)
        else:
            yield module


def _with_slope(activation: nn.Module | None, sums: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
    """Return φ(s) and φ'(s); φ acts on each element by itself, so that autograd's gradient of its sum is φ'."""
    if activation is None:
        return sums, None
    if type(activation) is nn.Tanh:
        outputs = sums.tanh()
        return outputs, th.addcmul(outputs.new_ones(()), outputs, outputs, value=-1.0)
    with th.enable_grad():
        leaf = sums.requires_grad_()
        outputs = activation(leaf.clone())  # which may work in place
        (slope,) = th.autograd.grad(outputs.sum(), leaf)
    return outputs.detach(), slope
