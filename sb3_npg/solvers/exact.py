"""The Fisher formed and factorised: the definition that the other solvers are measured against."""

import torch as th

from sb3_npg.checks import check_integer
from sb3_npg.linalg import damped_cholesky
from sb3_npg.solvers.base import FisherSolver, Problem, Solution


class ExactSolver(FisherSolver):
    """
    Forms F (p × p) and solves (F + λI) x = g by a Cholesky factorisation in float64.

    Needs 20p² bytes and O(p³) operations: for small policies, and as the reference.

    :param max_parameters: refuse policies with more acting parameters than this
    :raises ValueError: if ``max_parameters`` < 1
    """

    def __init__(self, max_parameters: int = 10_000):
        super().__init__()
        check_integer("fisher_solver_kwargs['max_parameters']", max_parameters, minimum=1)
        self.max_parameters = max_parameters
        self._fisher: th.Tensor | None = None

    def check_size(self, n_parameters: int, n_rows: int) -> None:
        """Refuse a policy whose Fisher would not fit."""
        if n_parameters > self.max_parameters:
            raise ValueError(
                f"`fisher_solver`='exact' forms the Fisher of all {n_parameters:,} parameters "
                f"({20 * n_parameters**2 / 2**30:.1f} GiB), more than its limit of {self.max_parameters:,}. "
                "Use fisher_solver='cg', which never forms it, a smaller `net_arch`, "
                "or raise fisher_solver_kwargs={'max_parameters': ...}."
            )

    def update(self, problem: Problem) -> None:
        """Form F."""
        self._fisher = None  # frees its memory first; a failure must not leave the last rollout's
        self._fisher = problem.dense_fisher()

    def solve(self, problem: Problem, gradient: th.Tensor, damping: float) -> Solution:
        """Factorise F + λI and solve."""
        fisher = problem.dense_fisher() if self._fisher is None else self._fisher
        factor = damped_cholesky(fisher, damping)
        x = th.cholesky_solve(gradient.double().unsqueeze(1), factor).squeeze(1)
        diagonal = factor.diagonal()
        condition = float((diagonal.max() / diagonal.min()) ** 2)
        return Solution(x.to(gradient.dtype), {"steps": 1.0, "condition": condition})
