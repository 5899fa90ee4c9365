"""Checks of hyperparameters, and what NPG makes of them."""

from collections.abc import Mapping
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_npg.checks import check_choice, check_flag, check_integer, check_number
from sb3_npg.defaults import DEFAULT_LEARNING_RATE, DEFAULT_TARGET_KL
from sb3_npg.linalg import BACKENDS
from sb3_npg.schedules import make_schedule
from sb3_npg.trust_region import FixedStep, StepRule, TrustRegion
from sb3_npg.user_warnings import warn_user

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


def copied_dicts(value: Any) -> Any:
    """Copy an argument's dicts, so that a change inside them is seen; all else stays the same object."""
    return {key: copied_dicts(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def is_unchanged(value: Any, before: Any) -> bool:
    """Tell whether an argument is the object that it was, or a dict that holds the same."""
    return value is before or (isinstance(value, dict) and value == before)


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
