"""
A policy's forward pass while it collects, without the objects that SB3 makes for each step.

With few environments a step is mostly bookkeeping: preprocessing, modules that call modules, a distribution that
checks its arguments. SB3's own loop stays what collects; within it ``policy.forward`` is replaced by the same
operations on the same random numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_npg.networks import MlpNetworks, read_networks


class FastForward:
    """
    What ``ActorCriticPolicy.forward`` returns, computed by a policy's networks.

    :param networks: the policy's
    """

    def __init__(self, networks: MlpNetworks):
        self.networks = networks
        policy = networks.policy
        self._shape = (-1, *(policy.action_space.shape or ()))
        self._observes_vectors = networks.observes_vectors()

    def __call__(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Act.

        :param obs: of n environments
        :param deterministic: whether to take the most likely action and not to draw one
        :return: actions, values and log-probabilities
        """
        if deterministic:
            return ActorCriticPolicy.forward(self.networks.policy, obs, deterministic)  # type: ignore[arg-type]
        actor, critic, metric, noise = self.networks[1:]
        if self._observes_vectors and isinstance(obs, th.Tensor):
            features = critic_features = obs.float()
        else:
            features, critic_features = self.networks.features(obs)
        hidden = actor.hidden(features)
        outputs, drawn = actor.head(hidden), None
        if noise is not None:
            outputs, drawn = th.cat([outputs, noise.log_std(hidden)], dim=1), noise.draw(hidden)
        actions = metric.sample(outputs, drawn)
        log_prob = metric.log_prob(outputs, actions)
        return actions.reshape(self._shape), critic(critic_features), log_prob


@contextmanager
def acting_fast(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Let a policy of multilayer perceptrons act by hand within the block; leave any other as it is.

    :param policy: SB3 actor-critic policy
    """
    networks = read_networks(policy)
    if networks is None:
        yield
        return
    policy.forward = FastForward(networks)  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(policy).pop("forward", None)
