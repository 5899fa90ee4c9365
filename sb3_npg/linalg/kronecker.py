"""
Symmetric matrices and their Kronecker products, damped and inverted.

A Kronecker product A ⊗ G acts on matrices V of shape (g, a), one row for each row of G: V ↦ G V A.
Factorisations are computed in float64, whatever the precision of inputs and outputs.
"""

from typing import NamedTuple

import torch as th


class Eigen(NamedTuple):
    """
    Eigendecomposition Q diag(λ) Qᵀ of symmetric positive semi-definite matrices.

    :param values: λ ≥ 0 in ascending order, shape (…, n)
    :param vectors: Q, columns are eigenvectors, shape (…, n, n)
    """

    values: th.Tensor
    vectors: th.Tensor


def symmetric_eigen(matrix: th.Tensor) -> Eigen:
    """
    Decompose symmetric positive semi-definite matrices; eigenvalues that rounding made negative count as zero.

    :param matrix: shape (…, n, n)
    :return: eigenvalues and eigenvectors, in the matrix's precision
    :raises ArithmeticError: if an entry is not finite or the iteration does not converge
    """
    if not bool(th.isfinite(matrix).all()):
        raise ArithmeticError("a matrix to decompose is not finite")
    try:
        values, vectors = _eigh(matrix.double())
    except RuntimeError as error:  # LinAlgError, or what a backend raises instead
        raise ArithmeticError(f"an eigendecomposition failed: {error}") from error
    if not bool(th.isfinite(values).all()) or not bool(th.isfinite(vectors).all()):
        raise ArithmeticError("an eigendecomposition is not finite")
    return Eigen(values.clamp_min(0.0).to(matrix.dtype), vectors.to(matrix.dtype))


def _eigh(matrix: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Decompose a matrix; if that fails, with its rows and columns in reverse order.

    LAPACK's divide and conquer occasionally fails on a matrix of low rank, and then succeeds on the reversed one.
    """
    try:
        values, vectors = th.linalg.eigh(matrix)
    except RuntimeError:
        values, vectors = th.linalg.eigh(matrix.flip(-2, -1))
        vectors = vectors.flip(-2)
    return values, vectors


def damped_solve(eigen: Eigen, vectors: th.Tensor, damping: float | th.Tensor) -> th.Tensor:
    """
    Solve (M + λI) x = v for each of b matrices.

    :param eigen: of M, shapes (b, n) and (b, n, n)
    :param vectors: v, shape (b, n)
    :param damping: λ ≥ 0
    :return: x, shape (b, n); not finite where M + λI is singular
    """
    if vectors.shape[1] == 1:
        return vectors / (eigen.values + damping)
    rotated = (eigen.vectors.mT @ vectors.unsqueeze(2)).squeeze(2) / (eigen.values + damping)
    return (eigen.vectors @ rotated.unsqueeze(2)).squeeze(2)


def rotate(left: Eigen, matrix: th.Tensor, right: Eigen) -> th.Tensor:
    """Return Q_Gᵀ V Q_A: V of shape (g, a) in the eigenbasis of A ⊗ G."""
    return left.vectors.mT @ matrix @ right.vectors


def rotate_back(left: Eigen, matrix: th.Tensor, right: Eigen) -> th.Tensor:
    """Return Q_G W Q_Aᵀ, the inverse of :func:`rotate`."""
    return left.vectors @ matrix @ right.vectors.mT


def damped_cholesky(matrix: th.Tensor, damping: float) -> th.Tensor:
    """
    Factorise M + λI = L Lᵀ in float64.

    :param matrix: M, symmetric positive semi-definite, shape (n, n); left as it is
    :param damping: λ ≥ 0
    :return: L, shape (n, n), float64
    :raises ArithmeticError: if M + λI is not positive definite in float64
    """
    factor, succeeded = try_cholesky(matrix, damping)
    if not bool(succeeded):
        raise ArithmeticError(f"a matrix of {len(matrix)} rows is not positive definite at damping {damping:g}")
    return factor


def try_cholesky(matrix: th.Tensor, damping: float | th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Factorise M + λI = L Lᵀ in float64, without waiting for the device.

    :param matrix: M, symmetric positive semi-definite, shape (n, n); left as it is
    :param damping: λ ≥ 0
    :return: L, shape (n, n), float64, and whether the factorisation succeeded, shape (), boolean
    """
    damped = matrix.to(th.float64, copy=True)
    damped.diagonal().add_(damping)
    factor, info = th.linalg.cholesky_ex(damped)
    # A NaN does not always show in info.
    return factor, (info == 0) & th.isfinite(factor.diagonal()).all()
