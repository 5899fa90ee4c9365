"""Which layers a policy has, found by what they do on a few rows and not by their names."""

from collections.abc import Sequence
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_npg.fisher.blocks import DenseBlock, LayerBlock, span_length
from sb3_npg.fisher.recording import Call, Layer, recordable
from sb3_npg.fisher.statistics import LayerRecord, WeightSharing, jacobians
from sb3_npg.parameters import ParameterVector

#: Number of rows on which layers are tried.
PROBE_ROWS = 3
#: Records reproduce a gradient up to this relative error, or up to this many eps of a coarser dtype.
_RTOL = 1e-3
_RTOL_EPS = 4.0
#: Largest number of parameters of an unknown kind whose block is formed; of a larger one only the diagonal is.
LARGEST_FORMED_BLOCK = 256


class LayerUse(NamedTuple):
    """
    A block and the modules that apply its parameters, more than one if they share them.

    :param block: where the parameters lie
    :param layers: the modules
    """

    block: LayerBlock
    layers: tuple[Layer, ...]

    def made(self, call: Call) -> bool:
        """Tell whether a call was made by one of this block's modules."""
        return any(call.layer is layer for layer in self.layers)

    def record(
        self, calls: Sequence[Call], deltas: Sequence[th.Tensor], weight_sharing: WeightSharing = "expand"
    ) -> LayerRecord:
        """
        Join the inputs of this block's calls, and the derivatives with respect to their outputs.

        :param calls: of all layers
        :param deltas: of each call, shape (c, n, T, g)
        :param weight_sharing: "expand" keeps each position, "reduce" combines all of them into one
        """
        mine = [(call, delta) for call, delta in zip(calls, deltas, strict=True) if self.made(call)]
        if weight_sharing == "reduce":
            return self._reduced(mine)
        inputs = [self._homogeneous(call.inputs()) for call, _ in mine]
        if len(mine) == 1:  # avoid the copies
            return LayerRecord(self.block, inputs[0], mine[0][1])
        return LayerRecord(self.block, th.cat(inputs, dim=1), th.cat([delta for _, delta in mine], dim=2))

    def _reduced(self, mine: Sequence[tuple[Call, th.Tensor]]) -> LayerRecord:
        """Treat all positions of all calls as one application to their mean input."""
        n_positions = sum(delta.shape[2] for _, delta in mine)
        inputs = [self._homogeneous(call.mean_inputs()) * (delta.shape[2] / n_positions) for call, delta in mine]
        deltas = [delta.sum(dim=2, keepdim=True) for _, delta in mine]
        return LayerRecord(self.block, th.stack(inputs).sum(dim=0), th.stack(deltas).sum(dim=0))

    def _homogeneous(self, inputs: th.Tensor) -> th.Tensor:
        """Append a coordinate of ones if the bias acts, and leave out the inputs if the weight does not."""
        ones = inputs.new_ones(*inputs.shape[:-1], 1)
        kept = [inputs] if self.block.weight is not None else []
        return th.cat([*kept, *([ones] if self.block.bias is not None else [])], dim=-1)


def untreated_block(name: str, span: slice) -> DenseBlock:
    """Return the block of a parameter whose layer is of no known kind: formed if small, else its diagonal."""
    size = span_length(span)
    if size <= LARGEST_FORMED_BLOCK:
        return DenseBlock(name, span, 1, f"{name} by its own block of the Fisher, {size} × {size}")
    return DenseBlock(name, span, size, f"{name} by the diagonal of its block, {size:,} parameters")


def find_layers(
    calls: Sequence[Call], parts: Sequence[th.Tensor], parameters: ParameterVector, module: nn.Module
) -> list[LayerUse]:
    """
    Group the parameters of recorded calls into layers, and keep those whose records reproduce autograd's gradient.

    Weight and bias make one block, unless one of them is shared with a layer that does not share the other.

    :param calls: of all layers, on a few rows
    :param parts: the outputs of the policy on these rows, with their graph
    :param parameters: θ
    :param module: the policy, which names its modules
    :return: layers in the order of their parameters
    """
    n = len(parts[0])
    calls = [call for call in calls if recordable(call.layer)]
    names = {id(layer): name for name, layer in module.named_modules()}
    layers: dict[tuple[int | None, int | None], LayerUse] = {}
    for layer in dict.fromkeys(call.layer for call in calls):
        for weight, bias in _keys(layer, calls, parameters):
            block = LayerBlock.of(names[id(layer)], weight, bias, len(layer.weight))
            key = (weight and weight.start, bias and bias.start)
            known = layers.get(key, LayerUse(block, ()))
            layers[key] = known._replace(layers=(*known.layers, layer))
    candidates = [use for use in layers.values() if all(call.rows_come_first(n) for call in calls if use.made(call))]
    kept = _reproducing(candidates, calls, parts, parameters)
    return sorted(kept, key=lambda use: min(span.start for span in (use.block.weight, use.block.bias) if span))


