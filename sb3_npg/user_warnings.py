"""Warnings that point at the user's line."""

import sys
import warnings

#: Packages whose frames stand between the user's code and a warning.
_PASSED_THROUGH = ("sb3_npg", "stable_baselines3", "torch", "contextlib", "functools")


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """
    Warn at the user's line that led here, outside this package: it shows where to look, and Python shows a warning
    once for each line.

    :param message: what is wrong, and what to do about it
    :param category: of the warning
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_THROUGH:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
