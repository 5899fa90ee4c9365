"""Batches of observations, a tensor or a dict of tensors: taking rows, replacing NaNs, and making examples."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs

#: Number of observations that are sampled for a policy that has no action for zeros.
_N_DRAWN = 8


def count_rows(observations: PyTorchObs) -> int:
    """Return how many rows a batch of observations has."""
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


def take_rows(observations: PyTorchObs, rows: slice | th.Tensor) -> PyTorchObs:
    """Return some rows of a batch of observations, a tensor or a dict of tensors."""
    if isinstance(observations, dict):
        return {key: tensor[rows] for key, tensor in observations.items()}
    return observations[rows]


def finite_observations(observations: PyTorchObs) -> PyTorchObs:
    """Return observations with zeros for numbers that are not finite in single precision, which the policy uses."""
    if isinstance(observations, dict):
        return {key: _finite(tensor) for key, tensor in observations.items()}
    return _finite(observations)


def examples(space: spaces.Space[Any]) -> Iterator[Any]:
    """Yield observations to try a policy on: zeros, then samples of the space, if it has no action for zeros."""
    yield zero_observation(space)
    drawn = copy.deepcopy(space)  # so that the space's own generator is left alone
    drawn.seed(0)
    for _ in range(_N_DRAWN):
        yield drawn.sample()


def zero_observation(space: spaces.Space[Any]) -> Any:
    """Return an observation of zeros, or of the numbers nearest to zero within the bounds of a space."""
    if isinstance(space, spaces.Dict):
        return {key: zero_observation(part) for key, part in space.spaces.items()}
    zeros = np.zeros(space.shape or (), dtype=space.dtype)
    return np.clip(zeros, space.low, space.high) if isinstance(space, spaces.Box) else zeros


def filled(observations: PyTorchObs, example: Any) -> PyTorchObs:
    """Return a batch of the same size in which every row is ``example``."""
    if isinstance(observations, dict):
        return {key: _filled(tensor, example[key]) for key, tensor in observations.items()}
    return _filled(observations, example)


def uneven_observations(observations: PyTorchObs) -> PyTorchObs:
    """Return a batch of the same size without zeros: uneven floats, and integers of one."""
    if isinstance(observations, dict):
        return {key: _uneven(tensor) for key, tensor in observations.items()}
    return _uneven(observations)


def _filled(tensor: th.Tensor, observation: Any) -> th.Tensor:
    if not np.any(observation):
        return th.zeros_like(tensor)
    return th.as_tensor(observation, device=tensor.device).to(tensor.dtype).expand_as(tensor).clone()


def _uneven(tensor: th.Tensor) -> th.Tensor:
    if not tensor.is_floating_point():
        return th.ones_like(tensor)
    return th.arange(1, tensor.numel() + 1, device=tensor.device).view_as(tensor).cos().to(tensor)


def _finite(tensor: th.Tensor) -> th.Tensor:
    if tensor.dtype == th.float64:
        return th.where(tensor.abs() <= th.finfo(th.float32).max, tensor, 0.0)
    return th.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0) if tensor.is_floating_point() else tensor
