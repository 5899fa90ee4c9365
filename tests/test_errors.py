"""Bad arguments: a ``ValueError`` before any training, naming the argument, its value and the way out."""

import math
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_npg import NPG
from sb3_npg.solvers import FISHER_SOLVERS
from tests.agents import N_STEPS, TargetEnv, dict_space, make_agent, make_env

NAN, INFINITY = float("nan"), float("inf")
YAML_HINT = "in a YAML file write 1.0e-3"
SCHEDULED = ("learning_rate", "damping", "target_kl", "step_size")
NUMBERS = (*SCHEDULED, "gamma", "gae_lambda", "ent_coef", "line_search_shrinking_factor")
INTEGERS = (
    "n_steps",
    "batch_size",
    "line_search_max_iter",
    "n_critic_updates",
    "sub_sampling_factor",
    "sde_sample_freq",
)
FLAGS = ("normalize_advantage", "adaptive_damping", "relative_damping", "use_sde", "fast_paths")


def error(**options: Any) -> str:
    """Return the message that building an agent ends with."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the callers look at the message
        make_agent(**options)
    return str(caught.value)


def assert_names(message: str, name: str, value: Any) -> None:
    assert f"`{name}`={value!r}" in message


# Numbers

MAY_BE_NONE = ("target_kl", "step_size", "damping", "n_critic_updates", "gae_lambda")


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY, np.float64("nan")], ids=repr)
@pytest.mark.parametrize("name", [*NUMBERS, *INTEGERS])
def test_number_that_is_not_finite_is_refused(name, value):
    message = error(**{name: value})
    assert_names(message, name, value)
    assert "finite" in message


@pytest.mark.parametrize("value", ["1e-3", "0.5", "3", "", "much"])
@pytest.mark.parametrize("name", [*NUMBERS, *INTEGERS])
def test_string_where_a_number_belongs_is_refused(name, value):
    message = error(**{name: value})
    assert_names(message, name, value)
    assert YAML_HINT in message


@pytest.mark.parametrize("value", [True, False, [1.0], {}, 1j], ids=repr)
@pytest.mark.parametrize("name", [*NUMBERS, *INTEGERS])
def test_what_is_not_a_number_is_refused(name, value):
    message = error(**{name: value})
    assert_names(message, name, value)
    assert f"must be a number, got {type(value).__name__}" in message


@pytest.mark.parametrize("name", [name for name in (*NUMBERS, *INTEGERS) if name not in MAY_BE_NONE])
def test_none_where_a_number_belongs_is_refused(name):
    assert_names(error(**{name: None}), name, None)


@pytest.mark.parametrize("learning_rate", [3e-4, "lin_0.01"])
def test_learning_rate_without_an_effect_is_told(learning_rate):
    with pytest.warns(UserWarning, match=r"`learning_rate`=.* has no effect.*critic_solver='adam'"):
        make_agent(learning_rate=learning_rate)
    make_agent(learning_rate=learning_rate, critic_solver="adam")  # warnings are errors


@pytest.mark.parametrize("kwargs", [{"optimizer_class": th.optim.SGD}, {"optimizer_kwargs": {"eps": 1e-5}}], ids=str)
def test_optimizer_without_an_effect_is_told(kwargs):
    with pytest.warns(UserWarning, match=rf"policy_kwargs\['{next(iter(kwargs))}'\] has no effect"):
        make_agent(policy_kwargs=kwargs)
    make_agent(policy_kwargs=kwargs, critic_solver="adam")  # warnings are errors


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("line_search_shrinking_factor", 1.5),
        ("line_search_max_iter", -1),
        ("n_critic_updates", -1),
        ("sub_sampling_factor", 10**6),
        ("normalize_advantage", "no"),
        ("ent_coef", math.nan),
        ("target_kl", -0.01),
        ("damping", -1.0),
        ("step_size", 0.1),
    ],
)
def test_bad_value_that_is_set_on_an_agent_is_refused_before_it_acts(name, value):
    agent = make_agent(target_kl=0.01)
    setattr(agent, name, value)
    with pytest.raises(ValueError, match=f"`{name}`"):
        agent.learn(N_STEPS)
    assert agent.num_timesteps == 0


def test_bad_value_that_a_callback_sets_is_refused_at_the_next_update():
    def shrink(found: dict[str, Any], _globals: dict[str, Any]) -> bool:
        found["self"].line_search_shrinking_factor = 0.0
        return True

    agent = make_agent()
    with pytest.raises(ValueError, match="`line_search_shrinking_factor`=0"):
        agent.learn(2 * N_STEPS, callback=shrink)
    assert agent.num_timesteps == N_STEPS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fisher_solver", "kfac"),
        ("fisher_solver_kwargs", {"max_steps": 3}),
        ("critic_solver", "adam"),
        ("critic_solver_kwargs", {"damping": 1.0}),
        ("backend", "torch"),
        ("n_steps", 2 * N_STEPS),
        ("gamma", 0.5),
        ("gae_lambda", 0.5),
    ],
)
def test_what_an_agent_is_made_of_is_not_changed_by_an_attribute(name, value, tmp_path):
    agent = make_agent()
    setattr(agent, name, value)
    with pytest.raises(ValueError, match=rf"`{name}`=.* NPG.load\(path, {name}="):
        agent.learn(N_STEPS)
    agent.save(tmp_path / "agent")
    NPG.load(tmp_path / "agent", env=agent.get_env(), device="cpu").learn(N_STEPS)


def test_attributes_that_are_set_to_the_same_are_taken():
    agent = make_agent(fisher_solver_kwargs={"max_steps": 3})
    agent.fisher_solver_kwargs = {"max_steps": 3}
    agent.learn(N_STEPS)
    assert agent._n_updates == 1


@pytest.mark.parametrize("name", ["fisher_solver_kwargs", "critic_solver_kwargs"])
def test_what_changes_inside_an_agents_arguments_is_refused_too(name):
    kwargs = {"max_steps": 3} if name == "fisher_solver_kwargs" else {"fisher_solver_kwargs": {"max_steps": 3}}
    agent = make_agent(**{name: kwargs})
    kwargs.clear()  # the user's own dict, which may serve for another agent
    agent.learn(N_STEPS)
    own = getattr(agent, name)
    own.get("fisher_solver_kwargs", own)["max_steps"] = 4
    with pytest.raises(ValueError, match=rf"`{name}`=.* NPG.load\(path, {name}="):
        agent.learn(N_STEPS)


def test_warnings_point_at_the_line_that_led_to_them():
    env = TargetEnv(action_space=spaces.Box(-1.0, 1.0, (2,), np.float32))
    with pytest.warns(UserWarning, match="no effect") as at_construction:
        agent = NPG("MlpPolicy", env, learning_rate=0.1, n_steps=N_STEPS, device="cpu")
    agent.policy.action_net.weight.data.fill_(math.nan)
    with pytest.warns(RuntimeWarning, match="skipped an update") as in_training:
        agent.learn(N_STEPS)
    assert [warning.filename for warning in (*at_construction, *in_training)] == [__file__, __file__]


def test_schedules_are_asked_once_an_update_and_not_for_the_start_again():
    asked: list[float] = []
    agent = make_agent(damping=lambda progress: asked.append(progress) or 0.1)
    asked.clear()
    agent.learn(4 * N_STEPS)
    assert asked == pytest.approx([0.75, 0.5, 0.25, 0.0])


class PickyBuffer(RolloutBuffer):
    """Has an assertion of its own."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        assert self.n_envs > 1, "needs several environments"


