"""Building a solver from the dict of arguments that a user wrote."""

import inspect
from typing import Any, TypeVar

SomeSolver = TypeVar("SomeSolver")


def argument_names(solver_class: type) -> list[str]:
    """Return the keyword arguments of a solver's constructor."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(solver_class).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind not in several]


def construct(
    solver_class: type[SomeSolver],
    kwargs: dict[str, Any] | None,
    argument: str,
    owner: str,
    own_name: str = "fisher_solver_kwargs",
    hint: str = "",
) -> SomeSolver:
    """
    Build a solver; its error messages name the argument that the user wrote.

    :param solver_class: what to build
    :param kwargs: keyword arguments of its constructor
    :param argument: where the user wrote them
    :param owner: what they belong to, in words
    :param own_name: the argument that the solver itself names in its error messages
    :param hint: what to do about an unknown keyword argument
    :return: the solver
    :raises ValueError: for an unknown keyword argument, or a value that the solver refuses
    """
    if kwargs is not None and not isinstance(kwargs, dict):
        raise ValueError(f"`{argument}`={kwargs!r} must be a dict, arguments by name, or None.")
    known = argument_names(solver_class)
    unknown = sorted(set(kwargs or {}) - set(known))
    if unknown:
        choice = f"It takes {known}" if known else "It takes none"
        raise ValueError(f"`{argument}` has {unknown}, which {owner} does not know. {choice}. {hint}".rstrip())
    try:
        return solver_class(**(kwargs or {}))
    except ValueError as error:
        raise ValueError(str(error).replace(own_name, argument, 1)) from error
