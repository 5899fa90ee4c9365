"""Symmetric matrices RᵀR kept as R with fewer rows, and damped inverses of these and of dense matrices."""

from typing import NamedTuple

import torch as th

from sb3_npg.linalg.kronecker import try_cholesky


class Gram:
    """
    M = RᵀR, kept as R. Sums and quotients are those of M.

    :param rows: R, shape (r, n)
    """

    def __init__(self, rows: th.Tensor):
        self.rows = rows

    def __add__(self, other: "Gram") -> "Gram":
        """Return the sum of both matrices."""
        return Gram(th.cat([self.rows, other.rows]))

    def __truediv__(self, number: float) -> "Gram":
        """Return the matrix divided by a positive number."""
        return Gram(self.rows / number**0.5)

    def matrix(self) -> th.Tensor:
        """Return M, shape (n, n)."""
        return self.rows.T @ self.rows


class DampedInverse(NamedTuple):
    """
    (M + λI)⁻¹ through a Cholesky factor in float64: that of M + λI, or that of RRᵀ + λI if M = RᵀR.

    :param cholesky: the factor
    :param rows: R, shape (r, n), float64; None if the factor is that of M + λI
    :param damping: λ, shape ()
    """

    cholesky: th.Tensor
    rows: th.Tensor | None
    damping: th.Tensor

    @classmethod
    def of(cls, matrix: th.Tensor | Gram, damping: th.Tensor) -> tuple["DampedInverse", th.Tensor]:
        """
        Factorise, without waiting for the device.

        :param matrix: M, symmetric positive semi-definite; left as it is
        :param damping: λ, shape ()
        :return: the inverse, and whether the factorisation succeeded, shape (), boolean
        """
        if not isinstance(matrix, Gram):
            cholesky, succeeded = try_cholesky(matrix, damping)
            return cls(cholesky, None, damping), succeeded
        rows = matrix.rows.double()
        cholesky, succeeded = try_cholesky(rows @ rows.T, damping)
        return cls(cholesky, rows, damping), succeeded & (damping > 0.0)

    def solve(self, vectors: th.Tensor) -> th.Tensor:
        """
        Multiply by the inverse, which is (I − Rᵀ(RRᵀ + λI)⁻¹R) / λ by Woodbury's identity if M = RᵀR.

        :param vectors: as columns, shape (n, k), float64
        :return: shape (n, k)
        """
        if self.rows is None:
            return th.cholesky_solve(vectors, self.cholesky)
        return (vectors - self.rows.T @ th.cholesky_solve(self.rows @ vectors, self.cholesky)) / self.damping


def _mean_eigenvalue(matrix: th.Tensor | Gram) -> th.Tensor:
    """Return tr(M) / n, shape (), float64."""
    if isinstance(matrix, Gram):
        return matrix.rows.double().square().sum() / matrix.rows.shape[1]
    return matrix.diagonal().double().mean()


def factored_damping(a: th.Tensor | Gram, g: th.Tensor | Gram, damping: float) -> tuple[th.Tensor, th.Tensor]:
    """
    Split λ between two factors so that (A + λ_A I) ⊗ (G + λ_G I) is near A ⊗ G + λI.

    λ_A = π√λ and λ_G = √λ/π, with π² the ratio of the factors' mean eigenvalues.

    Martens & Grosse (2015), Optimizing Neural Networks with Kronecker-factored Approximate Curvature, section 6.3.

    :param a: A, shape (a, a)
    :param g: G, shape (g, g)
    :param damping: λ ≥ 0
    :return: λ_A and λ_G, shape (), float64, on the factors' device
    """
    mean_a, mean_g = _mean_eigenvalue(a), _mean_eigenvalue(g)
    usable = (mean_a > 0.0) & (mean_g > 0.0)
    pi = th.where(usable, mean_a / mean_g, 1.0).sqrt()
    return pi * damping**0.5, damping**0.5 / pi


def factored_solve(a: DampedInverse, g: DampedInverse, matrix: th.Tensor) -> th.Tensor:
    """
    Solve (A ⊗ G) x = v, given the factors' inverses.

    :param a: A⁻¹, shape (a, a)
    :param g: G⁻¹, shape (g, g)
    :param matrix: v, shape (g, a)
    :return: x, shape (g, a), in the precision of v
    """
    half = g.solve(matrix.double())
    return a.solve(half.T).T.to(matrix.dtype)
