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

from sb3_npg.networks import PolicyNetworks, preparation, read_networks
from sb3_npg.output_fisher import make_sampler
from sb3_npg.rollout import finite_observations


class FastForward:
    """
    What ``ActorCriticPolicy.forward`` returns, computed by a policy's networks.

    :param networks: the policy's
    :param n_shared_layers: of the actor, which the critic begins after
    """

    def __init__(self, networks: PolicyNetworks, n_shared_layers: int):
        self.networks = networks
        self._n_shared_layers = n_shared_layers
        self._prepare = preparation(networks.policy)
        policy = networks.policy
        self._shape = (-1, *(policy.action_space.shape or ()))
        self._sampler = make_sampler(networks.metric, networks.noise)
        self._observes_vectors = networks.observes_vectors()

    @classmethod
    def of(cls, policy: ActorCriticPolicy) -> "FastForward | None":
        """
        Make one for a policy.

        :param policy: SB3 actor-critic policy
        :return: None if the policy is not made of networks, or is not known by its networks
        """
        networks = read_networks(policy)
        n_shared_layers = None if networks is None else networks.n_shared_layers()
        return None if networks is None or n_shared_layers is None else cls(networks, n_shared_layers)

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
        hidden, values = self._seen(obs)
        actions, log_prob = self._sampler.draw(self.networks.actor.head(hidden), hidden)
        return actions.reshape(self._shape), values, log_prob

    def _seen(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Return what goes into the actor's last layer, and values."""
        actor, critic = self.networks.actor, self.networks.critic
        if self.networks.extracts and isinstance(obs, th.Tensor):
            return self._extracted(obs)
        if self._observes_vectors and isinstance(obs, th.Tensor):
            inputs = critic_inputs = obs.float()
        else:
            inputs, critic_inputs = self.networks.inputs(obs)
        return actor.hidden(inputs), critic.layers(critic_inputs)

    def _extracted(self, obs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Do the same through an extractor that learns; what actor and critic begin with is computed once."""
        actor, critic = self.networks.actor, self.networks.critic
        prepared = self._prepare(obs)
        features = actor.through(prepared, slice(self._n_shared_layers))
        hidden = actor.through(features, slice(self._n_shared_layers, -1))
        if critic.shares:
            values = critic.layers(features)
        elif critic.layers.prepare is not None:
            values = critic.layers.through(prepared, slice(None))
        else:
            values = critic.layers(critic.inputs(obs))
        return hidden, values


@contextmanager
def acting(policy: ActorCriticPolicy, fast_paths: bool = True) -> Iterator[None]:
    """
    Let a policy act on zeros within the block where an observation is NaN or infinite.

    Without it torch's distributions end the run in the middle of a rollout. The buffer still receives what the
    environment sent, so the update sees it and is skipped. A policy of feed-forward networks acts by hand.

    :param policy: the policy that collects
    :param fast_paths: whether it may act by hand
    """
    forward = FastForward.of(policy) if fast_paths else None
    if forward is None:
        handle = policy.register_forward_pre_hook(_replace_non_finite)
        try:
            yield
        finally:
            handle.remove()
        return
    policy.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(policy).pop("forward", None)


def _replace_non_finite(_policy: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    observations, *others = inputs
    return (finite_observations(observations), *others)