def test_assertions_of_the_users_own_stay_what_they_are():
    with pytest.raises(AssertionError, match="needs several environments"):
        make_agent(rollout_buffer_class=PickyBuffer)


def test_agent_that_is_loaded_is_not_told_again(tmp_path):
    with pytest.warns(UserWarning, match="no effect"):
        agent = make_agent(learning_rate=3e-4)
    agent.save(tmp_path / "agent")
    NPG.load(tmp_path / "agent", env=agent.get_env(), device="cpu")  # warnings are errors


def test_agent_that_the_zoo_loads_to_watch_is_not_told():
    assert make_agent(learning_rate=0.0).learning_rate == 0.0


@pytest.mark.parametrize(("value", "way_out"), [(32.0, "write 32"), (2.5, "write 2"), (np.float32(3.0), "write 3")])
@pytest.mark.parametrize("name", INTEGERS)
def test_fraction_where_a_whole_number_belongs_is_refused(name, value, way_out):
    message = error(**{name: value})
    assert_names(message, name, value)
    assert way_out in message


@pytest.mark.parametrize("name", INTEGERS)
def test_numpy_integers_do_well(name):
    value = 4 if name != "n_steps" else N_STEPS
    options = {"n_critic_updates": 1, "batch_size": 4, name: np.int64(value)}
    agent = make_agent(**options).learn(N_STEPS)
    assert getattr(agent, name) == value
    assert agent._n_updates == 1


