"""Checks of an environment's spaces."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces

_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any], use_sde: bool = False) -> None:
    """
    Check that SB3's on-policy algorithms support an environment's spaces.

    :param observation_space: the environment's observation space
    :param action_space: the environment's action space
    :param use_sde: whether actions are explored by gSDE
    :raises ValueError: if NPG cannot act there
    """
    _check_action_space(action_space)
    if use_sde and not isinstance(action_space, spaces.Box):
        raise ValueError(
            f"`use_sde`={use_sde} needs continuous actions, and `env` has the action space {action_space}. "
            "Use use_sde=False."
        )
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    for part in parts:
        if not isinstance(part, _SPACES):
            raise ValueError(
                f"`env` has {part} in its observation space, which is not supported. NPG observes Box, Discrete, "
                "MultiDiscrete and MultiBinary spaces and a Dict of these: wrap yours in "
                "gymnasium.wrappers.FlattenObservation."
            )
        _check_numbers("observation", part)
        _check_flattenable(part)


def _check_flattenable(space: spaces.Space[Any]) -> None:
    """Refuse observations of a shape that SB3 cannot handle."""
    if isinstance(space, spaces.Box) and space.shape == ():
        raise ValueError(f"`env` observes {space}, a number without a dimension. Give it the shape (1,).")
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) > 1:
        raise ValueError(
            f"`env` has {space} in its observation space, whose dimensions are more than one, which is not "
            f"supported. Flatten it to a MultiDiscrete of {space.nvec.size} with a gymnasium.ObservationWrapper."
        )


def _check_action_space(space: spaces.Space[Any]) -> None:
    """Refuse an action space that SB3's on-policy algorithms do not support."""
    if not isinstance(space, _SPACES):
        raise ValueError(
            f"`env` has the action space {space}, which is not supported. NPG acts in Box, Discrete, "
            "MultiDiscrete and MultiBinary spaces: flatten yours with a gymnasium.ActionWrapper."
        )
    _check_numbers("action", space)
    shaped = isinstance(space, spaces.MultiBinary) and not isinstance(space.n, int)  # MultiBinary([n]) too, as in SB3
    if shaped or (isinstance(space, spaces.MultiDiscrete) and len(space.shape) > 1):
        size = math.prod(space.shape or ())
        flat = f"MultiBinary({size})" if isinstance(space, spaces.MultiBinary) else f"a MultiDiscrete of {size}"
        raise ValueError(
            f"`env` has the action space {space} of several dimensions, which is not supported. "
            f"Flatten it to {flat} with a gymnasium.ActionWrapper."
        )
    if isinstance(space, spaces.Box) and not space.is_bounded():
        raise ValueError(
            f"`env` has the action space {space}, whose bounds must be finite: SB3 clips actions to them. "
            "Give it finite bounds with a gymnasium.ActionWrapper."
        )


def _check_numbers(kind: str, space: spaces.Space[Any]) -> None:
    """Refuse an empty space, and discrete values that do not begin at 0 as SB3 assumes."""
    if 0 in (space.shape or ()):
        raise ValueError(
            f"`env` has the {kind} space {space} of shape {space.shape}, in which there are no numbers. Leave it out "
            f"of a Dict, or put one constant number in its place with a gymnasium.{kind.capitalize()}Wrapper."
        )
    if np.any(getattr(space, "start", 0)):
        raise ValueError(
            f"`env` has the {kind} space {space}, whose numbers do not begin at 0. SB3 takes them for 0, 1, 2, …: "
            f"shift yours with a gymnasium.{kind.capitalize()}Wrapper."
        )
