"""Errors in the input of the zoo's commands, found before any training starts."""

import difflib
from collections.abc import Iterable


class ZooError(ValueError):
    """Bad input to a command of the zoo: one line that names the key or the argument, the file, and the way out."""


def did_you_mean(word: str, known: Iterable[str], quote: str = "") -> str:
    """Return "Did you mean …? " with the nearest known word; an empty string if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {quote}{near[0]}{quote}? " if near else ""
