"""F·v and the dense F of any differentiable policy, through autograd."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch as th

from sb3_npg.fisher.chunks import split_rows
from sb3_npg.parameters import ParameterVector


class OutputMetric(Protocol):
    """F_out of the outputs, row by row: its product and its root."""

    def product(self, outputs: th.Tensor, vectors: th.Tensor) -> th.Tensor:
        """Return F_out u, shape (n, k)."""
        ...

    def root(self, outputs: th.Tensor) -> th.Tensor:
        """Return B with B Bᵀ = F_out, shape (n, k, r)."""
        ...


class OutputModel(NamedTuple):
    """
    The outputs of N rows as a function of the parameters, and the metric on them.

    :param outputs: rows ↦ z of shape (n, k), with their graph
    :param n_rows: N
    :param parameters: θ
    :param metric: F_out
    """

    outputs: Callable[[slice], th.Tensor]
    n_rows: int
    parameters: ParameterVector
    metric: OutputMetric


class Linearization:
    """
    J = ∂z/∂θ of some rows as two linear maps that share one graph.

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


class AutogradFisher:
    """
    F = (1/N) Σ_n J_nᵀ F_out,n J_n of a policy given by its outputs: positive semi-definite by construction.

    Rows are taken ``chunk_rows`` at a time. When one chunk holds all rows, its graph is kept and shared
    by all products; else each product builds the graph of one chunk after the other and frees it.
    Products are those of the parameters at the time of the call, or, with a kept graph, of the first
    call: once the parameters have moved, autograd refuses it.

    :param model: the outputs of the rows and their metric
    :param chunk_rows: largest number of rows to differentiate at once
    """

    def __init__(self, model: OutputModel, chunk_rows: int):
        self.model = model
        self.chunks = split_rows(model.n_rows, chunk_rows)
        self._kept: Linearization | None = None

    def _linearizations(self) -> Iterator[Linearization]:
        if len(self.chunks) > 1:
            for rows in self.chunks:
                yield Linearization(self.model.outputs(rows), self.model.parameters)
            return
        if self._kept is None:
            self._kept = Linearization(self.model.outputs(self.chunks[0]), self.model.parameters)
        yield self._kept

    def product(self, vector: th.Tensor) -> th.Tensor:
        """
        Multiply by the Fisher.

        :param vector: v, shape (p,)
        :return: F v, shape (p,)
        """
        total = th.zeros_like(vector)
        with th.enable_grad():
            for jacobian in self._linearizations():
                outputs = jacobian.outputs.detach()
                total += jacobian.pull(self.model.metric.product(outputs, jacobian.push(vector)))
        return total / self.model.n_rows

    def dense(self, scores_at_once: int = 256) -> th.Tensor:
        """
        Form the Fisher: F = SᵀS/N, where the rows of S are the columns of Jᵀ_n B_n.

        :param scores_at_once: rows of S to hold at once
        :return: F, shape (p, p)
        """
        p = len(self.model.parameters)
        fisher = self.model.parameters.tensors[0].new_zeros(p, p)
        for scores in self._scores(scores_at_once):
            fisher.addmm_(scores.T, scores, alpha=1.0 / self.model.n_rows)
        return fisher

    def _scores(self, at_once: int) -> Iterator[th.Tensor]:
        """Yield blocks of S, each of shape (rows · r, p)."""
        parameters = self.model.parameters
        with th.no_grad():
            rank = self.model.metric.root(self.model.outputs(slice(0, 1))).shape[2]
        if rank == 0:  # a single action: nothing to tell apart
            return
        for rows in split_rows(self.model.n_rows, max(1, at_once // rank)):
            with th.enable_grad():
                outputs = self.model.outputs(rows)
            with th.no_grad():
                root = self.model.metric.root(outputs.detach())
            n, k, r = root.shape
            # Row n's cotangents are zero in every other row, so one batched backward pass serves all.
            cotangents = outputs.new_zeros(n, r, n, k)
            each = th.arange(n, device=outputs.device)
            cotangents[each, :, each] = root.transpose(1, 2)
            yield _pull_all(outputs, parameters, cotangents.view(n * r, n, k))


def _pull_all(outputs: th.Tensor, parameters: ParameterVector, cotangents: th.Tensor) -> th.Tensor:
    """Return Jᵀu for each of m cotangents of shape (m, n, k), as rows of shape (m, p)."""
    try:
        gradients = th.autograd.grad(
            outputs, parameters.tensors, cotangents, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )
        return th.cat([gradient.reshape(len(cotangents), -1) for gradient in gradients], dim=1)
    except RuntimeError:
        # Some operations of custom policies have no batching rule: one at a time then.
        return th.stack(
            [
                parameters.flatten(
                    th.autograd.grad(outputs, parameters.tensors, u, retain_graph=True, materialize_grads=True)
                )
                for u in cotangents
            ]
        )
