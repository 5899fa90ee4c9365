"""Reading a rollout whatever the environment sends."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_npg.numerics import NumericalFailure


class Samples(NamedTuple):
    """
    What an update reads of a rollout; a custom buffer may return more.

    :param observations: n rows, a tensor or a dict of tensors
    :param actions: shape (n, action_dim), or (n,) for a Discrete space
    :param advantages: shape (n,)
    :param returns: shape (n,)
    """

    observations: PyTorchObs
    actions: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor


def read_rollout(buffer: RolloutBuffer, action_space: spaces.Space[Any]) -> Samples:
    """
    Return all rows of a rollout at once, with actions in the type that the distribution needs.

    :param buffer: a full rollout buffer
    :param action_space: the environment's
    :return: the samples; the caller must check them for NaNs
    """
    found = next(iter(buffer.get(batch_size=None)))
    # SB3 stores actions as float, in a column.
    actions = found.actions.long().flatten() if isinstance(action_space, spaces.Discrete) else found.actions
    return Samples(found.observations, actions, found.advantages, found.returns)


def require_finite_rollout(buffer: RolloutBuffer) -> None:
    """
    Stop an update whose data holds a NaN or an infinity, and name the source. Reads only the host's memory.

    :param buffer: a full rollout buffer
    :raises NumericalFailure: naming observations, rewards, actions or advantages as the source
    """
    observations = buffer.observations
    if not _all_finite(*(observations.values() if isinstance(observations, dict) else [observations])):
        raise NumericalFailure("the environment's observations hold a NaN or an infinity")
    if not _all_finite(buffer.rewards):
        raise NumericalFailure("the environment's rewards or an episode's last observation hold a NaN or an infinity")
    if not _all_finite(buffer.actions, buffer.log_probs):
        raise NumericalFailure("the actions' log-probabilities hold a NaN or an infinity")
    if not _all_finite(buffer.advantages, buffer.returns):
        raise NumericalFailure("the advantages hold a NaN or an infinity, from the critic or the last observation")


def _all_finite(*stored: Any) -> bool:
    """Tell whether nothing holds a NaN or an infinity."""
    return all(map(_is_finite, stored))


def _is_finite(stored: Any) -> bool:
    if isinstance(stored, th.Tensor):  # in a custom buffer, which may also hold lists
        return bool(stored.isfinite().all())
    array = np.asarray(stored)
    return not np.issubdtype(array.dtype, np.floating) or bool(np.isfinite(array).all())  # integers are finite


def normalized(advantages: th.Tensor) -> th.Tensor:
    """Return the advantages at zero mean and unit standard deviation; zeros if they are all equal up to rounding."""
    centred, spread = advantages - advantages.mean(), advantages.std()
    rounding = 8.0 * th.finfo(advantages.dtype).eps * advantages.abs().max()
    return th.where(spread > rounding, centred / (spread + 1e-8), 0.0)
