"""A step of a rollout with a policy of feed-forward networks, computed by hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_npg.networks import PolicyNetworks, preparation, read_networks
from sb3_npg.observations import finite_observations
from sb3_npg.output_fisher import NoiseSampler, make_sampler

#: Actions, values and log-probabilities.
Acted = tuple[th.Tensor, th.Tensor, th.Tensor]


class FastForward:
    """
    ``ActorCriticPolicy.forward``, computed by hand from a policy's networks. Outputs that are not finite become zero.

    :param networks: the policy's networks
    :param n_shared_layers: number of the actor's first layers that the critic shares
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
        Make the fast forward pass of a policy, if it has one.

        :param policy: SB3 actor-critic policy
        :return: None if the policy is not made of such networks, or if the features extractor that they share does not
            end where one of the actor's layers does
        """
        networks = read_networks(policy)
        n_shared_layers = None if networks is None else networks.n_shared_layers()
        return None if networks is None or n_shared_layers is None else cls(networks, n_shared_layers)

    def __call__(self, obs: PyTorchObs, deterministic: bool = False) -> Acted:
        """
        Choose actions.

        :param obs: observations of n environments
        :param deterministic: whether to take the most likely action instead of drawing one
        :return: actions, values and log-probabilities
        """
        obs = finite_observations(obs)
        if deterministic:
            return ActorCriticPolicy.forward(self.networks.policy, obs, deterministic)  # type: ignore[arg-type]
        return self._acted(obs, self._sampler.draw)

    def __reduce__(self) -> tuple[Any, ...]:
        """Give a copy of the policy SB3's own forward pass."""
        return partial, (ActorCriticPolicy.forward, self.networks.policy)

    def is_recordable(self) -> bool:
        """Tell whether :meth:`act` does everything that a step needs, and never waits for the device."""
        critic = self.networks.critic
        extracts = self.networks.extracts and (critic.shares or critic.extracts)
        is_known = isinstance(self.networks.policy.observation_space, spaces.Box) and (
            extracts or self._observes_vectors
        )
        return is_known and isinstance(self._sampler, NoiseSampler)

    def act(self, obs: th.Tensor, noise: th.Tensor) -> Acted:
        """
        Choose actions from random numbers drawn beforehand; see :meth:`is_recordable`.

        :param obs: observations of n environments
        :param noise: made by :meth:`noise_for` and filled by :meth:`draw`
        :return: actions, values and log-probabilities
        """
        return self._acted(finite_observations(obs), lambda outputs, _: self._noise_sampler.actions(outputs, noise))

    def noise_for(self, n_envs: int) -> th.Tensor:
        """Return a buffer for the random numbers of a step, shape (n, k)."""
        weight = self.networks.actor.layers[-1].linear.weight
        return weight.new_ones(n_envs, len(weight))

    def draw(self, noise: th.Tensor) -> None:
        """Fill such a buffer with the random numbers that :meth:`__call__` would draw."""
        self._noise_sampler.fill(noise)

    def signature(self) -> tuple[object, ...]:
        """Return the modules and tensor addresses that determine what :meth:`act` does, without the observations'."""
        policy = self.networks.policy
        layers = [*self.networks.actor.layers, *self.networks.critic.network.layers]
        noise = [] if self.networks.noise is None else [self.networks.noise.parameter]
        tensors = [*(tensor for layer in layers for tensor in layer.linear.parameters()), *noise]
        modules = [repr(module) for layer in layers for module in (layer.linear, layer.activation)]
        return (*(tensor.data_ptr() for tensor in tensors), *modules, policy.normalize_images)

    @property
    def _noise_sampler(self) -> NoiseSampler:
        if not isinstance(self._sampler, NoiseSampler):
            raise TypeError(f"{type(self._sampler).__name__} does not draw its random numbers first")
        return self._sampler

    def _acted(self, obs: PyTorchObs, draw: Callable[[th.Tensor, th.Tensor], tuple[th.Tensor, th.Tensor]]) -> Acted:
        hidden, values = self._hidden_and_values(obs)
        outputs = th.nan_to_num(self.networks.actor.head(hidden), nan=0.0, posinf=0.0, neginf=0.0)
        actions, log_prob = draw(outputs, hidden)
        return actions.reshape(self._shape), values, log_prob

    def _hidden_and_values(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Return the inputs of the actor's last layer, and the values."""
        actor, critic = self.networks.actor, self.networks.critic
        if self.networks.extracts and isinstance(obs, th.Tensor):
            return self._extracted(obs)
        if self._observes_vectors and isinstance(obs, th.Tensor):
            inputs = critic_inputs = obs.float()
        else:
            inputs, critic_inputs = self.networks.inputs(obs)
        return actor.hidden(inputs), critic.network(critic_inputs)

    def _extracted(self, obs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Do the same through a features extractor that is trained; what actor and critic share is computed once."""
        actor, critic = self.networks.actor, self.networks.critic
        prepared = self._prepare(obs)
        features = actor.through(prepared, slice(self._n_shared_layers))
        hidden = actor.through(features, slice(self._n_shared_layers, -1))
        if critic.shares:
            values = critic.network(features)
        elif critic.extracts:
            values = critic.network.through(prepared, slice(None))
        else:
            values = critic.network(critic.inputs(obs))
        return hidden, values
