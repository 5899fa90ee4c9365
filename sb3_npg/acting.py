"""
A policy's forward pass while it collects: on finite observations, and without the objects SB3 makes for each step.

With few environments a step is mostly bookkeeping: preprocessing, modules that call modules, a distribution that
checks its arguments. SB3's own loop stays what collects; within it ``policy.forward`` is replaced by the same
operations on the same random numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_npg.networks import PolicyNetworks, read_networks
from sb3_npg.output_fisher import make_sampler
from sb3_npg.rollout import finite_observations


class FastForward:
    """
    What ``ActorCriticPolicy.forward`` returns, computed by a policy's networks.

    :param networks: the policy's
    """

    def __init__(self, networks: PolicyNetworks):
        self.networks = networks
        policy = networks.policy
        self._shape = (-1, *(policy.action_space.shape or ()))
        self._sampler = make_sampler(networks.metric, networks.noise)
        self._observes_vectors = networks.observes_vectors()

    def __call__(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Act.

        :param obs: of n environments
        :param deterministic: whether to take the most likely action and not to draw one
        :return: actions, values and log-probabilities
        """
        obs = finite_observations(obs)
        if deterministic:
            return ActorCriticPolicy.forward(self.networks.policy, obs, deterministic)  # type: ignore[arg-type]
        actor, critic = self.networks.actor, self.networks.critic.layers
        if self._observes_vectors and isinstance(obs, th.Tensor):
            features = critic_features = obs.float()
        else:
            features, critic_features = self.networks.inputs(obs)
        hidden = actor.hidden(features)
        actions, log_prob = self._sampler.draw(actor.head(hidden), hidden)
        return actions.reshape(self._shape), critic(critic_features), log_prob


@contextmanager
def acting(policy: ActorCriticPolicy, fast_paths: bool = True) -> Iterator[None]:
    """
    Let a policy act on zeros within the block where an observation is NaN or infinite.

    Without it torch's distributions end the run in the middle of a rollout. The buffer still receives what the
    environment sent, so the update sees it and is skipped. A policy of multilayer perceptrons acts by hand.

    :param policy: the policy that collects
    :param fast_paths: whether it may act by hand
    """
    networks = read_networks(policy) if fast_paths else None
    if networks is None or networks.extracts:
        handle = policy.register_forward_pre_hook(_replace_non_finite)
        try:
            yield
        finally:
            handle.remove()
        return
    policy.forward = FastForward(networks)  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(policy).pop("forward", None)


def _replace_non_finite(_policy: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    observations, *others = inputs
    return (finite_observations(observations), *others)
