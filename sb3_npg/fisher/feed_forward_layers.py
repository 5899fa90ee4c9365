"""The Fisher of a feed-forward network layer by layer, from the pieces of its Jacobian."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch as th

from sb3_npg.fisher.blocks import Block, DenseBlock, LayerBlock
from sb3_npg.fisher.columns import Columns, chosen_columns
from sb3_npg.fisher.feed_forward import FeedForwardJacobian
from sb3_npg.fisher.gaussian_jacobian import GaussianJacobian, NoiseJacobian, noise_fisher, noise_scores
from sb3_npg.fisher.rollout_fisher import OutputMetric
from sb3_npg.fisher.statistics import ChunkedRecords, LayerRecord, WeightSharing
from sb3_npg.fisher.steps import LayerStep
from sb3_npg.linalg import FisherChain


class FeedForwardRows(NamedTuple):
    """
    Some rows of a rollout, seen through a network.

    :param whole: J of their outputs z
    :param score: computes ∂log π(a|s)/∂z for the actions taken, shape (n, k)
    """

    whole: FeedForwardJacobian | GaussianJacobian
    score: Callable[[], th.Tensor]

    @property
    def jacobian(self) -> FeedForwardJacobian:
        """J of the network's own outputs, the first k' of the outputs z."""
        return self.whole if isinstance(self.whole, FeedForwardJacobian) else self.whole.mean

    @property
    def noise(self) -> NoiseJacobian | None:
        """J of the other outputs, the log σ; None if there are none."""
        return None if isinstance(self.whole, FeedForwardJacobian) else self.whole.noise


class FeedForwardModel(NamedTuple):
    """
    A network on N rows.

    :param rows: slice ↦ these rows
    :param chunks: the slices that make up the N rows
    :param metric: F_out
    :param noise_span: where the noise parameter lies in θ; None if there is none, or it is not trained
    """

    rows: Callable[[slice], FeedForwardRows]
    chunks: Sequence[slice]
    metric: OutputMetric
    noise_span: slice | None = None


class FeedForwardLayers(ChunkedRecords):
    """
    The diagonal blocks of F: one for each layer, and one for the noise parameter, which is formed.

    The same blocks and records as :class:`~sb3_npg.fisher.LayeredFisher` finds by hooks and autograd.

    :param model: the network on the rows
    """

    def __init__(self, model: FeedForwardModel):
        super().__init__(model.chunks)
        self.model = model
        self.n_rows: int = model.chunks[-1].stop
        first = model.rows(model.chunks[0])
        self._places = [_block_of(step) for step in first.jacobian.steps]
        self.blocks: list[Block] = [place for place in self._places if place is not None]
        if model.noise_span is not None and first.noise is not None:
            self.blocks.append(DenseBlock("log_std", model.noise_span, first.noise.n_groups))

    def chain(self) -> FisherChain | None:
        """Return the Fisher as a chain of layers; None if it is not one, or if the rows are in several chunks."""
        return self.model.rows(self.chunks[0]).whole.chain(self.model.metric) if len(self.chunks) == 1 else None

    def dense_block(self, block: DenseBlock) -> th.Tensor:
        """
        Form the Fisher of the noise's parameter.

        :param block: one of :attr:`blocks`
        :return: shape (b, m, m)
        """
        noise = self.model.rows(self.chunks[0]).noise
        if len(self.chunks) == 1 and noise is not None:
            return noise.fisher()
        columns = (self._noise_columns(self.model.rows(rows)) for rows in self.chunks)
        return noise_fisher(columns) / self.n_rows

    def scores(self, block: DenseBlock) -> th.Tensor:
        """
        Differentiate each row's log π(a|s) with respect to the noise parameter.

        :param block: one of :attr:`blocks`
        :return: shape (N, size of the block)
        """
        seen = [self.model.rows(rows) for rows in self.chunks]
        parts = [rows.score()[:, rows.jacobian.outputs.shape[1] :] for rows in seen]
        return th.cat([noise_scores(self._noise_columns(rows), part) for rows, part in zip(seen, parts, strict=True)])

    def _noise_columns(self, rows: FeedForwardRows) -> th.Tensor:
        if rows.noise is None:
            raise ValueError("the policy has no parameter that scales its noise")
        return rows.noise.columns()

    def _records_of(
        self, rows: slice, columns: Columns, generator: th.Generator, weight_sharing: WeightSharing
    ) -> list[LayerRecord]:
        seen = self.model.rows(rows)
        outputs = seen.whole.outputs
        n_moved, n_outputs = seen.jacobian.outputs.shape[1], outputs.shape[1]
        if columns == "sampled":
            root = seen.score().unsqueeze(2)
        else:
            moved = None if n_moved == n_outputs else th.arange(n_outputs, device=outputs.device) < n_moved
            root = chosen_columns(self.model.metric.root(outputs), moved, columns, generator)
        deltas = seen.jacobian.deltas(root[:, :n_moved].permute(2, 0, 1).contiguous())
        return [
            LayerRecord(place, step.homogeneous_inputs(weight_sharing), step.by_position(delta, weight_sharing))
            for step, place, delta in zip(seen.jacobian.steps, self._places, deltas, strict=True)
            if place is not None
        ]


def _block_of(step: LayerStep) -> LayerBlock | None:
    return LayerBlock.of(step.name, step.weight_span, step.bias_span, len(step.weight)) if step.acts else None
