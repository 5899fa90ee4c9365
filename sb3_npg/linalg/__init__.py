"""Numerical linear algebra on plain tensors. Knows nothing of policies."""

from sb3_npg.linalg.kronecker import (
    Eigen,
    damped_cholesky,
    damped_solve,
    factored_damping,
    rotate,
    rotate_back,
    symmetric_eigen,
)
from sb3_npg.linalg.krylov import ConjugateGradientResult, conjugate_gradient

__all__ = [
    "ConjugateGradientResult",
    "Eigen",
    "conjugate_gradient",
    "damped_cholesky",
    "damped_solve",
    "factored_damping",
    "rotate",
    "rotate_back",
    "symmetric_eigen",
]
