"""Recognises an SB3 policy whose actor and critic are feed-forward networks that can be computed by hand."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import get_obs_shape, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_npg.fisher import FeedForward, is_hooked, is_plain, sequence_of, split_rows
from sb3_npg.observations import count_rows, take_rows
from sb3_npg.output_fisher import (
    ExplorationNoise,
    GaussianFisher,
    OutputFisher,
    StateDependentNoise,
    make_noise,
    plain_output_fisher,
)
from sb3_npg.parameters import is_trained

#: Methods that a policy must not override to be computed by hand.
_COMPUTING = (
    "forward", "extract_features", "get_distribution", "_get_action_dist_from_latent", "predict_values",
    "evaluate_actions",
)  # fmt: skip
#: Rows whose features are extracted at once.
_ROWS_AT_ONCE = 512
#: Modules that are random in training mode.
_RANDOM = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU
)  # fmt: skip


class CriticNetwork(NamedTuple):
    """
    A policy's value function as a network whose inputs do not change while it learns.

    A trained features extractor that only the critic uses is the first part of the network. A shared one belongs to the
    actor, and its features do not change while the critic learns.

    :param policy: the policy, whose extractor is in evaluation mode
    :param network: maps these inputs to the value
    :param shares: whether the inputs are features that the actor learns
    """

    policy: ActorCriticPolicy
    network: FeedForward
    shares: bool

    @property
    def extracts(self) -> bool:
        """Whether it begins with a trained features extractor, so that its inputs are observations."""
        return self.network.prepare is not None

    @th.no_grad()
    def inputs(self, observations: PyTorchObs) -> th.Tensor:
        """Return the network's inputs, n rows."""
        if self.extracts and isinstance(observations, th.Tensor):
            return observations
        return _features(self.policy, observations, self.policy.vf_features_extractor)


def _features(policy: ActorCriticPolicy, observations: PyTorchObs, extractor: BaseFeaturesExtractor) -> th.Tensor:
    """Return an extractor's features of all rows, computed a few rows at a time."""
    pieces = split_rows(count_rows(observations), _ROWS_AT_ONCE)
    found = [BasePolicy.extract_features(policy, take_rows(observations, rows), extractor) for rows in pieces]
    return found[0] if len(found) == 1 else th.cat(found)