@pytest.mark.parametrize("kind", [np.float32, np.float64, int], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", SCHEDULED)
def test_numbers_of_every_kind_do_well(name, kind):
    agent = make_agent(critic_solver="adam", **{name: kind(1)})
    agent.learn(N_STEPS)
    logged = {"target_kl": "kl_predicted"}.get(name, name)
    assert 0.0 < agent.logger.name_to_value[f"train/{logged}"] <= 1.0


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("damping", -1, "at least 0"),
        ("damping", -1e-30, "at least 0"),
        ("learning_rate", -1e-3, "at least 0"),
        ("target_kl", 0, "greater than 0"),
        ("target_kl", -0.1, "greater than 0"),
        ("step_size", 0.0, "greater than 0"),
        ("step_size", -1, "greater than 0"),
        ("gamma", -0.01, "at least 0 and at most 1"),
        ("gamma", 1.01, "at least 0 and at most 1"),
        ("gae_lambda", -0.01, "at least 0 and at most 1"),
        ("gae_lambda", 2, "at least 0 and at most 1"),
        ("line_search_shrinking_factor", 0, "greater than 0 and less than 1"),
        ("line_search_shrinking_factor", 1.0, "greater than 0 and less than 1"),
        ("n_steps", 0, "at least 1"),
        ("n_steps", -5, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("sub_sampling_factor", 0, "at least 1"),
        ("line_search_max_iter", -1, "at least 0"),
        ("n_critic_updates", -1, "at least 0"),
        ("sde_sample_freq", -2, "at least -1"),
    ],
)
def test_number_out_of_range_is_refused(name, value, limit):
    message = error(**{name: value})
    assert_names(message, name, value)
    assert limit in message


@pytest.mark.parametrize("value", ["yes", "False", 2, None], ids=repr)
@pytest.mark.parametrize("name", FLAGS)
def test_flag_that_is_neither_true_nor_false_is_refused(name, value):
    assert_names(error(**{name: value}), name, value)


# Schedules


@pytest.mark.parametrize("value", ["lin_", "lin_much", "lin_1e-3x", "lin", "Lin_0.1"])
@pytest.mark.parametrize("name", SCHEDULED)
def test_malformed_schedule_is_refused(name, value):
    message = error(**{name: value})
    assert_names(message, name, value)
    assert "'lin_0.01'" in message


@pytest.mark.parametrize("value", [lambda _: NAN, lambda _: -1.0, lambda _: "0.1", lambda _: None, "lin_-1", "lin_nan"])
@pytest.mark.parametrize("name", SCHEDULED)
def test_schedule_that_starts_out_of_range_is_refused(name, value):
    message = error(**{name: value})
    assert f"`{name}`=" in message
    assert "at the start" in message


def test_damping_of_zero_cannot_be_adapted():
    message = error(adaptive_damping=True, damping=0.0)
    assert_names(message, "damping", 0.0)
    assert "greater than 0" in message
    make_agent(damping=0.0)


def test_trust_region_and_fixed_step_exclude_each_other():
    message = error(target_kl=0.01, step_size=0.1)
    assert_names(message, "target_kl", 0.01)
    assert_names(message, "step_size", 0.1)
    assert "Give one of them" in message


# The rollout's size


def test_normalised_advantage_needs_two_rows():
    message = error(n_steps=1, batch_size=1)
    assert_names(message, "n_steps", 1)
    assert "normalize_advantage=False" in message
    make_agent(n_steps=1, batch_size=1, normalize_advantage=False)
    make_agent(make_env("vector", 2), n_steps=1, batch_size=2)


def test_sub_sampling_must_leave_a_row():
    message = error(sub_sampling_factor=N_STEPS + 1)
    assert_names(message, "sub_sampling_factor", N_STEPS + 1)
    assert f"{N_STEPS} rows" in message
    make_agent(sub_sampling_factor=N_STEPS).learn(N_STEPS)
    make_agent(make_env("vector", 2), sub_sampling_factor=N_STEPS + 1)


@pytest.mark.parametrize(("n_envs", "batch_size", "rest"), [(1, 20, 12), (2, 48, 16)])
def test_batch_size_that_does_not_divide_the_rollout_is_warned_of(n_envs, batch_size, rest):
    with pytest.warns(UserWarning, match=f"`batch_size`={batch_size} do not divide .* holds {rest}"):
        agent = make_agent(make_env("vector", n_envs), batch_size=batch_size, critic_solver="adam")
    agent.learn(n_envs * N_STEPS)
    assert agent._n_updates == 1


def test_one_batch_of_all_rows_is_not_warned_of(recwarn):
    make_agent(batch_size=N_STEPS + 1, critic_solver="adam")
    assert [str(warning.message) for warning in recwarn] == []


def test_batch_size_that_nothing_uses_is_not_warned_of(recwarn):
    make_agent(batch_size=N_STEPS - 1, critic_solver="gauss_newton")
    assert [str(warning.message) for warning in recwarn] == []


