"""The initial exploration noise of a Gaussian policy."""

import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn


def initial_log_std(n_dimensions: int) -> float:
    """
    Return log(2/d), but no more than SB3's 0: the noise ε = a − μ ~ N(0, σ²I) then has the same E‖ε‖₁ for all d ≥ 2.

    A single σ for all tasks would be too much if many joints move at once, and too little if few do.

    :param n_dimensions: d, number of action dimensions
    """
    return min(0.0, math.log(2.0 / n_dimensions))


def set_initial_noise(policy: ActorCriticPolicy, policy_kwargs: dict[str, Any]) -> None:
    """
    Let a new Gaussian policy begin with σ = min(1, 2/d), unless the user passed a σ or the policy's class has a σ ≠ 1.

    gSDE keeps SB3's initial value: its log σ is that of weights on features, not of actions.

    :param policy: as it was constructed
    :param policy_kwargs: the arguments that it was constructed with
    """
    if "log_std_init" in policy_kwargs or getattr(policy, "log_std_init", None) != 0.0:
        return
    log_std = getattr(policy, "log_std", None)
    if not isinstance(policy.action_space, spaces.Box) or not isinstance(log_std, nn.Parameter) or policy.use_sde:
        return
    if not log_std.any():
        policy.log_std_init = initial_log_std(log_std.numel())
        with th.no_grad():
            log_std.fill_(policy.log_std_init)
