"""
Products with the Jacobian of a multilayer perceptron or a convolutional network, by hand: no graph, one pass over the
layers each.

J v is the R-operator of Pearlmutter (1994), Fast Exact Multiplication by the Hessian, section 3, and Jᵀu is
backpropagation; Schraudolph (2002), Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent, section 3,
combines them into F v. The forward pass keeps each layer's inputs and the slopes of its activation.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeGuard

import torch as th
from torch import nn
from torch.nn.modules import module as torch_modules

from sb3_npg.fisher.convolutions import ConvolutionStep
from sb3_npg.fisher.rollout_fisher import OutputMetric
from sb3_npg.fisher.steps import LayerStep, LinearStep, NetworkLayer
from sb3_npg.linalg import FisherChain
from sb3_npg.parameters import ParameterVector

#: Transforms the inputs of a network before its first layer.
Prepare = Callable[[th.Tensor], th.Tensor]

#: Elementwise activations without parameters, and without randomness in evaluation mode.
ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.Mish,
    nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink,
)  # fmt: skip


class FeedForward:
    """
    Linear layers with elementwise activations between them, possibly preceded by convolutions.

    :param layers: in the order of their use, at least one
    :param prepare: what is done to the inputs first; None for nothing
    """

    def __init__(self, layers: Sequence[NetworkLayer], prepare: Prepare | None = None):
        self.layers = tuple(layers)
        self.prepare = prepare
        self._n_convolutions = sum(isinstance(layer.linear, nn.Conv2d) for layer in layers)
        self._maps = [
            (layer.function(), layer.follow_up(flattening=i + 1 == self._n_convolutions))
            for i, layer in enumerate(layers)
        ]

    @classmethod
    def read(
        cls, root: nn.Module, modules: Iterable[nn.Module], prepare: Prepare | None = None
    ) -> "FeedForward | None":
        """
        Read a network from the modules that it applies one after the other.

        :param root: the module that gives the layers their names
        :param modules: convolutions and what flattens their outputs, Linear layers, activations, Sequentials of these
        :param prepare: what is done to the inputs first
        :return: the network; None if it holds anything else, or anything that changes what a module does
        """
        names = {id(module): name for name, module in root.named_modules()}
        layers: list[NetworkLayer] = []
        has_images = False
        for module in _flattened(modules):
            if not is_plain(module):
                return None
            if type(module) is nn.Linear and not has_images:
                layers.append(NetworkLayer(names[id(module)], module, None))
            elif _is_convolution(module) and (has_images or not layers):
                layers.append(NetworkLayer(names[id(module)], module, None))
                has_images = True
            elif type(module) is nn.Flatten and has_images and (module.start_dim, module.end_dim) == (1, -1):
                has_images = False
            elif type(module) in ELEMENTWISE and layers and layers[-1].activation is None:
                layers[-1] = layers[-1]._replace(activation=module)
            elif type(module) is not nn.Identity:
                return None
        tensors = [tensor for layer in layers for tensor in layer.linear.parameters()]
        shared = len({id(tensor) for tensor in tensors}) < len(tensors)
        whole = bool(layers) and isinstance(layers[-1].linear, nn.Linear)
        return cls(layers, prepare) if whole and not shared else None

    def parameters(self) -> list[nn.Parameter]:
        """Return the weights and biases that are trained."""
        tensors = [tensor for layer in self.layers for tensor in layer.linear.parameters()]
        return [tensor for tensor in tensors if tensor.requires_grad]

    def shapes(self, inputs: th.Size) -> list[tuple[th.Size, th.Size]]:
        """Return the shapes of each layer's inputs and outputs, given the shape of a row's inputs."""
        found: list[tuple[th.Size, th.Size]] = []
        for layer in self.layers:
            found.append((inputs, layer.output_shape(inputs)))
            inputs = found[-1][1]
        return found

    def bytes_per_row(self, inputs: th.Size) -> int:
        """
        Return the bytes that the Jacobian of one row takes: inputs, sums, slopes and a buffer for each layer.

        :param inputs: shape of a row's inputs
        """
        numbers = sum(seen.numel() + 3 * made.numel() for seen, made in self.shapes(inputs))
        return numbers * self.layers[0].linear.weight.element_size()

    def record_bytes_per_row(self, inputs: th.Size, n_columns: int) -> int:
        """
        Return the bytes that one row's inputs and deltas of all layers take, position by position.

        :param inputs: shape of a row's inputs
        :param n_columns: c, the columns that are propagated backwards
        """
        numbers = 0
        for layer, (_, made) in zip(self.layers, self.shapes(inputs), strict=True):
            n_positions, fan_in = made[1:].numel(), layer.linear.weight.shape[1:].numel()
            numbers += n_positions * fan_in + n_columns * made.numel()
        return numbers * self.layers[0].linear.weight.element_size()

    def prepared(self, inputs: th.Tensor) -> th.Tensor:
        """Return what goes into the first layer."""
        return inputs if self.prepare is None else self.prepare(inputs)

    def through(self, inputs: th.Tensor, layers: slice) -> th.Tensor:
        """
        Apply some of the layers.

        :param inputs: what goes into the first of them, n rows
        :param layers: which
        :return: what comes out of the last of them
        """
        for linear, follow_up in self._maps[layers]:
            inputs = linear(inputs)
            if follow_up is not None:
                inputs = follow_up(inputs)
        return inputs

    def hidden(self, inputs: th.Tensor) -> th.Tensor:
        """Return what goes into the last layer, shape (n, d)."""
        return self.through(self.prepared(inputs), slice(-1))

    def head(self, hidden: th.Tensor) -> th.Tensor:
        """Apply the last layer, shape (n, k)."""
        return self.through(hidden, slice(-1, None))

    def __call__(self, inputs: th.Tensor) -> th.Tensor:
        """Return the outputs, shape (n, k)."""
        return self.through(self.prepared(inputs), slice(None))


class FeedForwardJacobian:
    """
    J = ∂z/∂θ of a network's outputs on some rows.

    Buffers are reused, so only one product may run at a time. It is the Jacobian at the parameters that it was made
    with; once these have moved, products raise an error, as autograd does.

    :param network: the network
    :param inputs: what it is applied to, n rows
    :param parameters: θ, which may hold other parameters too, and lack some of the network's
    """

    def __init__(self, network: FeedForward, inputs: th.Tensor, parameters: ParameterVector):
        self.size = len(parameters)
        self.steps: list[LayerStep] = []
        for layer in network.layers:
            self.steps.append(_make_step(layer, len(inputs), parameters, any(before.acts for before in self.steps)))
        self._network = network
        self._tensors = [tensor for layer in network.layers for tensor in layer.linear.parameters()]
        self.linearize(inputs)

    @th.no_grad()
    def linearize(self, inputs: th.Tensor) -> None:
        """Recompute J at other inputs of the same shape, and at the present parameters."""
        inputs = self._network.prepared(inputs)
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
        """Write Jᵀ u into the network's entries of a vector of shape (p,), for u of shape (n, k)."""
        self._require_current()
        delta = self._by_sums(cotangent)
        for step, before in self._backwards():
            step.write_gradient(delta, gradient)
            if before is None or not step.reached:
                return
            delta = step.pull(delta, before)

    @th.no_grad()
    def deltas(self, cotangents: th.Tensor) -> list[th.Tensor]:
        """
        Backpropagate several cotangents.

        :param cotangents: c of them, shape (c, n, k)
        :return: for each layer the derivatives with respect to its sums s, shape (c, n, …)
        """
        self._require_current()
        found = [self._by_sums(cotangents)]
        for step, before in self._backwards():
            if before is not None:
                found.append(step.pull_all(found[-1], before))
        return found[::-1]

    def chain(self, metric: OutputMetric) -> FisherChain | None:
        """Return the Fisher of the rows as a chain; None if a layer is a convolution."""
        self._require_current()
        return self.weighted_chain(*metric.weights_at(self.outputs))

    def weighted_chain(self, diagonal: th.Tensor, groups: tuple[int, ...] = ()) -> FisherChain | None:
        """Return the chain for an output metric, shape (n, k), and its groups; None if a layer is a convolution."""
        layers = [layer for step in self.steps if (layer := step.in_chain()) is not None]
        if len(layers) < len(self.steps):
            return None
        return FisherChain(tuple(layers), diagonal, groups, None, None, self.size)

    def _by_sums(self, cotangents: th.Tensor) -> th.Tensor:
        """Turn cotangents of the outputs into cotangents of the last layer's sums."""
        slope = self.steps[-1].slope
        return cotangents if slope is None else cotangents * slope

    def _backwards(self) -> Iterable[tuple[LayerStep, LayerStep | None]]:
        """Return the steps from the last to the first, each with the one before it."""
        return zip(reversed(self.steps), [*reversed(self.steps[:-1]), None], strict=True)

    def _require_current(self) -> None:
        if not self.is_current():
            raise RuntimeError("the parameters have moved since this Jacobian was made")