def test_batch_size_of_an_agent_that_is_loaded_is_not_warned_of_again(tmp_path):
    options = {"batch_size": N_STEPS - 1, "critic_solver": "adam"}
    with pytest.warns(UserWarning, match="do not divide"):
        make_agent(**options).save(tmp_path / "agent")
    NPG.load(tmp_path / "agent", make_env(), device="cpu")  # warnings are errors


# Choices


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("fisher_solver", ["cg", "diagonal", "ekfac", "exact", "identity", "kfac", "woodbury"]),
        ("critic_solver", ["adam"]),
        ("backend", ["auto", "torch"]),
    ],
)
@pytest.mark.parametrize("value", ["unheard of", "", None, 3, ["cg"]], ids=repr)
def test_unknown_choice_is_refused_with_what_is_known(name, known, value):
    message = error(**{name: value})
    assert_names(message, name, value)
    assert all(repr(choice) in message for choice in known)


@pytest.mark.parametrize(
    ("solver", "kwargs", "said"),
    [
        ("cg", {"max_step": 5}, ["max_step", "'max_steps', 'rtol'"]),
        ("cg", {1: 5}, ["[1]", "'max_steps', 'rtol'"]),
        ("identity", {"max_steps": 5}, ["max_steps", "It takes none"]),
        ("exact", {"rtol": 0.1}, ["rtol", "max_parameters"]),
        ("cg", {"max_steps": 0}, ["['max_steps']`=0", "at least 1"]),
        ("cg", {"max_steps": 2.5}, ["['max_steps']`=2.5", "write 2"]),
        ("cg", {"max_steps": "10"}, ["['max_steps']`='10'", YAML_HINT]),
        ("cg", {"max_steps": True}, ["['max_steps']`=True", "bool"]),
        ("cg", {"rtol": -0.1}, ["['rtol']`=-0.1", "at least 0"]),
        ("cg", {"rtol": 1.0}, ["['rtol']`=1.0", "less than 1"]),
        ("cg", {"rtol": NAN}, ["['rtol']`=nan", "finite"]),
        ("exact", {"max_parameters": 0}, ["['max_parameters']`=0", "at least 1"]),
        ("cg", ["max_steps", 5], ["`=['max_steps', 5]", "must be a dict"]),
        ("cg", "max_steps", ["`='max_steps'", "must be a dict"]),
    ],
)
def test_bad_solver_arguments_are_refused(solver, kwargs, said):
    message = error(fisher_solver=solver, fisher_solver_kwargs=kwargs)
    assert message.startswith("`fisher_solver_kwargs")
    assert all(words in message for words in said)


#: Arguments of solvers by what is asked of them.
INTERVALS = [(solver, key) for solver in ("kfac", "ekfac") for key in ("statistics_interval", "inverse_interval")]
SOLVER_INTEGERS = [
    *((solver, key, 1) for solver, key in [("diagonal", "statistics_interval"), *INTERVALS]),
    *((solver, "largest_eigen", 0) for solver in ("kfac", "ekfac")),
    ("woodbury", "max_rows", 1),
]
SOLVER_FRACTIONS = [("diagonal", "decay"), ("ekfac", "decay"), ("kfac", "decay"), ("cg", "momentum")]
SOLVER_CHOICES = [
    *((solver, "columns", ["exact", "propagated", "sampled"]) for solver in ("diagonal", "ekfac", "kfac")),
    *((solver, "weight_sharing", ["expand", "reduce"]) for solver in ("ekfac", "kfac")),
    ("cg", "preconditioner", ["diagonal", "ekfac", "kfac"]),
]
COLUMNS = "columns", "decay", "statistics_interval"


@pytest.mark.parametrize(("solver", "key", "minimum"), SOLVER_INTEGERS)
def test_bad_whole_number_of_a_solver_is_refused(solver, key, minimum):
    for value, said in [
        (minimum - 1, f"at least {minimum}"),
        (2.5, "write 2"),
        ("3", YAML_HINT),
        (NAN, "finite"),
        (None, "must be a number"),
        (True, "must be a number, got bool"),
    ]:
        message = error(fisher_solver=solver, fisher_solver_kwargs={key: value})
        assert_names(message, f"fisher_solver_kwargs['{key}']", value)
        assert said in message
    make_agent(fisher_solver=solver, fisher_solver_kwargs={key: max(minimum, np.int64(N_STEPS))})


