"""The Fisher of a chain of linear layers as plain tensors: all that a fused kernel or a CUDA graph needs."""

from typing import NamedTuple

import torch as th


class ChainLayer(NamedTuple):
    """
    One layer's part in the Jacobian of N rows: ∂a_out = φ'(s) ∘ (V a + v + W ∂a).

    :param inputs: a, shape (N, i)
    :param weight: W, shape (o, i)
    :param slope: φ'(s), shape (N, o); None where φ is the identity
    :param is_tanh: whether φ is tanh, so that the slope is 1 − a² with a the next layer's inputs
    :param weight_span: where V lies in a vector, row by row; None if W is not trained
    :param bias_span: where v lies in a vector; None if there is no bias, or it is not trained
    """

    inputs: th.Tensor
    weight: th.Tensor
    slope: th.Tensor | None
    is_tanh: bool
    weight_span: slice | None
    bias_span: slice | None


def output_product(weights: th.Tensor, groups: tuple[int, ...], vectors: th.Tensor) -> th.Tensor:
    """
    Multiply by diag(d) row by row, or by diag(p) − p pᵀ for each group p.

    :param weights: d, or the groups side by side, shape (n, k)
    :param groups: sizes of the groups, k in all; empty for a diagonal
    :param vectors: shape (n, k)
    :return: shape (n, k)
    """
    weighted = weights * vectors
    if not groups:
        return weighted
    sizes = list(groups)
    parts = zip(th.split(weighted, sizes, dim=1), th.split(weights, sizes, dim=1), strict=True)
    return th.cat([part - p * part.sum(dim=1, keepdim=True) for part, p in parts], dim=1)


class FisherChain(NamedTuple):
    """
    F = S ((1/N) Σ_n J_nᵀ M_n J_n) S, where J is the Jacobian of the layers applied one after the other.

    M_n = diag(d) for a row d of ``diagonal``, or, with ``groups``, block diagonal with diag(p) − p pᵀ for each group p
    of consecutive numbers in the row. Parameters of the noise, which no layer depends on, have their own blocks.

    :param layers: in the order of their use
    :param diagonal: shape (N, k)
    :param groups: sizes of the groups, k in all; empty for a diagonal M
    :param noise: blocks of the noise's parameter, shape (b, m, m), which lies in a vector as m rows of b numbers
    :param noise_span: where the noise's parameter lies in a vector; None if there is none
    :param size: p, the length of a vector
    :param scale: the diagonal of S, shape (p,); None for the identity
    """

    layers: tuple[ChainLayer, ...]
    diagonal: th.Tensor
    groups: tuple[int, ...]
    noise: th.Tensor | None
    noise_span: slice | None
    size: int
    scale: th.Tensor | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows, N."""
        return self.diagonal.shape[0]

    def spans(self) -> tuple[int, ...]:
        """Return where all parameters begin in a vector, −1 for those that are not in it."""
        spans = [span for layer in self.layers for span in (layer.weight_span, layer.bias_span)]
        return tuple([-1 if span is None else span.start for span in (*spans, self.noise_span)])

    @th.no_grad()
    def product(self, vector: th.Tensor) -> th.Tensor:
        """
        Multiply by F.

        :param vector: v, shape (p,)
        :return: F v, shape (p,)
        """
        if self.scale is not None:
            vector = vector * self.scale
        product = th.zeros_like(vector)
        self._pull(output_product(self.diagonal, self.groups, self._push(vector)).div_(self.n_rows), product)
        if self.noise is not None and self.noise_span is not None:
            groups, m, _ = self.noise.shape
            columns = vector[self.noise_span].view(m, groups)
            product[self.noise_span] = th.einsum("bij,jb->ib", self.noise, columns).flatten()
        return product if self.scale is None else product.mul_(self.scale)

    def _push(self, vector: th.Tensor) -> th.Tensor:
        tangent: th.Tensor | None = None
        for layer in self.layers:
            bias = vector.new_zeros(()) if layer.bias_span is None else vector[layer.bias_span]
            if layer.weight_span is None:
                out = bias.expand(self.n_rows, len(layer.weight)).clone(memory_format=th.contiguous_format)
            else:
                out = th.addmm(bias, layer.inputs, vector[layer.weight_span].view_as(layer.weight).T)
            if tangent is not None:
                out.addmm_(tangent, layer.weight.T)
            tangent = out if layer.slope is None else out.mul_(layer.slope)
        if tangent is None:
            raise ValueError("`layers`=() is no chain. Give at least one layer.")
        return tangent

    def _pull(self, delta: th.Tensor, gradient: th.Tensor) -> None:
        for i in reversed(range(len(self.layers))):
            layer = self.layers[i]
            if layer.slope is not None:
                delta = delta * layer.slope
            if layer.weight_span is not None:
                th.mm(delta.T, layer.inputs, out=gradient[layer.weight_span].view_as(layer.weight))
            if layer.bias_span is not None:
                th.sum(delta, dim=0, out=gradient[layer.bias_span])
            if i > 0:
                delta = delta @ layer.weight