def _keys(layer: Layer, calls: Sequence[Call], parameters: ParameterVector) -> list[tuple[slice | None, slice | None]]:
    """Return where a layer's weight and bias lie, as one block or, if they are shared differently, as two."""
    weight, bias = parameters.span_of(layer.weight), parameters.span_of(layer.bias)
    partners = {(id(call.layer.weight), id(call.layer.bias)) for call in calls}
    mine = (id(layer.weight), id(layer.bias))
    shared = any(
        other != mine and (other[0] == mine[0] or (layer.bias is not None and other[1] == mine[1]))
        for other in partners
    )
    keys = [(weight, None), (None, bias)] if shared else [(weight, bias)]
    return [key for key in keys if key != (None, None)]


def _reproducing(
    candidates: Sequence[LayerUse], calls: Sequence[Call], parts: Sequence[th.Tensor], parameters: ParameterVector
) -> list[LayerUse]:
    """Keep the layers whose records reproduce autograd's gradient of one combination of the outputs, row by row."""
    combination = _combination(parts)
    if not candidates or combination is None:
        return []
    records, rtol = _records(candidates, calls, combination)
    expected = [
        parameters.flatten(th.autograd.grad(row, parameters.tensors, retain_graph=True, materialize_grads=True))
        for row in combination
    ]
    kept = []
    for use, record in zip(candidates, records, strict=True):
        _, inputs, delta = record.to(parameters.dtype)
        recorded = jacobians(inputs, delta)[0]
        true = th.stack([use.block.gather(gradient) for gradient in expected])
        if bool((recorded - true).norm() <= rtol * true.norm()):
            kept.append(use)
    return kept


def wholly_recorded(
    uses: Sequence[LayerUse], calls: Sequence[Call], parts: Sequence[th.Tensor], parameters: ParameterVector
) -> list[LayerUse]:
    """
    Keep the layers that are applied to all rows at once, and whose records add up to autograd's gradient.

    What a few rows have shown need not hold for all: a layer may be applied to the rows of a mask, by its module, by
    another one that shares its parameters, or by a function.

    :param uses: layers that pass the test on a few rows
    :param calls: theirs, on other rows
    :param parts: the outputs of the policy on these rows, with their graph
    :param parameters: θ
    :return: some of ``uses``
    """
    n = len(parts[0])
    made = [[call for call in calls if use.made(call)] for use in uses]
    uses = [use for use, mine in zip(uses, made, strict=True) if mine and all(call.rows_come_first(n) for call in mine)]
    combination = _combination(parts)
    if not uses or combination is None:
        return []
    records, rtol = _records(uses, calls, combination)
    total = combination.sum()
    gradient = parameters.flatten(
        th.autograd.grad(total, parameters.tensors, retain_graph=True, materialize_grads=True)
    )
    kept = []
    for use, record in zip(uses, records, strict=True):
        _, inputs, delta = record.to(parameters.dtype)
        recorded, true = delta.flatten(0, 2).T @ inputs.flatten(0, 1), use.block.gather(gradient)
        if bool((recorded - true).norm() <= rtol * true.norm()):
            kept.append(use)
    return kept


def _combination(parts: Sequence[th.Tensor]) -> th.Tensor | None:
    """Return one combination of each row's outputs, shape (n,); None if none of them has a graph."""
    differentiable = [part for part in parts if part.requires_grad]
    if not differentiable:
        return None
    outputs = th.cat(differentiable, dim=1)
    weights = th.cos(th.arange(outputs.numel(), device=outputs.device)).view_as(outputs).to(outputs)
    return (weights * outputs).sum(dim=1)


def _records(
    uses: Sequence[LayerUse], calls: Sequence[Call], combination: th.Tensor
) -> tuple[list[LayerRecord], float]:
    """Return the layers' records for one column, ``combination``, and how exactly they can reproduce a gradient."""
    treated = [call for call in calls if any(use.made(call) for use in uses)]
    targets = [call.output for call in treated]
    gradients = th.autograd.grad(combination.sum(), targets, retain_graph=True, materialize_grads=True)
    deltas = [call.derivatives(g.unsqueeze(0)) for call, g in zip(treated, gradients, strict=True)]
    rtol = max(_RTOL, *(_RTOL_EPS * th.finfo(target.dtype).eps for target in targets))
    return [use.record(treated, deltas) for use in uses], rtol
