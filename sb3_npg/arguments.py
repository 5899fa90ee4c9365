"""Checks of what ``NPG`` accepts, before any training starts: hyperparameters, policy classes and spaces."""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule

from sb3_npg.checks import check_choice, check_flag, check_integer, check_number
from sb3_npg.defaults import DEFAULT_LEARNING_RATE, DEFAULT_TARGET_KL
from sb3_npg.linalg import BACKENDS
from sb3_npg.schedules import make_schedule
from sb3_npg.trust_region import FixedStep, StepRule, TrustRegion
from sb3_npg.user_warnings import warn_user

#: Arguments of a policy that do not come from ``policy_kwargs``.
_GIVEN_TO_POLICIES = ("observation_space", "action_space", "lr_schedule", "use_sde")
#: Arguments that solvers and buffer are built with, once.
CHOSEN_ONCE = (
    "fisher_solver", "fisher_solver_kwargs", "critic_solver", "critic_solver_kwargs", "backend",
    "n_steps", "gamma", "gae_lambda",
)  # fmt: skip
#: Arguments whose attributes are checked again when an agent trains: these, and those that an update reads.
HEEDED = (
    *CHOSEN_ONCE, "batch_size", "ent_coef", "n_critic_updates", "normalize_advantage", "use_sde", "sde_sample_freq",
    "target_kl", "step_size", "damping", "adaptive_damping", "relative_damping", "line_search_shrinking_factor",
    "line_search_max_iter", "sub_sampling_factor", "fast_paths",
)  # fmt: skip
_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_hyperparameters(arguments: Mapping[str, Any], n_envs: int) -> None:
    """
    Check every plain hyperparameter of ``NPG``.

    :param arguments: the agent's attributes by name
    :param n_envs: number of environments that step together
    :raises ValueError: naming the first bad argument, its value, the reason and the way out
    """
    for name in ("n_steps", "batch_size", "sub_sampling_factor"):
        check_integer(name, arguments[name], minimum=1)
    check_integer("line_search_max_iter", arguments["line_search_max_iter"], minimum=0, hint="0 switches it off.")
    if arguments["n_critic_updates"] is not None:
        check_integer("n_critic_updates", arguments["n_critic_updates"], minimum=0, hint="0 switches it off.")
    check_integer("sde_sample_freq", arguments["sde_sample_freq"], minimum=-1, hint="-1: once a rollout.")
    for name in ("normalize_advantage", "adaptive_damping", "relative_damping", "use_sde", "fast_paths"):
        check_flag(name, arguments[name])
    for name in ("gamma", "gae_lambda"):
        check_number(name, arguments[name], minimum=0.0, maximum=1.0)
    check_number("ent_coef", arguments["ent_coef"])
    check_number("line_search_shrinking_factor", arguments["line_search_shrinking_factor"], above=0.0, below=1.0)
    check_choice("backend", arguments["backend"], BACKENDS)
    _check_rollout_size(arguments, n_envs)


def _check_rollout_size(arguments: Mapping[str, Any], n_envs: int) -> None:
    """Check what depends on the number of rows in a rollout."""
    n_steps = arguments["n_steps"]
    n_rows = n_steps * n_envs
    if arguments["normalize_advantage"] and n_rows < 2:
        raise ValueError(
            f"`n_steps`={n_steps} with {n_envs} environment makes a rollout of one step, whose advantage has no "
            "standard deviation to be normalised by. Use a larger `n_steps`, or normalize_advantage=False."
        )
    if arguments["sub_sampling_factor"] > n_rows:
        raise ValueError(
            f"`sub_sampling_factor`={arguments['sub_sampling_factor']} is more than the {n_rows} rows of a rollout "
            f"(n_steps={n_steps}, {n_envs} environments). Use a smaller factor; 1 uses all rows for the Fisher."
        )