@pytest.mark.parametrize(("solver", "key"), SOLVER_FRACTIONS)
def test_bad_fraction_of_a_solver_is_refused(solver, key):
    for value, said in [
        (-0.1, "at least 0 and less than 1"),
        (1.0, "at least 0 and less than 1"),
        (1, "at least 0 and less than 1"),
        ("0.9", YAML_HINT),
        (INFINITY, "finite"),
        (None, "must be a number"),
        (True, "must be a number, got bool"),
    ]:
        message = error(fisher_solver=solver, fisher_solver_kwargs={key: value})
        assert_names(message, f"fisher_solver_kwargs['{key}']", value)
        assert said in message
    make_agent(fisher_solver=solver, fisher_solver_kwargs={key: 0.0})


@pytest.mark.parametrize(("solver", "key", "known"), SOLVER_CHOICES)
def test_unknown_choice_of_a_solver_is_refused(solver, key, known):
    for value in ("unheard of", "", 3, True, ["kfac"], *([] if key == "preconditioner" else [None])):
        message = error(fisher_solver=solver, fisher_solver_kwargs={key: value})
        assert_names(message, f"fisher_solver_kwargs['{key}']", value)
        assert str(known) in message
    for value in known:
        make_agent(fisher_solver=solver, fisher_solver_kwargs={key: value})


@pytest.mark.parametrize("value", ["yes", 2, None], ids=repr)
def test_warm_start_that_is_no_flag_is_refused(value):
    message = error(fisher_solver_kwargs={"warm_start": value})
    assert_names(message, "fisher_solver_kwargs['warm_start']", value)
    assert "True or False" in message


def test_warm_start_and_momentum_exclude_each_other():
    message = error(fisher_solver_kwargs={"warm_start": True, "momentum": 0.5})
    assert_names(message, "fisher_solver_kwargs['warm_start']", True)
    assert_names(message, "fisher_solver_kwargs['momentum']", 0.5)
    assert "Give one of them" in message
    make_agent(fisher_solver_kwargs={"warm_start": True, "momentum": 0.0})


@pytest.mark.parametrize(
    ("solver", "known"),
    [
        ("cg", ("max_steps", "rtol", "preconditioner", "preconditioner_kwargs", "warm_start", "momentum")),
        ("diagonal", COLUMNS),
        ("ekfac", (*COLUMNS, "inverse_interval", "weight_sharing", "largest_eigen")),
        ("kfac", (*COLUMNS, "inverse_interval", "weight_sharing", "largest_eigen")),
        ("woodbury", ("max_rows",)),
    ],
)
def test_unknown_argument_of_a_solver_is_refused_with_what_is_known(solver, known):
    message = error(fisher_solver=solver, fisher_solver_kwargs={"unheard_of": 1})
    assert message.startswith("`fisher_solver_kwargs` has ['unheard_of']")
    assert f"fisher_solver='{solver}'" in message
    assert str(list(known)) in message


# Preconditioners


def test_preconditioner_arguments_need_a_preconditioner():
    kwargs = {"decay": 0.9}
    message = error(fisher_solver_kwargs={"preconditioner_kwargs": kwargs})
    assert_names(message, "fisher_solver_kwargs['preconditioner_kwargs']", kwargs)
    assert "'preconditioner': ..." in message
    assert "['diagonal', 'ekfac', 'kfac']" in message
    make_agent(fisher_solver_kwargs={"preconditioner_kwargs": {}})


@pytest.mark.parametrize("value", ["decay", ["decay", 0.9], 3], ids=repr)
@pytest.mark.parametrize("preconditioner", [None, "kfac"])
def test_preconditioner_arguments_must_be_a_dict(preconditioner, value):
    message = error(fisher_solver_kwargs={"preconditioner": preconditioner, "preconditioner_kwargs": value})
    assert_names(message, "fisher_solver_kwargs['preconditioner_kwargs']", value)


@pytest.mark.parametrize(
    ("preconditioner", "kwargs", "said"),
    [
        ("kfac", {"unheard_of": 1}, ["has ['unheard_of']", "'kfac'", "'inverse_interval'"]),
        ("diagonal", {"inverse_interval": 2}, ["has ['inverse_interval']", "'diagonal'", "'statistics_interval'"]),
        ("kfac", {"decay": 1.0}, ["['preconditioner_kwargs']['decay']`=1.0", "less than 1"]),
        ("ekfac", {"inverse_interval": 0}, ["['preconditioner_kwargs']['inverse_interval']`=0", "at least 1"]),
        ("diagonal", {"columns": "all"}, ["['preconditioner_kwargs']['columns']`='all'", "'propagated'"]),
    ],
)
def test_bad_preconditioner_arguments_are_refused(preconditioner, kwargs, said):
    message = error(fisher_solver_kwargs={"preconditioner": preconditioner, "preconditioner_kwargs": kwargs})
    assert message.startswith("`fisher_solver_kwargs['preconditioner_kwargs']")
    assert all(words in message for words in said)


