"""F = (1/N) Σ_n J_nᵀ F_out,n J_n over the rows of a rollout: products with it, F itself, and its blocks."""

from sb3_npg.fisher.autograd import Linearization
from sb3_npg.fisher.blocks import Block, DenseBlock, LayerBlock, dense_blocks, layer_blocks
from sb3_npg.fisher.chunks import LARGEST_TEMPORARY, memory_budget_of, rows_within, split_rows
from sb3_npg.fisher.columns import Columns
from sb3_npg.fisher.feed_forward import FeedForward, FeedForwardJacobian, is_hooked, is_plain
from sb3_npg.fisher.feed_forward_layers import FeedForwardLayers, FeedForwardModel, FeedForwardRows
from sb3_npg.fisher.gaussian_jacobian import GaussianJacobian
from sb3_npg.fisher.kept_jacobian import KeptJacobian
from sb3_npg.fisher.layers import LayeredFisher, LayeredModel, RowOutputs
from sb3_npg.fisher.rollout_fisher import OutputModel, RolloutFisher, UnitMetric
from sb3_npg.fisher.sequences import sequence_of
from sb3_npg.fisher.statistics import (
    LayerRecord,
    WeightSharing,
    jacobians,
    kronecker_factors,
    second_moments,
    squared_norms,
)

__all__ = [
    "LARGEST_TEMPORARY",
    "Block",
    "Columns",
    "DenseBlock",
    "FeedForward",
    "FeedForwardJacobian",
    "FeedForwardLayers",
    "FeedForwardModel",
    "FeedForwardRows",
    "GaussianJacobian",
    "KeptJacobian",
    "LayerBlock",
    "LayerRecord",
    "LayeredFisher",
    "LayeredModel",
    "Linearization",
    "OutputModel",
    "RolloutFisher",
    "RowOutputs",
    "UnitMetric",
    "WeightSharing",
    "dense_blocks",
    "is_hooked",
    "is_plain",
    "jacobians",
    "kronecker_factors",
    "layer_blocks",
    "memory_budget_of",
    "rows_within",
    "second_moments",
    "sequence_of",
    "split_rows",
    "squared_norms",
]