def check_chosen_once(chosen: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """
    Refuse new values of attributes that only had an effect when the agent was made.

    :param chosen: the arguments that the agent was made with
    :param arguments: its attributes now
    :raises ValueError: naming the first that differs
    """
    for name in CHOSEN_ONCE:
        if arguments[name] is not chosen[name] and arguments[name] != chosen[name]:
            raise ValueError(
                f"`{name}`={arguments[name]!r} was set on an agent that is made with {chosen[name]!r}, which that does "
                f"not change. Set it back, or save the agent and use NPG.load(path, {name}={arguments[name]!r})."
            )


def warn_of_uneven_minibatches(batch_size: int, n_rows: int) -> None:
    """
    Warn if the last minibatch of each of the critic's epochs is smaller than the others.

    :param batch_size: rows in a minibatch
    :param n_rows: rows in a rollout
    """
    if 0 < n_rows % batch_size < n_rows:
        warn_user(
            f"The critic's minibatches of `batch_size`={batch_size} do not divide the rollout of n_steps × n_envs = "
            f"{n_rows} rows: the last of each epoch holds {n_rows % batch_size}. A `batch_size` that divides it evenly "
            "is better.",
        )


def warn_of_unused_optimizer(learning_rate: Any, policy_kwargs: dict[str, Any]) -> None:
    """
    Warn of a learning rate or an optimizer that has no effect, as the critic's solver sets its own steps.

    :param learning_rate: what the user passed; 0 comes from the zoo, for agents that it loads only to act
    :param policy_kwargs: what the user passed
    """
    unused = [f"policy_kwargs[{name!r}]" for name in ("optimizer_class", "optimizer_kwargs") if name in policy_kwargs]
    if learning_rate not in (0.0, DEFAULT_LEARNING_RATE):
        unused.insert(0, f"`learning_rate`={learning_rate!r}")
    if unused:
        warn_user(
            f"{' and '.join(unused)} has no effect: that is the critic's with critic_solver='adam', and "
            "critic_solver='gauss_newton' sets its own steps. How far the policy moves is set by `target_kl` or "
            "`step_size`.",
        )


def make_damping(damping: Any, adaptive: bool, default: float) -> Schedule:
    """
    Turn ``damping`` into a schedule.

    :param damping: what the user passed, or None
    :param adaptive: whether the damping is to be adapted
    :param default: the value for None
    :return: λ as a function of the progress remaining
    :raises ValueError: if it is negative, not finite, not a number, or zero although it is to be adapted
    """
    value = default if damping is None else damping
    return make_schedule("damping", value, above=0.0) if adaptive else make_schedule("damping", value, minimum=0.0)


def make_step_rule(target_kl: Any, step_size: Any) -> StepRule:
    """
    Choose how long a step is.

    :param target_kl: δ in nats, or None
    :param step_size: α, or None
    :return: a trust region, or a fixed step
    :raises ValueError: if both are given, or one is not a positive number or schedule
    """
    if step_size is None:
        return TrustRegion(make_schedule("target_kl", DEFAULT_TARGET_KL if target_kl is None else target_kl, above=0.0))
    if target_kl is not None:
        raise ValueError(
            f"`step_size`={step_size!r} asks for a fixed step and `target_kl`={target_kl!r} for a trust region, which "
            "sets the step's length itself. Give one of them and leave the other at None."
        )
    return FixedStep(make_schedule("step_size", step_size, above=0.0))


def check_policy_name(name: str, aliases: Iterable[str]) -> None:
    """
    Check that a policy's name is one of the aliases.

    :param name: what the user passed
    :param aliases: the known names
    :raises ValueError: if it is not
    """
    if name not in aliases:
        raise ValueError(
            f"`policy`={name!r} is unknown. Choose one of {list(aliases)} or pass a class derived from SB3's "
            "ActorCriticPolicy. Recurrent: use sb3_contrib.RecurrentPPO or VecFrameStack."
        )


def check_policy_class(policy_class: Any) -> None:
    """
    Check that a policy is one that NPG can train.

    :param policy_class: what the user passed, or the class that the alias stands for
    :raises ValueError: if it is not an actor-critic policy, or needs more than an observation to act
    """
    name = getattr(policy_class, "__name__", repr(policy_class))
    if not (inspect.isclass(policy_class) and issubclass(policy_class, ActorCriticPolicy)):
        raise ValueError(
            f"`policy`={name} is not an ActorCriticPolicy. Use 'MlpPolicy', 'CnnPolicy' or 'MultiInputPolicy', "
            "or derive a class of your own from stable_baselines3.common.policies.ActorCriticPolicy. For masked "
            "actions use sb3_contrib.MaskablePPO."
        )
    arguments = list(inspect.signature(policy_class.get_distribution).parameters.values())
    needed = [argument.name for argument in arguments[2:] if argument.default is inspect.Parameter.empty]
    if needed:
        raise ValueError(
            f"`policy`={name} is not supported: its action distribution needs {needed} beside the observation. "
            "Recurrent policies are not supported by NPG. Use sb3_contrib.RecurrentPPO, or stack the last "
            "observations with stable_baselines3.common.vec_env.VecFrameStack and use 'MlpPolicy' or 'CnnPolicy'."
        )


def check_policy_kwargs(policy_class: type, policy_kwargs: Any) -> None:
    """
    Check that a policy class has the arguments that the user wants to pass to it.

    :param policy_class: SB3 policy class
    :param policy_kwargs: what the user passed
    :raises ValueError: if they are not a dict, or one is unknown
    """
    if not isinstance(policy_kwargs, dict):
        raise ValueError(f"`policy_kwargs`={policy_kwargs!r} must be a dict, arguments by name, or None.")
    parameters = inspect.signature(policy_class).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.name not in _GIVEN_TO_POLICIES]
    unknown = sorted(set(policy_kwargs) - set(known))
    if unknown:
        raise ValueError(
            f"`policy_kwargs` has {unknown}, which {policy_class.__name__} does not know or NPG gives. "
            f"It takes {known}."
        )


