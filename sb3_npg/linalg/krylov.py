"""Krylov methods for symmetric positive definite systems."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch as th


class ConjugateGradientResult(NamedTuple):
    """What :func:`conjugate_gradient` found.

    :param x: the approximate solution, shape (p,)
    :param steps: number of products with A
    :param residual: ‖b − Ax‖ / ‖b‖ as tracked by the recursion; 0 when b = 0
    """

    x: th.Tensor
    steps: int
    residual: float


def conjugate_gradient(
    matvec: Callable[[th.Tensor], th.Tensor], b: th.Tensor, max_steps: int, rtol: float = 0.0
) -> ConjugateGradientResult:
    """
    Solve A x = b for a symmetric positive definite A given by its products.

    Starts at x = 0: no random number is drawn, no product is spent on the first residual, and the
    first iterate is a positive multiple of b. Stops after ``max_steps`` products, as soon as
    ‖b − Ax‖ ≤ ``rtol`` ‖b‖, or when a search direction shows no positive curvature (A is not
    positive definite in this precision); x is then the last iterate before it.

    Hestenes & Stiefel (1952), Methods of conjugate gradients for solving linear systems;
    Nocedal & Wright (2006), Numerical Optimization, algorithm 5.2.

    :param matvec: v ↦ A v, for v of shape (p,)
    :param b: right-hand side, shape (p,)
    :param max_steps: largest number of products with A, at least 1
    :param rtol: relative tolerance on the residual's 2-norm, at least 0
    :return: solution, number of products and relative residual
    """
    x = th.zeros_like(b)
    residual = b.clone()
    direction = b.clone()
    squared_residual = initial = float(b @ b)
    # Below the smallest normal number squares mean nothing: such a residual counts as zero.
    target = max(rtol**2 * initial, th.finfo(b.dtype).tiny)
    steps = 0
    while steps < max_steps and squared_residual > target:
        product = matvec(direction)
        steps += 1
        curvature = float(direction @ product)
        if not (0.0 < curvature < math.inf):
            break
        length = squared_residual / curvature
        x.add_(direction, alpha=length)
        residual.sub_(product, alpha=length)
        previous, squared_residual = squared_residual, float(residual @ residual)
        direction.mul_(squared_residual / previous).add_(residual)
    relative = math.sqrt(squared_residual / initial) if initial > 0.0 else 0.0
    return ConjugateGradientResult(x, steps, relative)
