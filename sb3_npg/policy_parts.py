"""
What of a policy is its actor and what its critic, and which of its modules are in training mode when.

The policy that acts is the policy in evaluation mode: dropout off, BatchNorm on its running averages.
The trust region bounds how far *that* policy moves, so the policy step sees no other. BatchNorm's
averages of the modules that act are renewed once per rollout, before the step, as VecNormalize renews
its own; the critic's regression must not touch them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_npg.actor import actor_parameters, require_products
from sb3_npg.fisher import split_rows
from sb3_npg.networks import CriticNetwork, PolicyNetworks, read_critic, read_networks
from sb3_npg.numerics import NumericalFailure, kept_finite, refusals_as_failures
from sb3_npg.observations import count_rows, examples, filled, finite_observations, take_rows
from sb3_npg.parameters import ParameterVector, is_trained, reached_parameters
from sb3_npg.user_warnings import warn_user

#: Number of rows whose computation is followed at once.
_ROWS_AT_ONCE = 256


class PolicyParts(NamedTuple):
    """
    The parts of an actor-critic policy, told apart by following its computation and not by names.

    :param actor_parameters: those that the action distribution depends on: moved by the policy step only; none while
        the actor is frozen
    :param critic_parameters: the others that the value depends on: moved by the critic's regression
    :param actor_modules: modules called on the way to the action distribution; none where ``networks`` are known, as
        these do the same in training and in evaluation
    :param networks: the policy's, if both are feed-forward networks that are computed by hand
    :param critic: its critic, if that is a feed-forward network that is computed by hand
    """

    actor_parameters: ParameterVector
    critic_parameters: list[nn.Parameter]
    actor_modules: list[nn.Module]
    networks: PolicyNetworks | None = None
    critic: CriticNetwork | None = None


def split_policy(policy: ActorCriticPolicy, observations: PyTorchObs, fast_paths: bool = True) -> PolicyParts:
    """
    Tell the actor of a policy from its critic.

    :param policy: SB3 actor-critic policy, in evaluation mode
    :param observations: at least one row
    :param fast_paths: recognise feed-forward networks, which are then computed by hand
    :return: its parts
    """
    networks = read_networks(policy) if fast_paths else None
    if networks is not None:
        actor = ParameterVector(networks.actor_parameters())
        return PolicyParts(actor, networks.critic_parameters(), [], networks, networks.critic)
    reached = _Reached.by(policy, observations)
    actor = ParameterVector([parameter for parameter in policy.parameters() if parameter in reached.actor_parameters])
    others = reached.critic_parameters - reached.actor_parameters
    values = [parameter for parameter in policy.parameters() if parameter in others]
    critic = read_critic(policy) if fast_paths else None
    if critic is not None and set(critic.network.parameters()) != others:
        critic = None
    return PolicyParts(actor, values, _called_modules(policy, reached), critic=critic)


def warn_without_critic(policy: ActorCriticPolicy, parts: PolicyParts) -> None:
    """
    Warn if there is nothing for the critic's regression to move.

    :param policy: SB3 actor-critic policy
    :param parts: its parts
    """
    if not parts.critic_parameters:
        warn_user(
            f"`policy`={type(policy).__name__} has no trained parameter that its values depend on and its actions do "
            "not: its critic will stay as it is. Let `predict_values` not detach what it returns.",
        )


def require_actor(policy: ActorCriticPolicy, observations: PyTorchObs, parts: PolicyParts) -> None:
    """
    Check that there is something for the policy step to move, and that products with F can be computed.

    :param policy: SB3 actor-critic policy
    :param observations: at least one row
    :param parts: its parts
    :raises ValueError: if no parameter acts, or torch cannot differentiate the policy twice
    """
    if len(parts.actor_parameters) == 0:
        raise ValueError(
            f"`policy`={type(policy).__name__} has no parameter that the action distribution depends on and that "
            "requires a gradient. Let it not detach its outputs. To train the critic alone for a while, freeze the "
            "actor by `requires_grad_(False)` after the agent is made."
        )
    if parts.networks is None:
        require_products(policy, observations, parts.actor_parameters)


def refresh_running_statistics(
    compute: Callable[[PyTorchObs], object], modules: Iterable[nn.Module], observations: PyTorchObs, batch_size: int
) -> None:
    """
    Refresh modules that have buffers, such as BatchNorm and spectral norm, by a pass over a rollout in training mode.

    :param compute: calls them, all else in evaluation mode: ``policy.get_distribution`` or ``policy.predict_values``
    :param modules: those that may be refreshed; modules without buffers, such as dropout, are left as they are
    :param observations: the rollout's
    :param batch_size: largest number of rows in one batch
    :raises NumericalFailure: if their buffers are no longer finite
    """
    remembering = [module for module in modules if any(True for _ in module.buffers(recurse=False))]
    n_rows = count_rows(observations)
    if not remembering or n_rows < 2:  # the variance of one row is not defined
        return
    with training_mode(remembering, True), th.no_grad(), kept_finite("what modules remember of a rollout", remembering):
        for rows in split_rows(n_rows, max(batch_size, 3)):
            compute(take_rows(observations, rows))


def critic_modules(policy: ActorCriticPolicy, parts: PolicyParts) -> list[nn.Module]:
    """Return the modules that are not the actor's."""
    actor = set(parts.actor_modules)
    return [module for module in policy.modules() if module not in actor]


