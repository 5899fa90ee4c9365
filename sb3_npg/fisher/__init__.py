"""Products with F = (1/N) Σ_n J_nᵀ F_out,n J_n over the rows of a rollout."""

from sb3_npg.fisher.autograd import AutogradFisher, OutputModel
from sb3_npg.fisher.chunks import rows_within, split_rows

__all__ = ["AutogradFisher", "OutputModel", "rows_within", "split_rows"]
