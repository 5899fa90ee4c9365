"""Repairs for rl_zoo3 2.9: what it expects of packages that have changed since, under the names that it uses."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import huggingface_sb3
import huggingface_sb3.push_to_hub
from huggingface_hub.errors import EntryNotFoundError
from requests.exceptions import HTTPError


def repair_hub() -> None:
    """
    Let the zoo exchange models with the Hugging Face hub.

    Its ``push_to_hub`` imports ``generate_metadata``, which now has another name and return type; its ``load_from_hub``
    expects requests' error for a model without normalisation, but now gets the hub's.
    """
    module: Any = sys.modules["huggingface_sb3.push_to_hub"]
    if not hasattr(module, "generate_metadata"):
        module.generate_metadata = lambda *args: module._generate_metadata(*args).to_dict()
    load = huggingface_sb3.load_from_hub

    def load_from_hub(repo_id: str, filename: str) -> str:
        try:
            return str(load(repo_id, filename))
        except EntryNotFoundError as error:
            raise HTTPError(str(error)) from error

    huggingface_sb3.load_from_hub = load_from_hub


@contextmanager
def own_subprocesses() -> Iterator[None]:
    """Let the commands of the zoo that a command calls as subprocesses run in this Python, with NPG registered."""
    call = subprocess.call

    def call_here(command: Sequence[str], *args: Any, **kwargs: Any) -> int:
        if list(command[:2]) == ["python", "-m"] and command[2].startswith("rl_zoo3."):
            command = [sys.executable, "-m", "sb3_npg.zoo", command[2].removeprefix("rl_zoo3."), *command[3:]]
        return call(command, *args, **kwargs)

    subprocess.call = call_here  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.call = call