def trained_modules(policy: ActorCriticPolicy, modules: Iterable[nn.Module]) -> list[nn.Module]:
    """
    Return those modules that a policy puts into training mode for an update: it may keep some in evaluation mode.

    :param policy: SB3 actor-critic policy, in evaluation mode
    :param modules: some of its modules
    """
    modules = list(modules)
    if not modules:  # as of networks that are computed by hand
        return []
    policy.set_training_mode(True)
    trained = [module for module in modules if module.training]
    policy.set_training_mode(False)
    return trained


@contextmanager
def training_mode(modules: Iterable[nn.Module], mode: bool) -> Iterator[None]:
    """Set modules, but not their submodules, to training or evaluation mode; restore them at the end."""
    before = [(module, module.training) for module in modules]
    for module, _ in before:
        module.training = mode
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


class _Reached(NamedTuple):
    """
    The parameters reached from some rows: which layers a policy applies may depend on what it observes.

    :param actor_parameters: those that the action distribution depends on
    :param critic_parameters: those that the value depends on, but for some that act
    :param batches: the rows that were followed
    """

    actor_parameters: set[nn.Parameter]
    critic_parameters: set[nn.Parameter]
    batches: list[PyTorchObs]

    @classmethod
    def by(cls, policy: ActorCriticPolicy, observations: PyTorchObs) -> "_Reached":
        """Follow all rows in chunks, as what acts in none of the first may in the last; stop if everything acts."""
        reached = cls(set(), set(), [])
        trained = set(filter(is_trained, policy.parameters()))
        for rows in split_rows(count_rows(observations), _ROWS_AT_ONCE):
            with suppress(NumericalFailure), refusals_as_failures():
                reached.follow(policy, finite_observations(take_rows(observations, rows)), trained)
            if trained <= reached.actor_parameters:
                break
        others = examples(policy.observation_space)
        while not reached.batches and (example := next(others, None)) is not None:
            with suppress(NumericalFailure), refusals_as_failures():
                reached.follow(policy, filled(take_rows(observations, slice(0, 1)), example), trained)
        return reached

    def follow(self, policy: ActorCriticPolicy, rows: PyTorchObs, trained: set[nn.Parameter]) -> None:
        """Follow the computation of the actions from some rows, and that of the values if it may reach more."""
        own, values = actor_parameters(policy, rows), list[nn.Parameter]()
        if not trained <= self.actor_parameters | self.critic_parameters:
            with th.enable_grad():
                values = reached_parameters(policy.predict_values(rows), policy.parameters())
        self.actor_parameters.update(own)
        self.critic_parameters.update(values)
        self.batches.append(rows)


def _called_modules(policy: ActorCriticPolicy, reached: _Reached) -> list[nn.Module]:
    """
    Return the modules that are called on the way to the action distribution, in the policy's order.

    Scripted and compiled modules call no hooks: all parts of one that has parameters that act count as called.
    """
    silent = [module for module in policy.modules() if module is not policy and _calls_no_hooks(module)]
    acting = [module for module in silent if not reached.actor_parameters.isdisjoint(module.parameters())]
    called = {part for module in acting for part in module.modules()}

    def note(module: nn.Module, _inputs: object) -> None:
        called.add(module)

    with ExitStack() as hooks, th.no_grad():
        for module in policy.modules():
            if not isinstance(module, th.jit.ScriptModule):
                hooks.callback(module.register_forward_pre_hook(note).remove)
        for rows in reached.batches:
            policy.get_distribution(rows)
    return [module for module in policy.modules() if module in called]


def _calls_no_hooks(module: nn.Module) -> bool:
    compiled = module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
    return compiled or isinstance(module, th.jit.ScriptModule)
