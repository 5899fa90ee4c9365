"""F = (1/N) Σ_n J_nᵀ F_out,n J_n over the rows of a rollout: its products, itself, and its layers."""

from sb3_npg.fisher.autograd import Jacobian, Linearization, OutputModel, RolloutFisher
from sb3_npg.fisher.blocks import Block, DenseBlock, LayerBlock, dense_blocks, layer_blocks
from sb3_npg.fisher.chunks import LARGEST_TEMPORARY, memory_budget_of, rows_within, split_rows
from sb3_npg.fisher.columns import Columns
from sb3_npg.fisher.kept import KeptJacobian
from sb3_npg.fisher.layers import Acting, ActingModel, LayeredFisher
from sb3_npg.fisher.mlp import Mlp, MlpJacobian, is_plain
from sb3_npg.fisher.mlp_layers import MlpLayers, MlpModel, MlpRows
from sb3_npg.fisher.noise import GaussianJacobian, NoiseJacobian
from sb3_npg.fisher.statistics import LayerRecord, jacobians, kronecker_factors, second_moments, squared_norms

__all__ = [
    "LARGEST_TEMPORARY",
    "Acting",
    "ActingModel",
    "Block",
    "Columns",
    "DenseBlock",
    "GaussianJacobian",
    "Jacobian",
    "KeptJacobian",
    "LayerBlock",
    "LayerRecord",
    "LayeredFisher",
    "Linearization",
    "Mlp",
    "MlpJacobian",
    "MlpLayers",
    "MlpModel",
    "MlpRows",
    "NoiseJacobian",
    "OutputModel",
    "RolloutFisher",
    "dense_blocks",
    "is_plain",
    "jacobians",
    "kronecker_factors",
    "layer_blocks",
    "memory_budget_of",
    "rows_within",
    "second_moments",
    "split_rows",
    "squared_norms",
]
