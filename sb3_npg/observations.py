"""Batches of observations, a tensor or a dict of tensors: some of their rows, and what stands for a NaN in them."""

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs


def count_rows(observations: PyTorchObs) -> int:
    """Return how many rows a batch of observations has."""
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


def take_rows(observations: PyTorchObs, rows: slice | th.Tensor) -> PyTorchObs:
    """Return some rows of a batch of observations, a tensor or a dict of tensors."""
    if isinstance(observations, dict):
        return {key: tensor[rows] for key, tensor in observations.items()}
    return observations[rows]


def finite_observations(observations: PyTorchObs) -> PyTorchObs:
    """Return observations with zeros where they are not finite in single precision, as the policy sees them."""
    if isinstance(observations, dict):
        return {key: _finite(tensor) for key, tensor in observations.items()}
    return _finite(observations)


def zero_observations(observations: PyTorchObs) -> PyTorchObs:
    """Return as many observations of zeros."""
    if isinstance(observations, dict):
        return {key: th.zeros_like(tensor) for key, tensor in observations.items()}
    return th.zeros_like(observations)


def uneven_observations(observations: PyTorchObs) -> PyTorchObs:
    """Return as many observations that are no zeros."""
    if isinstance(observations, dict):
        return {key: _uneven(tensor) for key, tensor in observations.items()}
    return _uneven(observations)


def _uneven(tensor: th.Tensor) -> th.Tensor:
    if not tensor.is_floating_point():
        return th.ones_like(tensor)
    return th.arange(1, tensor.numel() + 1, device=tensor.device).view_as(tensor).cos().to(tensor)


def _finite(tensor: th.Tensor) -> th.Tensor:
    if tensor.dtype == th.float64:
        return th.where(tensor.abs() <= th.finfo(th.float32).max, tensor, 0.0)
    return th.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0) if tensor.is_floating_point() else tensor