class PolicyNetworks(NamedTuple):
    """
    An SB3 policy as two networks.

    :param policy: the policy
    :param actor: maps constant features, or observations, to the mean or the logits of the actions
    :param critic: computes the value
    :param metric: the closed forms of the action distribution
    :param noise: sets the standard deviation of continuous actions; None for other actions
    :param front: the modules of a trained features extractor that the actor begins with; empty if there is none
    """

    policy: ActorCriticPolicy
    actor: FeedForward
    critic: CriticNetwork
    metric: OutputFisher
    noise: ExplorationNoise | None
    front: list[nn.Module]

    @property
    def extracts(self) -> bool:
        """Whether the actor begins with a trained features extractor, so that its inputs are observations."""
        return self.actor.prepare is not None

    def actor_inputs(self, observations: PyTorchObs) -> th.Tensor:
        """Return the actor's inputs, n rows."""
        if self.extracts and isinstance(observations, th.Tensor):
            return observations
        return _features(self.policy, observations, self.policy.pi_features_extractor)

    def inputs(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Return the inputs of actor and critic, n rows."""
        inputs = self.actor_inputs(observations)
        same = self.policy.share_features_extractor and not self.extracts
        return inputs, inputs if same else self.critic.inputs(observations)

    def n_shared_layers(self) -> int | None:
        """
        Return how many of the actor's layers form the features extractor that it shares with the critic.

        None if the extractor does not end where one of the actor's layers does.
        """
        if not (self.extracts and self.critic.shares):
            return 0
        alone = _read(self.policy, self.front, observes=True)
        n = 0 if alone is None else len(alone.layers)
        return n if alone is not None and alone.layers == self.actor.layers[:n] else None

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

    def actor_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters that the action distribution depends on, in the policy's order."""
        noise = [] if self.noise is None else [self.noise.parameter]
        mine = {id(parameter) for parameter in (*self.actor.parameters(), *noise)}
        return [p for p in self.policy.parameters() if id(p) in mine and is_trained(p)]

    def critic_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters that the value depends on, in the policy's order."""
        mine = {id(parameter) for parameter in self.critic.network.parameters()}
        return [p for p in self.policy.parameters() if id(p) in mine and is_trained(p)]


def read_networks(policy: ActorCriticPolicy) -> PolicyNetworks | None:
    """
    Read a policy's networks.

    :param policy: SB3 actor-critic policy
    :return: its networks; None if it is made of anything else, or computes in a way of its own
    """
    critic = read_critic(policy)
    if critic is None:
        return None
    metric = plain_output_fisher(policy.action_dist)
    noise = make_noise(policy.action_dist, getattr(policy, "log_std", None))
    front = _front(policy, policy.pi_features_extractor)
    if metric is None or front is None or (isinstance(metric, GaussianFisher) and noise is None):
        return None
    actor = _read(policy, [*front, policy.mlp_extractor.policy_net, policy.action_net], observes=bool(front))
    if actor is None or (noise is not None and is_hooked(noise.parameter)):
        return None
    if isinstance(noise, StateDependentNoise) and _first_leaf(policy.action_net) is not actor.layers[-1].linear:
        return None  # the noise's features are what goes into `action_net`
    noises = [] if noise is None else [noise.parameter]
    owned = [id(parameter) for parameter in (*actor.parameters(), *critic.network.parameters(), *noises)]
    if len(set(owned)) < len(owned):  # parameters are shared
        return None
    return PolicyNetworks(policy, actor, critic, metric, noise, front)


def read_critic(policy: ActorCriticPolicy) -> CriticNetwork | None:
    """
    Read a policy's critic, which may share features of any kind with the actor.

    :param policy: SB3 actor-critic policy
    :return: its network; None if it is made of anything else, or computes in a way of its own
    """
    if not _computes_as_sb3(policy):
        return None
    extractor, shared = policy.vf_features_extractor, policy.share_features_extractor
    front = [] if shared else _front(policy, extractor)
    if front is None:
        return None
    network = _read(policy, [*front, policy.mlp_extractor.value_net, policy.value_net], observes=bool(front))
    return None if network is None else CriticNetwork(policy, network, shares=shared and not _is_constant(extractor))


def preparation(policy: ActorCriticPolicy) -> Callable[[th.Tensor], th.Tensor]:
    """Return the function that SB3 applies to observations before an extractor, looked up in advance for Box spaces."""
    space = policy.observation_space
    if not isinstance(space, spaces.Box):
        return partial(_prepare, policy)
    return _as_fractions if policy.normalize_images and is_image_space(space) else th.Tensor.float


def _front(policy: ActorCriticPolicy, extractor: BaseFeaturesExtractor) -> list[nn.Module] | None:
    """Return a features extractor's modules: empty if its features are constant; None if it is not a known sequence."""
    if _is_constant(extractor):
        return []
    if type(extractor) is NatureCNN:
        return [extractor.cnn, extractor.linear] if is_plain(extractor) else None
    if isinstance(policy.observation_space, spaces.Dict):
        return None
    shape, like = get_obs_shape(policy.observation_space), next(policy.parameters())
    return sequence_of(extractor, lambda: _prepare(policy, th.zeros(1, *shape, device=like.device)).to(like.dtype))


def _as_fractions(images: th.Tensor) -> th.Tensor:
    return images.float() / 255.0


def _prepare(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor:
    """Return observations as SB3 passes them to an extractor."""
    return BasePolicy.extract_features(policy, observations, cast(BaseFeaturesExtractor, nn.Identity()))


def _read(policy: ActorCriticPolicy, modules: list[nn.Module], observes: bool) -> FeedForward | None:
    """Read a network; if it observes, it prepares its observations as SB3 does for an extractor."""
    return FeedForward.read(policy, modules, partial(_prepare, policy) if observes else None)


def _is_constant(extractor: nn.Module) -> bool:
    """Tell whether features stay the same while the policy learns: nothing is trained, buffered or random."""
    return not (
        any(parameter.requires_grad for parameter in extractor.parameters())
        or any(True for _ in extractor.buffers())
        or any(isinstance(module, _RANDOM) for module in extractor.modules())
    )


def _function_of(policy: ActorCriticPolicy, name: str) -> object:
    """Return the function behind a method; a policy copied during a rollout has SB3's ``forward`` as an attribute."""
    method = getattr(policy, name)
    if isinstance(method, partial):
        return None if method.keywords or [*map(id, method.args)] != [id(policy)] else method.func
    return getattr(method, "__func__", None) if getattr(method, "__self__", None) is policy else None


def _first_leaf(module: nn.Module) -> nn.Module | None:
    """Return the first submodule that has none itself and is not an ``Identity``."""
    leaves = (part for part in module.modules() if not any(True for _ in part.children()))
    return next((leaf for leaf in leaves if type(leaf) is not nn.Identity), None)


def _shares_as_sb3(policy: ActorCriticPolicy) -> bool:
    """Tell whether the three attributes for a shared features extractor are the same object."""
    pi, vf = policy.pi_features_extractor, policy.vf_features_extractor
    return not policy.share_features_extractor or policy.features_extractor is pi is vf


def _computes_as_sb3(policy: ActorCriticPolicy) -> bool:
    """Tell whether a policy's class, and the object itself, leave SB3's computation as it is."""
    trunk = getattr(policy, "mlp_extractor", None)
    return (
        all(_function_of(policy, name) is getattr(ActorCriticPolicy, name) for name in _COMPUTING)
        and _shares_as_sb3(policy)
        and type(trunk) is MlpExtractor
        and is_plain(trunk)
        and not {"forward_actor", "forward_critic"} & set(vars(trunk))
    )
