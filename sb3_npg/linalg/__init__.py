"""Numerical linear algebra on plain tensors. Knows nothing of policies."""

from sb3_npg.linalg.krylov import ConjugateGradientResult, conjugate_gradient

__all__ = ["ConjugateGradientResult", "conjugate_gradient"]
