"""Recognises an SB3 policy whose actor and critic are feed-forward networks that can be computed by hand."""

from functools import partial
from typing import NamedTuple, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_npg.fisher import FeedForward, is_plain, split_rows
from sb3_npg.output_fisher import ExplorationNoise, OutputFisher, make_noise, plain_output_fisher

#: What a policy class may not do in a way of its own.
_COMPUTING = (
    "forward", "extract_features", "get_distribution", "_get_action_dist_from_latent", "predict_values",
    "evaluate_actions",
)  # fmt: skip
#: Rows whose features are extracted at once.
_ROWS_AT_ONCE = 512
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class PolicyNetworks(NamedTuple):
    """
    What an SB3 policy computes: two networks, on features that stay the same while the network learns.

    A features extractor that learns is the first part of the actor, or of both. One that both share is the actor's, and
    what it extracts does not change while the critic learns.

    :param policy: the policy
    :param actor: from what it is applied to to the mean or the logits of the actions
    :param critic: from what it is applied to to the value
    :param metric: the closed forms of the action distribution
    :param noise: what sets the standard deviation of continuous actions
    """

    policy: ActorCriticPolicy
    actor: FeedForward
    critic: FeedForward
    metric: OutputFisher
    noise: ExplorationNoise | None

    @property
    def extracts(self) -> bool:
        """Whether the actor begins with a features extractor that learns, and is applied to observations."""
        return self.actor.prepare is not None

    def actor_inputs(self, observations: PyTorchObs) -> th.Tensor:
        """Return what the actor is applied to, n rows."""
        if self.extracts and isinstance(observations, th.Tensor):
            return observations
        return BasePolicy.extract_features(self.policy, observations, self.policy.pi_features_extractor)

    @th.no_grad()
    def critic_inputs(self, observations: PyTorchObs) -> th.Tensor:
        """Return what the critic is applied to, n rows."""
        if self.critic.prepare is not None and isinstance(observations, th.Tensor):
            return observations
        extractor = self.policy.vf_features_extractor
        if not self.extracts or not isinstance(observations, th.Tensor):
            return BasePolicy.extract_features(self.policy, observations, extractor)
        parts = [observations[rows] for rows in split_rows(len(observations), _ROWS_AT_ONCE)]
        return th.cat([BasePolicy.extract_features(self.policy, part, extractor) for part in parts])

    def inputs(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Return what actor and critic are applied to, n rows."""
        inputs = self.actor_inputs(observations)
        same = self.policy.share_features_extractor and not self.extracts
        return inputs, inputs if same else self.critic_inputs(observations)

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


def read_networks(policy: ActorCriticPolicy) -> PolicyNetworks | None:
    """
    Read a policy's networks.

    :param policy: SB3 actor-critic policy
    :return: its networks; None if it is made of anything else, or computes in a way of its own
    """
    metric = plain_output_fisher(policy.action_dist)
    fronts = [_front(extractor) for extractor in (policy.pi_features_extractor, policy.vf_features_extractor)]
    if metric is None or None in fronts or not _computes_as_sb3(policy):
        return None
    before_actor, before_critic = fronts[0] or [], [] if policy.share_features_extractor else fronts[1] or []
    trunk = policy.mlp_extractor
    actor = _read(policy, [*before_actor, trunk.policy_net, policy.action_net], bool(before_actor))
    critic = _read(policy, [*before_critic, trunk.value_net, policy.value_net], bool(before_critic))
    if actor is None or critic is None or {id(p) for p in actor.parameters()} & {id(p) for p in critic.parameters()}:
        return None
    noise = make_noise(policy.action_dist, getattr(policy, "log_std", None))
    return PolicyNetworks(policy, actor, critic, metric, noise)


def _front(extractor: BaseFeaturesExtractor) -> list[nn.Module] | None:
    """Return what a features extractor puts before a network: nothing if it is constant; None if it is not known."""
    if _is_constant(extractor):
        return []
    return [extractor.cnn, extractor.linear] if type(extractor) is NatureCNN and is_plain(extractor) else None


def _read(policy: ActorCriticPolicy, modules: list[nn.Module], observes: bool) -> FeedForward | None:
    """Read a network, which prepares what it observes as SB3 does for an extractor."""
    nothing = cast(BaseFeaturesExtractor, nn.Identity())
    prepare = partial(BasePolicy.extract_features, policy, features_extractor=nothing) if observes else None
    return FeedForward.read(policy, modules, prepare)


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
