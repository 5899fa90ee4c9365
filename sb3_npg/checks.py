"""Checks of what users pass: a ``ValueError`` names the argument, its value, the reason and the way out."""

import math
import operator
from numbers import Integral, Real
from typing import Any


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    hint: str = "",
) -> float:
    """
    Check that a hyperparameter is a finite number in its range.

    :param name: the argument's name, as the user writes it
    :param value: what the user passed
    :param minimum: smallest value allowed
    :param above: the value must be larger than this
    :param maximum: largest value allowed
    :param below: the value must be smaller than this
    :param hint: the way out, a sentence that ends the message
    :return: the value as a float
    :raises ValueError: if it is not a number, not finite, or out of range
    """
    if isinstance(value, str):
        if value.startswith("lin_"):
            raise ValueError(f"`{name}`={value!r} is a schedule, and it takes none: give a number. {hint}".rstrip())
        raise ValueError(
            f"`{name}`={value!r} is a string where a number belongs. Write it without quotes; in a YAML file write "
            f"1.0e-3 or !!float 1e-3, because YAML reads 1e-3 as a string. {hint}".rstrip()
        )
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"`{name}`={value!r} must be a number, got {type(value).__name__}. {hint}".rstrip())
    number = float(value)
    limits = [
        (minimum, "at least", operator.ge),
        (above, "greater than", operator.gt),
        (maximum, "at most", operator.le),
        (below, "less than", operator.lt),
    ]
    given = [(limit, words, holds) for limit, words, holds in limits if limit is not None]
    if not math.isfinite(number) or not all(holds(number, limit) for limit, _, holds in given):
        wanted = " and ".join(["finite", *(f"{words} {limit:g}" for limit, words, _ in given)])
        raise ValueError(f"`{name}`={value!r} must be {wanted}. {hint}".rstrip())
    return number


def check_integer(name: str, value: Any, *, minimum: int, hint: str = "") -> int:
    """
    Check that a hyperparameter is a whole number, at least ``minimum``.

    :param name: the argument's name, as the user writes it
    :param value: what the user passed
    :param minimum: smallest value allowed
    :param hint: the way out, a sentence that ends the message
    :return: the value as an int
    :raises ValueError: if it is not a whole number or too small
    """
    check_number(name, value, minimum=minimum, hint=hint)
    if not isinstance(value, Integral):
        raise ValueError(f"`{name}`={value!r} must be a whole number: write {round(float(value))}. {hint}".rstrip())
    return int(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """
    Check that a hyperparameter is one of the allowed words.

    :param name: the argument's name, as the user writes it
    :param value: what the user passed
    :param choices: the allowed words
    :raises ValueError: if it is not one of them
    """
    if value not in choices:
        raise ValueError(f"`{name}`={value!r} is unknown. Choose one of {list(choices)}.")


def check_flag(name: str, value: Any) -> None:
    """
    Check that a hyperparameter is True or False (or 1 or 0), and not a string such as "true".

    :param name: the argument's name, as the user writes it
    :param value: what the user passed
    :raises ValueError: if it is neither True nor False
    """
    if not isinstance(value, bool) and value not in (0, 1):
        raise ValueError(f"`{name}`={value!r} must be True or False.")
