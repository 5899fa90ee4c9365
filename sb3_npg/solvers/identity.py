"""The plain gradient, for comparison."""

import torch as th

from sb3_npg.solvers.base import FisherSolver, Problem, Solution


class IdentitySolver(FisherSolver):
    """
    Replaces F by the identity: x = g, the vanilla policy gradient.

    Damping does not apply; relative damping divides g by each block's mean eigenvalue. Step length and line search
    are those of the other solvers, so only the directions differ in a comparison.
    """

    def solve(self, problem: Problem, gradient: th.Tensor, damping: float) -> Solution:
        """Return g itself."""
        return Solution(gradient.clone(), {})
