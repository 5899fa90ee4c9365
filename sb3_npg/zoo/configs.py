"""
The hyperparameters that come with the package, and the check of a block of hyperparameters.

``hyperparams`` makes this a ``--conf-file`` of the zoo's own commands: ``--conf-file sb3_npg.zoo.configs``.
"""

import inspect
import sys
from copy import deepcopy
from pathlib import Path
from types import FunctionType
from typing import Any

import yaml
from rl_zoo3.utils import get_class_by_name

from sb3_npg import NPG
from sb3_npg.schedules import LINEAR_PREFIX, make_schedule
from sb3_npg.zoo.errors import ZooError, did_you_mean

_HERE = Path(__file__).parent
#: The config file: beside this module in an installed package, in ``zoo_configs`` in a checkout of the source.
CONFIG = next(path for path in (_HERE / "npg.yml", _HERE.parents[1] / "zoo_configs" / "npg.yml") if path.is_file())
#: The blocks by environment, each a copy of its own even if they share one in the file: the zoo changes what it reads.
hyperparams: dict[str, dict[str, Any]] = {
    env_id: deepcopy(block) for env_id, block in yaml.safe_load(CONFIG.read_text(encoding="utf-8")).items()
}

#: Keys of a block that the zoo itself uses.
ZOO_KEYS = frozenset(
    {
        "callback", "env_kwargs", "env_wrapper", "frame_stack", "monitor_kwargs", "n_envs", "n_timesteps", "normalize",
        "policy", "vec_env_wrapper",
    }
)  # fmt: skip
#: Arguments of NPG that the zoo passes by itself, and the options by which the user sets them.
COMMAND_LINE = {
    "env": "--env",
    "seed": "--seed",
    "device": "--device",
    "verbose": "--verbose",
    "tensorboard_log": "--tensorboard-log",
}
#: Keys whose values name classes.
CLASSES = ("callback", "env_wrapper", "vec_env_wrapper")
#: Keys whose values are arguments of something other than NPG and its policy: text that reads as a number is allowed.
OTHERS = (*CLASSES, "env_kwargs", "monitor_kwargs")
#: Arguments that may follow a schedule.
SCHEDULES = ("learning_rate", "damping", "target_kl", "step_size")
#: Arguments of sb3-contrib's TRPO, and what they are called here.
TRPO_KEYS = {
    "cg_max_steps": "fisher_solver_kwargs: {max_steps: ...}",
    "cg_damping": "damping (TRPO's value × the number of action dimensions)",
}
NPG_KEYS = frozenset(inspect.signature(NPG.__init__).parameters) - {"self", "_init_setup_model", *COMMAND_LINE}


def check_block(block: dict[str, Any], source: str) -> None:
    """
    Check the keys of a block, and the values that YAML can get wrong.

    NPG itself checks everything else about the values.

    :param block: hyperparameters by name, as the file has them
    :param source: where they are from, for the message
    :raises ZooError: naming the key, the source, the reason and the way out
    """
    for key in ("n_timesteps", "policy"):
        if key not in block:
            raise ZooError(f"{source} has no `{key}`, which the zoo needs. Add it to the block.")
    for key, value in block.items():
        if key not in ZOO_KEYS | NPG_KEYS:
            raise ZooError(f"{source}: `{key}` is unknown. {_way_out(key)}")
        _check_schedule(key, value, source)
        _check_name(key, value, source)
        if key not in OTHERS:
            _check_text(key, value, source)
        if key in CLASSES:
            _check_classes(key, value, source)


def _way_out(key: str) -> str:
    """Tell what an unknown key may have meant."""
    if key in COMMAND_LINE:
        return f"Pass {COMMAND_LINE[key]} on the command line."
    if key in TRPO_KEYS:
        return f"It is TRPO's; write {TRPO_KEYS[key]}."
    return did_you_mean(key, ZOO_KEYS | NPG_KEYS, quote="`").rstrip() or "help(sb3_npg.NPG) lists the arguments."


def _check_schedule(key: str, value: Any, source: str) -> None:
    """Refuse ``"lin_x"`` where no schedule fits, or without a number."""
    if not isinstance(value, str) or not value.startswith(LINEAR_PREFIX):
        return
    if key not in SCHEDULES:
        raise ZooError(
            f"{source}: `{key}`={value!r}, but `{key}` follows no schedule. Write a fixed value; schedules fit "
            f"{', '.join(SCHEDULES)}."
        )
    try:
        make_schedule(key, value)
    except ValueError as error:
        raise ZooError(f"{source}: {error}") from None


def _check_name(key: str, value: Any, source: str) -> None:
    """Refuse a function or class that cannot be found by its name: a saved agent with it could not be loaded."""
    if isinstance(value, dict):
        for inner, item in value.items():
            _check_name(f"{key}[{inner!r}]", item, source)
    if not isinstance(value, (type, FunctionType)):
        return
    found: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is not value:
        raise ZooError(
            f"{source}: `{key}`={value.__qualname__} could not be found again when the agent is loaded. Define it in "
            "a module that can be imported, in a file of its own in this folder, and import it in the config. "
            "A schedule that falls to 0 is 'lin_0.01'."
        )


def _check_text(key: str, value: Any, source: str) -> None:
    """Refuse a number that YAML read as text, and a class's name that the zoo does not look up."""
    if isinstance(value, dict):
        for inner, item in value.items():
            _check_text(f"{key}[{inner!r}]", item, source)
    if key == "rollout_buffer_class" and isinstance(value, str):
        raise ZooError(
            f"{source}: `{key}`={value!r} is text, and the zoo looks up no class by its name here. Write the block in "
            "Python, a file of the form hyperparams = {...}, and pass it as --conf-file FILE.py."
        )
    if isinstance(value, str) and _is_number(value):
        raise ZooError(
            f"{source}: `{key}`={value!r} is text where a number belongs. YAML reads 1e-3 as text: write 1.0e-3 or "
            "!!float 1e-3."
        )


def _check_classes(key: str, value: Any, source: str) -> None:
    """Refuse names of classes that cannot be imported: one name or a list, each alone or above its arguments."""
    for entry in value if isinstance(value, list) else [value]:
        name = next(iter(entry), None) if isinstance(entry, dict) else entry
        if not isinstance(name, str):
            continue
        try:
            get_class_by_name(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ZooError(
                f"{source}: `{key}`={name!r} cannot be imported ({error}). Write the whole name of a class, such as "
                "stable_baselines3.common.callbacks.CheckpointCallback."
            ) from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
