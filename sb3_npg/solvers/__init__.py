"""Ways to x ≈ (F + λI)⁻¹ g, by name. Register a class of your own in ``FISHER_SOLVERS``."""

import inspect
from typing import Any

from sb3_npg.solvers.base import FisherSolver, Problem, Solution
from sb3_npg.solvers.conjugate_gradient import ConjugateGradientSolver
from sb3_npg.solvers.exact import ExactSolver
from sb3_npg.solvers.identity import IdentitySolver

__all__ = ["FISHER_SOLVERS", "FisherSolver", "Problem", "Solution", "make_fisher_solver"]

FISHER_SOLVERS: dict[str, type[FisherSolver]] = {
    "cg": ConjugateGradientSolver,
    "exact": ExactSolver,
    "identity": IdentitySolver,
}


def make_fisher_solver(name: str, kwargs: dict[str, Any] | None = None) -> FisherSolver:
    """
    Build the solver that ``NPG(fisher_solver=name, fisher_solver_kwargs=kwargs)`` asks for.

    :param name: a key of ``FISHER_SOLVERS``
    :param kwargs: keyword arguments of that solver's constructor
    :return: the solver
    :raises ValueError: for an unknown name, an unknown keyword argument, or a value that the solver refuses
    """
    if not isinstance(name, str) or name not in FISHER_SOLVERS:
        raise ValueError(
            f"`fisher_solver`={name!r} is unknown. Choose one of {sorted(FISHER_SOLVERS)}, "
            "or register a class of your own in sb3_npg.solvers.FISHER_SOLVERS."
        )
    if kwargs is not None and not isinstance(kwargs, dict):
        raise ValueError(f"`fisher_solver_kwargs`={kwargs!r} must be a dict such as {{'max_steps': 15}}, or None.")
    solver_class = FISHER_SOLVERS[name]
    known = [key for key in inspect.signature(solver_class).parameters if key not in ("args", "kwargs")]
    unknown = sorted(set(kwargs or {}) - set(known))
    if unknown:
        choice = f"It takes {known}" if known else "It takes none"
        raise ValueError(f"`fisher_solver_kwargs` has {unknown}, which fisher_solver={name!r} does not know. {choice}.")
    return solver_class(**(kwargs or {}))
