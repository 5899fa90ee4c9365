"""Conjugate gradient on Fisher-vector products: the full Fisher, never formed."""

import torch as th

from sb3_npg.checks import check_integer, check_number
from sb3_npg.linalg import conjugate_gradient
from sb3_npg.solvers.base import FisherSolver, Problem, Solution


class ConjugateGradientSolver(FisherSolver):
    """
    Solves (F + λI) x = g by conjugate gradient, one Fisher-vector product a step.

    Schulman et al. (2015), Trust Region Policy Optimization, appendix C.

    :param max_steps: largest number of Fisher-vector products in a solve
    :param rtol: stop earlier, when ‖g − (F + λI)x‖ ≤ rtol ‖g‖
    :raises ValueError: if ``max_steps`` < 1 or ``rtol`` is outside [0, 1)
    """

    def __init__(self, max_steps: int = 15, rtol: float = 0.01):
        super().__init__()
        check_integer("fisher_solver_kwargs['max_steps']", max_steps, minimum=1)
        check_number("fisher_solver_kwargs['rtol']", rtol, minimum=0.0, below=1.0)
        self.max_steps = max_steps
        self.rtol = rtol

    def solve(self, problem: Problem, gradient: th.Tensor, damping: float) -> Solution:
        """Run conjugate gradient from x = 0."""

        def damped_product(vector: th.Tensor) -> th.Tensor:
            return problem.fisher_vector_product(vector).add_(vector, alpha=damping)

        x, steps, residual = conjugate_gradient(damped_product, gradient, self.max_steps, self.rtol)
        return Solution(x, {"steps": float(steps), "residual": residual})