@pytest.mark.parametrize("preconditioner", ["cg", "exact", "identity", "woodbury"])
def test_solver_that_is_no_preconditioner_is_refused(preconditioner):
    message = error(fisher_solver_kwargs={"preconditioner": preconditioner})
    assert_names(message, "fisher_solver_kwargs['preconditioner']", preconditioner)


# Sizes


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, N_STEPS),
        ({"env": make_env("vector", 2)}, 2 * N_STEPS),
        ({"n_steps": 3 * N_STEPS, "sub_sampling_factor": 4}, 24),
        ({"sub_sampling_factor": 5}, 7),
    ],
    ids=["rollout", "environments", "sub-sampled", "sub-sampled unevenly"],
)
def test_rollout_too_long_for_the_woodbury_solver_is_refused(options, rows):
    kwargs = {"fisher_solver": "woodbury", "batch_size": 8, **options}
    message = error(fisher_solver_kwargs={"max_rows": rows - 1}, **kwargs)
    assert_names(message, "fisher_solver", "woodbury")
    assert f"{rows} × {rows} rows" in message
    assert f"limit of {rows - 1}" in message
    assert "sub_sampling_factor" in message
    make_agent(fisher_solver_kwargs={"max_rows": rows}, **kwargs)


@pytest.mark.parametrize(
    "options", [{"env": "image"}, {"fisher_solver_kwargs": {"max_parameters": 1000}}], ids=["image", "limit"]
)
def test_policy_too_large_for_the_exact_solver_is_refused(options):
    message = error(fisher_solver="exact", **options)
    assert_names(message, "fisher_solver", "exact")
    assert re.search(r"all [\d,]{5,} parameters", message)
    assert "fisher_solver='cg'" in message


# Policies


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "CnnLstmPolicy", "mlppolicy"])
def test_unknown_policy_name_is_refused(policy):
    message = error(policy=policy)
    assert_names(message, "policy", policy)
    assert "'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy'" in message
    assert "RecurrentPPO" in message


@pytest.mark.parametrize(
    ("policy", "way_out"),
    [
        (RecurrentActorCriticPolicy, "sb3_contrib.RecurrentPPO"),
        (MaskableActorCriticPolicy, "sb3_contrib.MaskablePPO"),
        (SACPolicy, "'MlpPolicy', 'CnnPolicy' or 'MultiInputPolicy'"),
        (nn.Linear, "'MlpPolicy', 'CnnPolicy' or 'MultiInputPolicy'"),
    ],
)
def test_class_of_another_kind_of_policy_is_refused(policy, way_out):
    message = error(env="Discrete", policy=policy)
    assert f"`policy`={policy.__name__}" in message
    assert way_out in message


@pytest.mark.parametrize("policy", [5, 2.5])
def test_policy_that_is_no_class_is_refused(policy):
    message = error(policy=policy)
    assert_names(message, "policy", policy)
    assert "'MlpPolicy'" in message


class ScaledPolicy(ActorCriticPolicy):
    """Takes more than an observation, if it is given."""

    def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.scale = scale

    def get_distribution(self, obs: Any, scale: float | None = None) -> Any:
        return super().get_distribution(obs * (self.scale if scale is None else scale))


def test_policy_that_asks_for_no_more_than_an_observation_will_do():
    agent = make_agent(policy=ScaledPolicy, policy_kwargs={"scale": 2.0, "net_arch": [4]})
    assert agent.learn(N_STEPS).policy.scale == 2.0


