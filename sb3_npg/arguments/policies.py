"""Checks of policy classes, their keyword arguments and their features extractors."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN

#: Arguments of a policy that do not come from ``policy_kwargs``.
_GIVEN_TO_POLICIES = ("observation_space", "action_space", "lr_schedule", "use_sde")


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