def _make_step(layer: NetworkLayer, n_rows: int, parameters: ParameterVector, reached: bool) -> LayerStep:
    """Return a layer's step for n rows."""
    if isinstance(layer.linear, nn.Conv2d):
        return ConvolutionStep(layer, layer.linear, parameters, reached)
    return LinearStep(layer, n_rows, parameters, reached)


def is_plain(module: nn.Module) -> bool:
    """Tell whether a module does only what its class does: no hooks, no hooked parameters, no own forward."""
    hooks = (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
        torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks,
        torch_modules._global_backward_hooks, torch_modules._global_backward_pre_hooks,
    )  # fmt: skip
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    hooked = any(parameter is not None and is_hooked(parameter) for parameter in module._parameters.values())
    return not (any(hooks) or hooked or "forward" in vars(module) or compiled)


def is_hooked(parameter: th.Tensor) -> bool:
    """Tell whether a parameter has hooks on its gradient, which only autograd runs."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def _flattened(modules: Iterable[nn.Module]) -> Iterable[nn.Module]:
    for module in modules:
        if type(module) is nn.Sequential and is_plain(module):
            yield from _flattened(module)
        else:
            yield module


def _is_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Tell whether a module is a convolution that can be computed by hand: no groups, fixed padding with zeros."""
    return (
        type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros" and module.padding != "same"
    )