def check_device(device: Any) -> None:
    """
    Check that torch accepts a device's name.

    :param device: what the user passed
    :raises ValueError: if it is not
    """
    try:
        th.device("cpu" if device == "auto" else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"`device`={device!r} is no device: {error}. Use 'auto', 'cpu' or 'cuda'.") from error


def check_features_extractor(
    policy_class: type, policy_kwargs: dict[str, Any], observation_space: spaces.Space[Any]
) -> None:
    """
    Check that SB3's own features extractors fit the observations.

    :param policy_class: SB3 policy class
    :param policy_kwargs: keyword arguments of the policy
    :param observation_space: the environment's observation space
    :raises ValueError: if the space is a Dict and the extractor is for tensors, or the other way round
    """
    arguments = inspect.signature(policy_class).parameters
    default = arguments["features_extractor_class"].default if "features_extractor_class" in arguments else None
    extractor = policy_kwargs.get("features_extractor_class", default)
    unfit: tuple[type, ...]
    if isinstance(observation_space, spaces.Dict):
        unfit, way_out = (FlattenExtractor, NatureCNN), "'MultiInputPolicy'"
    else:
        unfit, way_out = (CombinedExtractor,), "'MlpPolicy' or 'CnnPolicy'"
    if inspect.isclass(extractor) and issubclass(extractor, unfit):
        raise ValueError(
            f"`policy`={policy_class.__name__} with the features extractor {extractor.__name__} cannot read the "
            f"observation space {observation_space}. Use {way_out}, or another `features_extractor_class`."
        )


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any], use_sde: bool = False) -> None:
    """
    Check that SB3's on-policy algorithms support an environment's spaces.

    :param observation_space: the environment's observation space
    :param action_space: the environment's action space
    :param use_sde: whether actions are explored by gSDE
    :raises ValueError: if NPG cannot act there
    """
    _check_action_space(action_space)
    if use_sde and not isinstance(action_space, spaces.Box):
        raise ValueError(
            f"`use_sde`={use_sde} needs continuous actions, and `env` has the action space {action_space}. "
            "Use use_sde=False."
        )
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    for part in parts:
        if not isinstance(part, _SPACES):
            raise ValueError(
                f"`env` has {part} in its observation space, which is not supported. NPG observes Box, Discrete, "
                "MultiDiscrete and MultiBinary spaces and a Dict of these: wrap yours in "
                "gymnasium.wrappers.FlattenObservation."
            )
        _check_numbers("observation", part)
        _check_flattenable(part)