class FrozenPolicy(ActorCriticPolicy):
    """Only the critic can learn."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("value_net" in name)


class DetachedPolicy(ActorCriticPolicy):
    """Hides its parameters from autograd."""

    def _get_action_dist_from_latent(self, latent_pi: Any) -> Any:
        return self.action_dist.proba_distribution(self.action_net(latent_pi).detach())


@pytest.mark.parametrize(("policy", "env"), [(FrozenPolicy, "vector"), (DetachedPolicy, "Discrete")])
def test_policy_without_an_acting_parameter_is_refused(policy, env):
    message = error(env=env, policy=policy)
    assert f"`policy`={policy.__name__}" in message
    assert "requires_grad" in message


def test_gsde_without_continuous_actions_is_refused():
    message = error(env="Discrete", use_sde=True)
    assert_names(message, "use_sde", True)
    assert "Discrete(3)" in message


def test_squashed_output_without_gsde_is_refused():
    message = error(policy_kwargs={"squash_output": True})
    assert "`policy_kwargs`" in message
    assert "use_sde=True" in message


# Spaces


@pytest.mark.parametrize(
    ("space", "way_out"),
    [
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]), "gymnasium.ActionWrapper"),
        (spaces.Dict({"one": spaces.Discrete(2)}), "gymnasium.ActionWrapper"),
        (spaces.Text(3), "gymnasium.ActionWrapper"),
        (spaces.MultiBinary([2, 3]), "MultiBinary(6)"),
        (spaces.MultiBinary([4]), "MultiBinary(4)"),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), "MultiDiscrete"),
        (spaces.Discrete(3, start=1), "gymnasium.ActionWrapper"),
        (spaces.MultiDiscrete([3, 2], start=[0, 2]), "gymnasium.ActionWrapper"),
        (spaces.Box(-np.inf, np.inf, (2,), np.float32), "finite"),
        (spaces.Box(0.0, np.inf, (2,), np.float32), "finite"),
        (spaces.Box(np.array([-1.0, -np.inf]), np.array([1.0, 1.0]), dtype=np.float64), "finite"),
    ],
    ids=str,
)
def test_action_space_that_is_not_supported_is_refused(space, way_out):
    message = error(env=TargetEnv(action_space=space))
    assert message.startswith(f"`env` has the action space {space}")
    assert way_out in message


@pytest.mark.parametrize(
    "space",
    [
        spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]),
        spaces.Dict({"vector": spaces.Tuple([spaces.Discrete(2)])}),
        spaces.Dict({"vector": dict_space()}),
        spaces.Text(3),
        spaces.Sequence(spaces.Discrete(2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy"])
def test_observation_space_that_is_not_supported_is_refused(space, policy):
    message = error(env=TargetEnv(space), policy=policy)
    assert message.startswith("`env` has ")
    assert "observation space" in message
    assert "gymnasium.wrappers.FlattenObservation" in message


@pytest.mark.parametrize("kind", ["observation", "action"])
@pytest.mark.parametrize("space", [spaces.Box(-1.0, 1.0, (0,)), spaces.Box(-1.0, 1.0, (2, 0))], ids=str)
def test_space_without_numbers_is_refused(kind, space):
    message = error(env=TargetEnv(**{f"{kind}_space": space}))
    assert message.startswith(f"`env` has the {kind} space")
    assert f"of shape {space.shape}" in message


def test_part_of_an_observation_without_numbers_is_refused():
    space = spaces.Dict({"vector": spaces.Box(-1.0, 1.0, (2,)), "nothing": spaces.Box(-1.0, 1.0, (0,))})
    assert "of shape (0,)" in error(env=TargetEnv(space), policy="MultiInputPolicy")


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=2), spaces.Dict({"one": spaces.Discrete(3, start=-1)})])
def test_observations_that_do_not_begin_at_zero_are_refused(space):
    message = error(env=TargetEnv(space), policy="MultiInputPolicy")
    assert "do not begin at 0" in message
    assert "gymnasium.ObservationWrapper" in message


@pytest.mark.parametrize(
    ("space", "way_out"),
    [
        (spaces.Box(-1.0, 1.0, (), np.float32), "(1,)"),
        (spaces.Dict({"one": spaces.MultiDiscrete([[2, 3], [4, 5]])}), "a MultiDiscrete of 4"),
    ],
    ids=str,
)
def test_observations_of_a_shape_that_sb3_cannot_flatten_are_refused(space, way_out):
    message = error(env=TargetEnv(space), policy="MultiInputPolicy")
    assert message.startswith("`env` ")
    assert way_out in message


@pytest.mark.parametrize("env", [lambda: gym.make("CartPole-v1"), gym.Env, 3], ids=["function", "class", "number"])
def test_what_is_no_environment_is_refused(env):
    assert "not a Gymnasium environment" in error(env=env)


def test_an_agent_needs_an_environment():
    message = error(env=None)
    assert_names(message, "env", None)
    assert "NPG.load" in message


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy", ActorCriticPolicy])
def test_dict_observations_need_the_policy_for_them(policy):
    message = error(env="Dict", policy=policy)
    assert "MultiInputPolicy" in message


@pytest.mark.parametrize("policy", ["CnnPolicy", "MultiInputPolicy"])
def test_vector_observations_need_the_policy_for_them(policy):
    message = error(env="vector", policy=policy)
    assert "MlpPolicy" in message


def test_features_extractor_that_is_given_counts():
    extractor = {"features_extractor_class": CombinedExtractor}
    message = error(env="vector", policy="MlpPolicy", policy_kwargs=extractor)
    assert "with the features extractor CombinedExtractor cannot read" in message
    make_agent("Dict", policy=ActorCriticPolicy, policy_kwargs=extractor)


# Files


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("damping", -1),
        ("target_kl", 0.0),
        ("gamma", 1.5),
        ("n_steps", 2.5),
        ("fisher_solver", "unheard of"),
        ("backend", "unheard of"),
        ("relative_damping", "unheard of"),
        ("critic_solver", "unheard of"),
        ("fisher_solver_kwargs", "unheard of"),
        ("sub_sampling_factor", 1000),
        ("learning_rate", "1e-3"),
    ],
)
def test_bad_override_of_a_saved_agent_is_refused(name, value, tmp_path):
    make_agent().save(tmp_path / "agent")
    with pytest.raises(ValueError, match=re.escape(f"`{name}`={value!r}")):
        NPG.load(tmp_path / "agent", device="cpu", **{name: value})


def test_overrides_that_exclude_each_other_are_refused(tmp_path):
    make_agent(target_kl=0.01).save(tmp_path / "agent")
    with pytest.raises(ValueError, match="Give one of them"):
        NPG.load(tmp_path / "agent", device="cpu", step_size=0.1)


def test_saved_agent_of_an_unregistered_solver_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(FISHER_SOLVERS, "mine", FISHER_SOLVERS["identity"])
        make_agent(fisher_solver="mine").save(tmp_path / "agent")
    with pytest.raises(ValueError, match="`fisher_solver`='mine' is unknown"):
        NPG.load(tmp_path / "agent", device="cpu")
    assert NPG.load(tmp_path / "agent", device="cpu", fisher_solver="cg").fisher_solver == "cg"


def test_environment_of_another_action_space_is_refused(tmp_path):
    make_agent("Box").save(tmp_path / "agent")
    with pytest.raises(ValueError, match="spaces do not match"):
        NPG.load(tmp_path / "agent", make_env("Discrete"), device="cpu")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"policy_kwargs": "wide"}, ["`policy_kwargs`='wide'", "must be a dict"]),
        ({"policy_kwargs": {"net_arhc": [8]}}, ["`policy_kwargs` has ['net_arhc']", "'net_arch'"]),
        ({"policy_kwargs": {"use_sde": True}}, ["`policy_kwargs` has ['use_sde']", "NPG gives"]),
        ({"policy_kwargs": {"lr_schedule": 0.1}}, ["`policy_kwargs` has ['lr_schedule']", "NPG gives"]),
        ({"device": "gpu"}, ["`device`='gpu'", "'auto', 'cpu' or 'cuda'"]),
        ({"target_kl": lambda: 0.1}, ["`target_kl`=", "progress remaining"]),
        ({"learning_rate": lambda: 0.1}, ["`learning_rate`=", "progress remaining"]),
        ({"ent_coef": "lin_0.1"}, ["`ent_coef`='lin_0.1'", "takes none"]),
        ({"fisher_solver": "atuo"}, ["`fisher_solver`='atuo'", "'auto'"]),
        ({"env": "image", "fisher_solver_kwargs": {"max_steps": 5}}, ["['max_steps']", "fisher_solver='kfac'", "'cg'"]),
        ({"critic_solver_kwargs": [1]}, ["`critic_solver_kwargs`=[1]", "must be a dict"]),
        (
            {"critic_solver_kwargs": {"fisher_solver": "woodbury", "fisher_solver_kwargs": {"max_rows": 4}}},
            ["`critic_solver_kwargs` cannot serve this critic", "rows"],
        ),
    ],
)
def test_what_sb3_and_torch_would_complain_about_later_is_refused_by_name(arguments, words):
    message = error(**arguments)
    for word in words:
        assert word in message


def test_critic_s_solver_sees_every_row_whatever_the_fisher_uses():
    def make(max_rows: int) -> NPG:
        kwargs = {"fisher_solver": "woodbury", "fisher_solver_kwargs": {"max_rows": max_rows}}
        return make_agent(critic_solver_kwargs=kwargs, sub_sampling_factor=4)

    with pytest.raises(ValueError, match=rf"`critic_solver_kwargs` .* {N_STEPS} × {N_STEPS} rows"):
        make(N_STEPS - 1)
    make(N_STEPS)


@pytest.mark.parametrize(
    ("env", "policy", "extractor"),
    [("vector", "MlpPolicy", CombinedExtractor), ("Dict", "MultiInputPolicy", FlattenExtractor)],
)
def test_features_extractor_derived_from_one_that_does_not_fit_is_refused(env, policy, extractor):
    own = type("Own", (extractor,), {})
    message = error(env=env, policy=policy, policy_kwargs={"features_extractor_class": own})
    assert "with the features extractor Own cannot read" in message
