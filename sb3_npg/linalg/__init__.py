"""Numerical linear algebra on plain tensors. Knows nothing of policies."""

from sb3_npg.linalg.conjugate_gradient import ConjugateGradientResult, conjugate_gradient

__all__ = ["ConjugateGradientResult", "conjugate_gradient"]
