"""Krylov methods for symmetric positive definite systems."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch as th

Operator = Callable[[th.Tensor], th.Tensor]


class History(NamedTuple):
    """
    The history of a solve by conjugate gradient.

    :param steps: number of search directions, one product with A each
    :param residual: ‖b − (A + σI)x‖ / ‖b‖ as tracked by the recursion; 0 when b = 0
    :param lengths: α of each step that succeeded
    :param improvements: β of each of them
    """

    steps: int
    residual: float
    lengths: list[float]
    improvements: list[float]


class ConjugateGradientResult:
    """
    The result of :func:`conjugate_gradient`.

    The history may still be on a device, which is waited for only when it is first read.

    :param x: the approximate solution, shape (p,)
    :param product: A x, accumulated from the products of the solve, shape (p,)
    :param tell: returns the history
    """

    def __init__(self, x: th.Tensor, product: th.Tensor, tell: Callable[[], History]):
        self.x = x
        self.product = product
        self._tell = tell

    @cached_property
    def _history(self) -> History:
        return self._tell()

    @property
    def steps(self) -> int:
        """Number of search directions, one product with A each."""
        return self._history.steps

    @property
    def residual(self) -> float:
        """‖b − (A + σI)x‖ / ‖b‖ as tracked by the recursion; 0 when b = 0."""
        return self._history.residual

    @cached_property
    def condition(self) -> float:
        """
        Ratio of the largest to the smallest Ritz value: a lower bound of the condition number of A + σI, or of
        M⁻¹(A + σI) with a preconditioner M; 1 when no step succeeded.
        """
        return ritz_condition(self._history.lengths, self._history.improvements)

    def from_start(self, x0: th.Tensor, product: th.Tensor) -> "ConjugateGradientResult":
        """Return the result for a solve that began at x₀, given that of its correction: x₀ and A x₀ are added."""
        return ConjugateGradientResult(self.x + x0, self.product + product, self._tell)


def conjugate_gradient(
    matvec: Operator,
    b: th.Tensor,
    max_steps: int,
    rtol: float = 0.0,
    preconditioner: Operator | None = None,
    x0: th.Tensor | None = None,
    shift: float = 0.0,
) -> ConjugateGradientResult:
    """
    Solve (A + σI) x = b for a symmetric positive definite A + σI, with A given by its products.

    Starts at x = 0 unless told otherwise: no random number is drawn and no product is spent on the first
    residual. Stops after ``max_steps`` steps, as soon as ‖b − (A + σI)x‖ ≤ ``rtol`` ‖b‖, or when a search
    direction shows no positive curvature (A + σI is not positive definite in this precision); x is then the last
    iterate before it.

    Hestenes & Stiefel (1952), Methods of conjugate gradients for solving linear systems;
    Nocedal & Wright (2006), Numerical Optimization, algorithms 5.2 and 5.3.

    :param matvec: v ↦ A v, for v of shape (p,)
    :param b: right-hand side, shape (p,)
    :param max_steps: largest number of steps, at least 1
    :param rtol: relative tolerance on the residual's 2-norm, at least 0
    :param preconditioner: r ↦ M⁻¹ r for a symmetric positive definite M near A + σI; the identity if None
    :param x0: where to start, at the price of one more product; zero if None
    :param shift: σ ≥ 0
    :return: solution, number of steps, relative residual and a condition estimate
    """
    x, applied = (th.zeros_like(b), th.zeros_like(b)) if x0 is None else (x0.clone(), matvec(x0))
    residual = b - applied.add(x, alpha=shift)
    squared_b = float(b @ b)
    # Below the smallest normal number squares mean nothing: such a residual counts as zero.
    target = max(rtol**2 * squared_b, th.finfo(b.dtype).tiny)
    squared_residual = float(residual @ residual)
    lengths: list[float] = []
    improvements: list[float] = []
    direction, inner, steps = th.zeros_like(b), math.inf, 0
    while steps < max_steps and squared_residual > target:
        preconditioned = residual if preconditioner is None else preconditioner(residual)
        previous, inner = inner, float(residual @ preconditioned)
        improvement = inner / previous
        direction.mul_(improvement).add_(preconditioned)
        product = matvec(direction)
        steps += 1
        curvature = float(direction @ product) + shift * float(direction @ direction)
        if not (0.0 < curvature < math.inf and 0.0 < inner < math.inf):
            break
        length = inner / curvature
        x.add_(direction, alpha=length)
        applied.add_(product, alpha=length)
        residual.sub_(product, alpha=length).sub_(direction, alpha=length * shift)
        squared_residual = float(residual @ residual)
        lengths.append(length)
        improvements.append(improvement)
    relative = math.sqrt(squared_residual / squared_b) if squared_b > 0.0 else 0.0
    history = History(steps, relative, lengths, improvements)
    return ConjugateGradientResult(x, applied, lambda: history)


def ritz_condition(lengths: list[float], improvements: list[float]) -> float:
    """
    Estimate the condition number of the operator in a solve by conjugate gradient.

    The coefficients of the solve define the Lanczos tridiagonal matrix T, whose eigenvalues lie between the smallest
    and the largest of the operator.

    Saad (2003), Iterative Methods for Sparse Linear Systems, section 6.7.3.

    :param lengths: α_j of each step
    :param improvements: β_j of each step, the first of which is not used
    :return: λ_max(T) / λ_min(T), at least 1; 1 for no step
    """
    if not lengths:
        return 1.0
    alpha, beta = np.array(lengths), np.array(improvements)[1:]
    diagonal = 1.0 / alpha
    diagonal[1:] += beta / alpha[:-1]
    n = len(alpha)
    tridiagonal = np.zeros((n, n))
    tridiagonal.flat[:: n + 1] = diagonal
    tridiagonal.flat[n :: n + 1] = np.sqrt(beta) / alpha[:-1]  # below the diagonal, which is all that is read
    ritz = np.linalg.eigvalsh(tridiagonal)
    return float(ritz[-1] / ritz[0]) if ritz[0] > 0.0 else math.inf
