"""The noise that a Gaussian policy begins with."""

import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn


def initial_log_std(n_dimensions: int) -> float:
    """
    Return log(2/d), at most SB3's 0, with which the noise ε = a − μ ~ N(0, σ²I) has the same E‖ε‖₁ whatever d ≥ 2.

    One σ for all tasks is too much where many joints move at once, and too little where few do.

    :param n_dimensions: d, of the action
    """
    return min(0.0, math.log(2.0 / n_dimensions))


def set_initial_noise(policy: ActorCriticPolicy, policy_kwargs: dict[str, Any]) -> None:
    """
    Let a new Gaussian policy begin with σ = min(1, 2/d), unless the user or the policy's class has chosen a σ ≠ 1.

    gSDE keeps SB3's start: its log σ is of weights on features, not of actions.

    :param policy: as it was constructed
    :param policy_kwargs: that it was constructed with
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