def _check_flattenable(space: spaces.Space[Any]) -> None:
    """Refuse observations of a shape that SB3 cannot handle."""
    if isinstance(space, spaces.Box) and space.shape == ():
        raise ValueError(f"`env` observes {space}, a number without a dimension. Give it the shape (1,).")
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) > 1:
        raise ValueError(
            f"`env` has {space} in its observation space, whose dimensions are more than one, which is not "
            f"supported. Flatten it to a MultiDiscrete of {space.nvec.size} with a gymnasium.ObservationWrapper."
        )


def _check_action_space(space: spaces.Space[Any]) -> None:
    """Refuse an action space that SB3's on-policy algorithms do not support."""
    if not isinstance(space, _SPACES):
        raise ValueError(
            f"`env` has the action space {space}, which is not supported. NPG acts in Box, Discrete, "
            "MultiDiscrete and MultiBinary spaces: flatten yours with a gymnasium.ActionWrapper."
        )
    _check_numbers("action", space)
    shaped = isinstance(space, spaces.MultiBinary) and not isinstance(space.n, int)  # MultiBinary([n]) too, as in SB3
    if shaped or (isinstance(space, spaces.MultiDiscrete) and len(space.shape) > 1):
        size = math.prod(space.shape or ())
        flat = f"MultiBinary({size})" if isinstance(space, spaces.MultiBinary) else f"a MultiDiscrete of {size}"
        raise ValueError(
            f"`env` has the action space {space} of several dimensions, which is not supported. "
            f"Flatten it to {flat} with a gymnasium.ActionWrapper."
        )
    if isinstance(space, spaces.Box) and not space.is_bounded():
        raise ValueError(
            f"`env` has the action space {space}, whose bounds must be finite: SB3 clips actions to them. "
            "Give it finite bounds with a gymnasium.ActionWrapper."
        )


def _check_numbers(kind: str, space: spaces.Space[Any]) -> None:
    """Refuse an empty space, and discrete values that do not begin at 0 as SB3 assumes."""
    if 0 in (space.shape or ()):
        raise ValueError(
            f"`env` has the {kind} space {space} of shape {space.shape}, in which there are no numbers. Leave it out "
            f"of a Dict, or put one constant number in its place with a gymnasium.{kind.capitalize()}Wrapper."
        )
    if np.any(getattr(space, "start", 0)):
        raise ValueError(
            f"`env` has the {kind} space {space}, whose numbers do not begin at 0. SB3 takes them for 0, 1, 2, …: "
            f"shift yours with a gymnasium.{kind.capitalize()}Wrapper."
        )


@contextmanager
def assertions_as_value_errors(name: str) -> Iterator[None]:
    """
    Turn a failed assertion of SB3 about user input into a ``ValueError``; one in the user's own code is left as it is.

    :param name: the argument that is being checked
    :raises ValueError: instead of an ``AssertionError`` raised by SB3
    """
    try:
        yield
    except AssertionError as error:
        *_, (raised_in, _) = walk_tb(error.__traceback__)
        if not raised_in.f_globals.get("__name__", "").startswith("stable_baselines3."):
            raise
        raise ValueError(f"`{name}` is not supported: {error}") from error
