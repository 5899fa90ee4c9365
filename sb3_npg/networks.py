"""Recognises an SB3 policy whose actor and critic are multilayer perceptrons that can be computed by hand."""

from typing import NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_npg.fisher import Mlp, is_plain
from sb3_npg.output_fisher import ExplorationNoise, OutputFisher, make_noise, plain_output_fisher

#: What a policy class may not do in a way of its own.
_COMPUTING = (
    "forward", "extract_features", "get_distribution", "_get_action_dist_from_latent", "predict_values",
    "evaluate_actions",
)  # fmt: skip
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class MlpNetworks(NamedTuple):
    """
    What an SB3 policy computes: features without trained parameters, and two networks on them.

    :param policy: the policy, which extracts the features
    :param actor: from the features to the mean or the logits of the actions
    :param critic: from the features to the value
    :param metric: the closed forms of the action distribution
    :param noise: what sets the standard deviation of continuous actions
    """

    policy: ActorCriticPolicy
    actor: Mlp
    critic: Mlp
    metric: OutputFisher
    noise: ExplorationNoise | None

    def actor_features(self, observations: PyTorchObs) -> th.Tensor:
        """Return what the actor sees of observations, shape (n, d)."""
        return BasePolicy.extract_features(self.policy, observations, self.policy.pi_features_extractor)

    def critic_features(self, observations: PyTorchObs) -> th.Tensor:
        """Return what the critic sees of observations, shape (n, d)."""
        return BasePolicy.extract_features(self.policy, observations, self.policy.vf_features_extractor)

    def features(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Return what actor and critic see of observations, shapes (n, d)."""
        features = self.actor_features(observations)
        return features, features if self.policy.share_features_extractor else self.critic_features(observations)

    def observes_vectors(self) -> bool:
        """Tell whether the features of actor and critic are the observations themselves, as floats."""
        space = self.policy.observation_space
        extractors = (self.policy.pi_features_extractor, self.policy.vf_features_extractor)
        return (
            isinstance(space, spaces.Box)
            and len(space.shape) == 1
            and all(
                type(extractor) is FlattenExtractor and is_plain(extractor) and is_plain(extractor.flatten)
                for extractor in extractors
            )
        )

    def acting_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters that the action distribution depends on, in the policy's order."""
        noise = [] if self.noise is None else [self.noise.parameter]
        mine = {id(parameter) for parameter in (*self.actor.parameters(), *noise)}
        return [p for p in self.policy.parameters() if id(p) in mine and p.requires_grad]

    def criticising_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters that the value depends on, in the policy's order."""
        mine = {id(parameter) for parameter in self.critic.parameters()}
        return [p for p in self.policy.parameters() if id(p) in mine]


def read_networks(policy: ActorCriticPolicy) -> MlpNetworks | None:
    """
    Read a policy's networks.

    :param policy: SB3 actor-critic policy
    :return: its networks; None if it is made of anything else, or computes in a way of its own
    """
    if not _computes_as_sb3(policy) or not all(
        _is_constant(extractor) for extractor in (policy.pi_features_extractor, policy.vf_features_extractor)
    ):
        return None
    trunk = policy.mlp_extractor
    actor = Mlp.read(policy, [trunk.policy_net, policy.action_net])
    critic = Mlp.read(policy, [trunk.value_net, policy.value_net])
    metric = plain_output_fisher(policy.action_dist)
    if actor is None or critic is None or metric is None:
        return None
    if {id(p) for p in actor.parameters()} & {id(p) for p in critic.parameters()}:
        return None
    return MlpNetworks(policy, actor, critic, metric, make_noise(policy.action_dist, getattr(policy, "log_std", None)))


def _is_constant(extractor: nn.Module) -> bool:
    """Tell whether features stay the same while the policy learns: nothing trained, averaged or left to chance."""
    return not (
        any(parameter.requires_grad for parameter in extractor.parameters())
        or any(True for _ in extractor.buffers())
        or any(isinstance(module, _DROPOUT) for module in extractor.modules())
    )


def _computes_as_sb3(policy: ActorCriticPolicy) -> bool:
    """Tell whether a policy's class, and the object itself, leave SB3's computation as it is."""
    trunk = policy.mlp_extractor
    return (
        all(getattr(type(policy), name) is getattr(ActorCriticPolicy, name) for name in _COMPUTING)
        and not any(name in vars(policy) for name in _COMPUTING)
        and type(trunk) is MlpExtractor
        and is_plain(trunk)
        and not {"forward_actor", "forward_critic"} & set(vars(trunk))
    )
