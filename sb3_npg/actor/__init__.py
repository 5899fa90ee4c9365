"""A policy's actor on the rows of a rollout: of any policy through autograd, or of feed-forward networks by hand."""

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_npg.actor.base import ActingRows, Actor
from sb3_npg.actor.feed_forward import FeedForwardActor
from sb3_npg.actor.policy import PolicyActor, actor_parameters, known_observation, require_products
from sb3_npg.networks import PolicyNetworks
from sb3_npg.parameters import ParameterVector

__all__ = [
    "ActingRows",
    "FeedForwardActor",
    "PolicyActor",
    "actor_parameters",
    "known_observation",
    "make_actor",
    "require_products",
]


def make_actor(
    policy: ActorCriticPolicy,
    observations: PyTorchObs,
    actions: th.Tensor,
    parameters: ParameterVector,
    networks: PolicyNetworks | None,
) -> Actor:
    """
    Choose how a policy's action distribution is computed on the rows of a rollout.

    :param policy: SB3 actor-critic policy
    :param observations: what the rollout buffer returns, n rows
    :param actions: shape (n, action_dim), or (n,) for a Discrete space
    :param parameters: θ, the parameters that act
    :param networks: the policy's networks, if they are to be computed by hand; None to use autograd
    :return: an actor
    :raises ValueError: if the policy's distribution is of a kind whose Fisher is not known
    """
    if networks is None:
        return PolicyActor(policy, observations, actions, parameters)
    with th.no_grad():
        inputs = networks.actor_inputs(observations)
    return FeedForwardActor(networks, inputs, actions, parameters)
