"""The Fisher of a policy layer by layer, from the inputs and backpropagated derivatives of Linear and Conv2d layers."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_npg.fisher.autograd import batched_gradients
from sb3_npg.fisher.blocks import Block, DenseBlock
from sb3_npg.fisher.chunks import split_rows
from sb3_npg.fisher.columns import Columns, chosen_columns
from sb3_npg.fisher.gaussian_jacobian import noise_fisher
from sb3_npg.fisher.partition import PROBE_ROWS, LayerUse, find_layers, untreated_block, wholly_recorded
from sb3_npg.fisher.recording import recorded_calls
from sb3_npg.fisher.rollout_fisher import OutputModel, RolloutFisher, UnitMetric
from sb3_npg.fisher.statistics import ChunkedRecords, LayerRecord, WeightSharing
from sb3_npg.parameters import ParameterVector


class RowOutputs(NamedTuple):
    """
    A model's outputs for some rows, with graphs.

    :param parts: the outputs z in parts of shape (n, k_i), each with its own graph
    :param log_prob: of the actions taken, shape (n,)
    """

    parts: tuple[th.Tensor, ...]
    log_prob: th.Tensor


class LayeredModel(NamedTuple):
    """
    A policy, or its critic, on N rows, as :class:`LayeredFisher` needs it.

    :param module: where the layers are found
    :param of_rows: rows ↦ outputs and log-probabilities
    :param whole: the same outputs joined, with N, θ and F_out
    :param noise: the parameter that scales the exploration noise, if it acts
    :param noise_jacobian: rows ↦ its Jacobian, shape (n, m, b, r); None if no closed form is known
    """

    module: nn.Module
    of_rows: Callable[[slice], RowOutputs]
    whole: OutputModel
    noise: nn.Parameter | None
    noise_jacobian: Callable[[slice], th.Tensor | None]


class LayeredFisher(ChunkedRecords):
    """
    The diagonal blocks of F, one for each layer, as records of the layers' inputs and derivatives.

    Linear layers and convolutions, used once or several times, are recorded by hooks, and accepted only if their
    records reproduce autograd's gradient, row by row on a few rows and in sum on all: names and types do not decide.
    Other parameters get blocks that are formed.

    :param model: the policy on the rows
    :param chunk_rows: largest number of rows to differentiate at once
    :param memory_budget: bytes that the records of one chunk may take
    """

    def __init__(self, model: LayeredModel, chunk_rows: int, memory_budget: int):
        self.model = model
        self.n_rows = model.whole.n_rows
        found, bytes_per_row = self._probe()
        self._chunk_rows = min(chunk_rows, max(1, memory_budget // max(1, bytes_per_row)))
        super().__init__(split_rows(self.n_rows, self._chunk_rows))
        self._layers, self._reached = self._examine(found)

    @cached_property
    def blocks(self) -> list[Block]:
        """The blocks, which cover the parameter vector once."""
        parameters = self.model.whole.parameters
        spans = parameters.spans()
        covered = {span.start for use in self._layers for span in (use.block.weight, use.block.bias) if span}
        names = {id(parameter): name for name, parameter in self.model.module.named_parameters()}
        blocks: list[Block] = [use.block for use in self._layers]
        for parameter, span in zip(parameters.tensors, spans, strict=True):
            if span.start not in covered:
                name = names[id(parameter)]
                closed = self._noise_block(span, name) if parameter is self.model.noise else None
                blocks.append(closed or untreated_block(name, span))
        return blocks

    def dense_block(self, block: DenseBlock) -> th.Tensor:
        """
        Form the Fisher of parameters that belong to no layer.

        :param block: one of :attr:`blocks`
        :return: shape (b, m, m)
        """
        return self._formed(block).to(self.model.whole.parameters.dtype)

    def scores(self, block: DenseBlock) -> th.Tensor:
        """
        Differentiate each row's log π(a|s) with respect to parameters that belong to no layer.

        :param block: one of :attr:`blocks`
        :return: shape (N, size of the block)
        """
        log_prob = OutputModel(
            lambda rows: self.model.of_rows(rows).log_prob.unsqueeze(1),
            self.n_rows,
            self._vector_of(block.span),
            UnitMetric(),
        )
        return th.cat([rows.squeeze(0) for rows in RolloutFisher(log_prob, self._chunk_rows).root_rows()])

    def _probe(self) -> tuple[list[LayerUse], int]:
        """Find, on a few rows, the layers and the bytes that a row's records take."""
        n = min(PROBE_ROWS, self.n_rows)
        modules = [module for module in self.model.module.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        with th.enable_grad():
            with recorded_calls(modules) as calls:
                parts = self.model.of_rows(slice(0, n)).parts
            layers = find_layers(calls, parts, self.model.whole.parameters, self.model.module)
        calls = [call for call in calls if any(use.made(call) for use in layers)]
        n_columns = sum(part.shape[1] for part in parts)
        numbers = sum(call.inputs().numel() + n_columns * call.output.numel() for call in calls)
        return layers, numbers * parts[0].element_size() // n

    def _examine(self, layers: Sequence[LayerUse]) -> tuple[list[LayerUse], list[bool]]:
        """Keep the layers that pass on all rows, and tell which parts of the outputs depend on one in some row."""
        kept, reached = list(layers), list[list[bool]]()
        for rows in self.chunks:
            with th.enable_grad():
                with recorded_calls({layer for use in kept for layer in use.layers}) as calls:
                    parts = self.model.of_rows(rows).parts
                kept = wholly_recorded(kept, calls, parts, self.model.whole.parameters)
            outputs = [call.output for call in calls]
            reached.append([_reaches(part, outputs) for part in parts])
        return kept, [any(part) for part in zip(*reached, strict=True)]

    def _records_of(
        self, rows: slice, columns: Columns, generator: th.Generator, weight_sharing: WeightSharing
    ) -> list[LayerRecord]:
        layers = {layer for use in self._layers for layer in use.layers}
        with th.enable_grad():
            with recorded_calls(layers) as calls:
                found = self.model.of_rows(rows)
            if not calls:
                return []
            gradients = self._backpropagated(found, columns, generator, [call.output for call in calls])
        deltas = [call.derivatives(gradient) for call, gradient in zip(calls, gradients, strict=True)]
        # A layer may compute in another dtype than that of the parameter vector, which can hold all of them.
        dtype = self.model.whole.parameters.dtype
        return [use.record(calls, deltas, weight_sharing).to(dtype) for use in self._layers]

    def _backpropagated(
        self, found: RowOutputs, columns: Columns, generator: th.Generator, targets: Sequence[th.Tensor]
    ) -> tuple[th.Tensor, ...]:
        """Differentiate each column with respect to the layers' outputs: shapes (c, *target.shape)."""
        if columns == "sampled":
            gradients = th.autograd.grad(found.log_prob.sum(), targets, materialize_grads=True)
            return tuple(gradient.unsqueeze(0) for gradient in gradients)
        outputs = th.cat(found.parts, dim=1)
        with th.no_grad():
            reached = [th.full((part.shape[1],), r) for part, r in zip(found.parts, self._reached, strict=True)]
            root = chosen_columns(self.model.whole.metric.root(outputs.detach()), th.cat(reached), columns, generator)
        if root.shape[2] == 0:
            return tuple(target.new_zeros(0, *target.shape) for target in targets)
        return batched_gradients(outputs, targets, root.permute(2, 0, 1).contiguous())

    def _noise_block(self, span: slice, name: str) -> DenseBlock | None:
        """Return the block in closed form, if it agrees with the noise parameter's Fisher formed on a few rows."""
        n = min(PROBE_ROWS, self.n_rows)
        jacobian = self.model.noise_jacobian(slice(0, n))
        if jacobian is None:
            return None
        block = DenseBlock(name, span, n_groups=jacobian.shape[2])
        closed = noise_fisher([jacobian]) / n
        formed = self._fisher_of(span, n).dense()
        size, each = block.size, th.arange(block.size, device=formed.device)
        index = block.gather(each)  # (b, m)
        expected = formed.new_zeros(size, size)
        expected[index.unsqueeze(2), index.unsqueeze(1)] = closed
        return block if th.allclose(formed, expected, rtol=1e-3, atol=1e-3 * float(formed.abs().max())) else None

    def _formed(self, block: DenseBlock) -> th.Tensor:
        if block.note is None:
            chunks = (self.model.noise_jacobian(rows) for rows in self.chunks)
            return noise_fisher(chunk for chunk in chunks if chunk is not None) / self.n_rows
        fisher = self._fisher_of(block.span, self.n_rows)
        return fisher.dense().unsqueeze(0) if block.n_groups == 1 else fisher.diagonal().view(-1, 1, 1)

    def _vector_of(self, span: slice) -> ParameterVector:
        parameters = self.model.whole.parameters
        pairs = zip(parameters.tensors, parameters.spans(), strict=True)
        return ParameterVector([tensor for tensor, other in pairs if other == span])

    def _fisher_of(self, span: slice, n_rows: int) -> RolloutFisher:
        part = self.model.whole._replace(parameters=self._vector_of(span), n_rows=n_rows)
        return RolloutFisher(part, min(n_rows, self._chunk_rows))


def _reaches(part: th.Tensor, outputs: Sequence[th.Tensor]) -> bool:
    """Tell whether a part of the outputs depends on one of the layers, by its graph."""
    if not part.requires_grad or not outputs:
        return False
    gradients = th.autograd.grad(part.sum(), outputs, retain_graph=True, allow_unused=True)
    return any(gradient is not None for gradient in gradients)
