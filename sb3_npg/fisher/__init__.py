"""F = (1/N) Σ_n J_nᵀ F_out,n J_n over the rows of a rollout: its products, itself, and its layers."""

from sb3_npg.fisher.autograd import AutogradFisher, Linearization, OutputModel
from sb3_npg.fisher.blocks import Block, DenseBlock, LayerBlock, dense_blocks, layer_blocks
from sb3_npg.fisher.chunks import LARGEST_TEMPORARY, rows_within, split_rows
from sb3_npg.fisher.layers import Acting, ActingModel, Columns, LayeredFisher
from sb3_npg.fisher.statistics import LayerRecord, jacobians, kronecker_factors, second_moments

__all__ = [
    "LARGEST_TEMPORARY",
    "Acting",
    "ActingModel",
    "AutogradFisher",
    "Block",
    "Columns",
    "DenseBlock",
    "LayerBlock",
    "LayerRecord",
    "LayeredFisher",
    "Linearization",
    "OutputModel",
    "dense_blocks",
    "jacobians",
    "kronecker_factors",
    "layer_blocks",
    "rows_within",
    "second_moments",
    "split_rows",
]
