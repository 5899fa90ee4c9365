"""The linear algebra of the solvers in CUDA kernels, which CuPy compiles and starts. Imports CuPy when first used."""

from sb3_npg.linalg.cupy.algebra import CupyLinearAlgebra

__all__ = ["CupyLinearAlgebra"]
