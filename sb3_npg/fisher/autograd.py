"""J of any differentiable policy, through autograd."""

from collections.abc import Sequence

import torch as th

from sb3_npg.parameters import ParameterVector


class Linearization:
    """
    J = ∂z/∂θ of some rows, whose two maps share one graph.

    v ↦ J v is the derivative of u ↦ Jᵀu, which is linear in u, so two backward passes give a
    forward-mode product without forward-mode rules ("double-vjp"). The graph is built once and
    used by every product.

    :param outputs: z with its graph, shape (n, k)
    :param parameters: θ
    """

    def __init__(self, outputs: th.Tensor, parameters: ParameterVector):
        self.outputs = outputs
        self.parameters = parameters
        self._cotangent = th.zeros_like(outputs, requires_grad=True)
        self._gradients = th.autograd.grad(
            outputs, parameters.tensors, self._cotangent, create_graph=True, materialize_grads=True
        )

    def push(self, vector: th.Tensor) -> th.Tensor:
        """Return J v, shape (n, k), for v of shape (p,)."""
        pairs = [
            (gradient, direction)
            for gradient, direction in zip(self._gradients, self.parameters.split(vector), strict=True)
            if gradient.requires_grad
        ]
        gradients, directions = zip(*pairs, strict=True)
        (tangent,) = th.autograd.grad(gradients, self._cotangent, directions, retain_graph=True)
        return tangent

    def pull(self, cotangent: th.Tensor) -> th.Tensor:
        """Return Jᵀ u, shape (p,), for u of shape (n, k)."""
        gradients = th.autograd.grad(
            self.outputs, self.parameters.tensors, cotangent, retain_graph=True, materialize_grads=True
        )
        return self.parameters.flatten(gradients)


def pull_all(outputs: th.Tensor, parameters: ParameterVector, cotangents: th.Tensor) -> th.Tensor:
    """
    Pull several cotangents back.

    :param outputs: z with its graph, of any shape
    :param parameters: θ
    :param cotangents: u, m of them, shape (m, *outputs.shape)
    :return: Jᵀu as rows, shape (m, p)
    """
    gradients = batched_gradients(outputs, parameters.tensors, cotangents)
    return th.cat([gradient.reshape(len(cotangents), -1) for gradient in gradients], dim=1)


def batched_gradients(outputs: th.Tensor, targets: Sequence[th.Tensor], cotangents: th.Tensor) -> tuple[th.Tensor, ...]:
    """
    Differentiate for several cotangents at once.

    :param outputs: with their graph
    :param targets: the tensors to differentiate with respect to
    :param cotangents: m of them, shape (m, *outputs.shape)
    :return: for each target a tensor of shape (m, *target.shape)
    """
    try:
        batched = th.autograd.grad(
            outputs, targets, cotangents, retain_graph=True, is_grads_batched=True, allow_unused=True
        )
    except RuntimeError:
        # Some operations of custom policies have no batching rule: one at a time then.
        each = [th.autograd.grad(outputs, targets, u, retain_graph=True, materialize_grads=True) for u in cotangents]
        return tuple(th.stack(gradients) for gradients in zip(*each, strict=True))
    return tuple(
        target.new_zeros(len(cotangents), *target.shape) if gradient is None else gradient
        for target, gradient in zip(targets, batched, strict=True)
    )
