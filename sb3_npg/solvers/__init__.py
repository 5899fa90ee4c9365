"""Solvers for x ≈ (F + λI)⁻¹ g, by name. Register a class of your own in ``FISHER_SOLVERS``."""

from typing import Any

from sb3_npg.solvers.base import FisherSolver, Problem, Solution
from sb3_npg.solvers.conjugate_gradient import ConjugateGradientSolver
from sb3_npg.solvers.construction import argument_names, construct
from sb3_npg.solvers.diagonal import DiagonalSolver
from sb3_npg.solvers.direction import Direction, find_direction
from sb3_npg.solvers.ekfac import EKFACSolver
from sb3_npg.solvers.exact import ExactSolver
from sb3_npg.solvers.identity import IdentitySolver
from sb3_npg.solvers.kfac import KFACSolver
from sb3_npg.solvers.scaling import ScaledProblem, mean_eigenvalue
from sb3_npg.solvers.woodbury import WoodburySolver

__all__ = [
    "FISHER_SOLVERS",
    "Direction",
    "FisherSolver",
    "Problem",
    "ScaledProblem",
    "Solution",
    "construct",
    "find_direction",
    "make_fisher_solver",
    "mean_eigenvalue",
]

FISHER_SOLVERS: dict[str, type[FisherSolver]] = {
    "cg": ConjugateGradientSolver,
    "diagonal": DiagonalSolver,
    "ekfac": EKFACSolver,
    "exact": ExactSolver,
    "identity": IdentitySolver,
    "kfac": KFACSolver,
    "woodbury": WoodburySolver,
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
            f"`fisher_solver`={name!r} is unknown. Choose one of {['auto', *sorted(FISHER_SOLVERS)]}, "
            "or register a class of your own in sb3_npg.solvers.FISHER_SOLVERS."
        )
    asked = set(kwargs) if isinstance(kwargs, dict) else set()
    able = [other for other, known in sorted(FISHER_SOLVERS.items()) if asked <= set(argument_names(known))]
    hint = f"That is for fisher_solver={' or '.join(map(repr, able))}; " if able else ""
    hint += "None drops what a loaded agent was saved with."
    return construct(FISHER_SOLVERS[name], kwargs, "fisher_solver_kwargs", f"fisher_solver={name!r}", hint=hint)
