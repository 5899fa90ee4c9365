"""Reading a rollout whatever the environment sends."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

from sb3_npg.numerics import NumericalFailure

Samples = RolloutBufferSamples | DictRolloutBufferSamples


def read_rollout(buffer: RolloutBuffer, action_space: spaces.Space[Any]) -> Samples:
    """
    Return all rows of a rollout at once, actions in the type that the distribution wants.

    :param buffer: a full rollout buffer
    :param action_space: the environment's
    :return: the samples; a NaN in them is the caller's to find
    """
    samples: Samples = next(iter(buffer.get(batch_size=None)))
    if isinstance(action_space, spaces.Discrete):
        # SB3 stores actions as float, in a column.
        return samples._replace(actions=samples.actions.long().flatten())
    return samples


def require_finite_rollout(buffer: RolloutBuffer) -> None:
    """
    Stop an update whose data holds a NaN or an infinity, and say whose fault it is. Looks at the host's memory alone.

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


def _all_finite(*arrays: np.ndarray[Any, Any]) -> bool:
    """Tell whether no array holds a NaN or an infinity. Integers always do well."""
    return all(np.isfinite(array).all() for array in arrays if np.issubdtype(array.dtype, np.floating))


def normalized(advantages: th.Tensor) -> th.Tensor:
    """Return the advantages at zero mean and unit standard deviation; zeros if they are all equal but for rounding."""
    centred, spread = advantages - advantages.mean(), advantages.std()
    rounding = 8.0 * th.finfo(advantages.dtype).eps * advantages.abs().max()
    return th.where(spread > rounding, centred / (spread + 1e-8), 0.0)
