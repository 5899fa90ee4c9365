"""Training runs: every space, policy and option trains, logs what it did, and goes with SB3's tools."""

import math
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_npg import NPG
from sb3_npg.solvers import FISHER_SOLVERS
from sb3_npg.solvers.identity import IdentitySolver
from sb3_npg.trust_region import LineSearch
from tests.agents import ACTION_SPACES, ENVIRONMENTS, N_STEPS, TargetEnv, make_agent, make_env, parameters, train
from tests.cases import LearnFeaturesPolicy

POLICY_FIGURES = {
    "surrogate",
    "kl",
    "kl_predicted",
    "step_size",
    "line_search_steps",
    "natural_gradient_norm",
    "damping",
    "entropy_loss",
    "policy_objective",
    "kl_divergence_loss",
    "is_line_search_success",
}
FIGURES = {f"train/{name}" for name in POLICY_FIGURES} | {
    "train/solver_steps",
    "train/solver_residual",
    "train/skipped_updates",
    "train/value_loss",
    "train/explained_variance",
    "train/learning_rate",
    "train/n_updates",
    "time/solve",
    "time/critic",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "advantages as they are": {"normalize_advantage": False},
    "entropy bonus": {"ent_coef": 0.01},
    "Fisher on every third row": {"sub_sampling_factor": 3},
    "fixed step": {"step_size": 0.05},
    "no line search": {"line_search_max_iter": 0},
    "adaptive damping": {"adaptive_damping": True},
    "schedules as strings": {"target_kl": "lin_0.02", "damping": "lin_0.1"},
    "schedules as functions": {
        "critic_solver": "adam",
        "learning_rate": lambda progress: 1e-3 * progress,
        "target_kl": lambda progress: 0.01 + 0.01 * progress,
        "damping": lambda progress: 0.1 + 0.1 * progress,
    },
    "exact solver": {"fisher_solver": "exact", "policy_kwargs": {"net_arch": [8]}},
    "identity solver": {"fisher_solver": "identity"},
    "no damping": {"damping": 0.0},
    "undiscounted": {"gamma": 1.0, "gae_lambda": 1.0},
    "myopic": {"gamma": 0.0, "gae_lambda": 0.0},
    "linear policy": {"policy_kwargs": {"net_arch": []}},
    "networks of different size": {"policy_kwargs": {"net_arch": {"pi": [8], "vf": [16, 16]}}},
    "extractors apart": {"policy_kwargs": {"share_features_extractor": False}},
}
GSDE: dict[str, dict[str, Any]] = {
    "defaults": {},
    "full_std=False": {"policy_kwargs": {"full_std": False}},
    "use_expln": {"policy_kwargs": {"use_expln": True}},
    "squash_output": {"policy_kwargs": {"squash_output": True}},
    "squash_output, entropy bonus": {"policy_kwargs": {"squash_output": True}, "ent_coef": 0.01},
    "all at once": {"policy_kwargs": {"squash_output": True, "use_expln": True, "full_std": False}, "ent_coef": 0.01},
    "learn_features": {"policy": LearnFeaturesPolicy},
    "sde_sample_freq": {"sde_sample_freq": 4},
    "entropy bonus": {"ent_coef": 0.01},
}


def assert_trains(agent: NPG, n_updates: int = 2) -> list[dict[str, float]]:
    """Train; check that actor and critic moved to finite places, and that the log is complete and sane."""
    actor, critic = parameters(agent, critic=False), parameters(agent, critic=True)
    before = agent._n_updates
    updates = train(agent, n_updates)

    assert any(not th.equal(tensor, actor[name]) for name, tensor in parameters(agent, critic=False).items())
    assert any(not th.equal(tensor, critic[name]) for name, tensor in parameters(agent, critic=True).items())
    assert all(th.isfinite(tensor).all() for tensor in agent.policy.state_dict().values())
    assert [update["train/n_updates"] - before for update in updates] == list(range(1, n_updates + 1))
    for update in updates:
        without = set() if agent.fisher_solver == "cg" else {"train/solver_residual"}
        without |= set() if agent.fisher_solver in ("cg", "exact") else {"train/solver_steps"}
        assert update.keys() >= FIGURES - without
        assert ("train/std" in update) == hasattr(agent.policy, "log_std")
        assert all(math.isfinite(figure) for name, figure in update.items() if name != "train/explained_variance")
        assert update["train/skipped_updates"] == 0
        assert update["train/natural_gradient_norm"] > 0.0
        assert update["train/value_loss"] >= 0.0
        assert update["train/policy_objective"] == update["train/surrogate"]
        assert update["train/kl_divergence_loss"] == update["train/kl"] >= 0.0
        accepted = update["train/is_line_search_success"] == 1.0
        assert accepted == (update["train/step_size"] > 0.0)
        assert 1 <= update["train/line_search_steps"] <= max(1, agent.line_search_max_iter)
    return updates


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("space", ACTION_SPACES)
def test_every_option_trains_in_every_action_space(space, options):
    assert_trains(make_agent(space, **options))


@pytest.mark.parametrize("environment", [name for name in ENVIRONMENTS if name not in ACTION_SPACES])
def test_every_kind_of_observation_trains(environment):
    # Images of noise have nothing in common: with little damping, half of them say nothing about the others.
    assert_trains(make_agent(environment, damping=0.1, sub_sampling_factor=2))


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"share_features_extractor": False},
        {"normalize_images": False},
        {"net_arch": {"pi": [8], "vf": []}},
        {"features_extractor_kwargs": {"features_dim": 16}},
    ],
    ids=str,
)
def test_images_train_with_every_kind_of_network(policy_kwargs):
    assert_trains(make_agent("image", policy_kwargs=policy_kwargs), n_updates=1)


@pytest.mark.parametrize("options", GSDE.values(), ids=GSDE)
def test_gsde_trains_in_every_form(options):
    agent = make_agent("vector", use_sde=True, **options)
    before = agent.policy.log_std.detach().clone()
    assert_trains(agent)
    assert not th.equal(agent.policy.log_std, before)


def test_gsde_draws_noise_as_often_as_asked(monkeypatch):
    agent = make_agent("vector", use_sde=True, sde_sample_freq=8)
    drawn = []
    draw = agent.policy.reset_noise
    monkeypatch.setattr(agent.policy, "reset_noise", lambda *args: (drawn.append(agent.num_timesteps), draw(*args)))
    agent.learn(N_STEPS)
    assert drawn == [0, 0, 8, 16, 24]


@pytest.mark.parametrize("use_sde", [False, True])
def test_log_std_moves_and_a_frozen_one_stays(use_sde):
    agent = make_agent("vector", use_sde=use_sde)
    start = agent.policy.log_std.detach().clone()
    train(agent)
    moved = agent.policy.log_std.detach().clone()
    assert not th.equal(moved, start)

    agent.policy.log_std.requires_grad_(False)
    (update,) = train(agent, 1)
    assert th.equal(agent.policy.log_std, moved)
    assert update["train/is_line_search_success"] == 1.0


@pytest.mark.parametrize("n_envs", [1, 3])
def test_several_environments_fill_one_rollout(n_envs):
    agent = make_agent(make_env("Box", n_envs))
    assert_trains(agent)
    assert agent.num_timesteps == 2 * N_STEPS * n_envs


# What a step costs


@pytest.mark.parametrize("space", ACTION_SPACES)
@pytest.mark.parametrize("solver", ["cg", "exact", "identity"])
def test_full_step_costs_the_target_kl(space, solver):
    target = 1e-3
    options = {"fisher_solver": solver, "line_search_max_iter": 0, "policy_kwargs": {"net_arch": [8]}}
    agent = make_agent(space, n_steps=128, target_kl=target, **options)
    for update in train(agent):
        assert update["train/line_search_steps"] == 1
        assert update["train/kl_predicted"] == pytest.approx(target, rel=1e-5)
        # The policy's KL differs from its quadratic model in the third order alone.
        assert update["train/kl"] == pytest.approx(target, rel=0.15)


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_line_search_keeps_the_kl_within_its_target(space):
    target = 0.5  # so large that the quadratic model is wrong
    updates = train(make_agent(space, target_kl=target), 8)
    accepted = [update for update in updates if update["train/is_line_search_success"]]
    assert any(update["train/line_search_steps"] > 1 for update in accepted)
    for update in accepted:
        assert update["train/kl"] <= target
        coefficient = 0.8 ** (update["train/line_search_steps"] - 1)
        assert update["train/kl_predicted"] == pytest.approx(coefficient**2 * target, rel=1e-5)


def test_fixed_step_is_taken_as_it_is():
    for update in train(make_agent("vector", step_size=0.03, line_search_max_iter=0)):
        assert update["train/step_size"] == pytest.approx(0.03)
        assert update["train/kl"] > 0.0


def test_rejected_step_leaves_the_actor_bit_for_bit():
    agent = make_agent("vector", step_size=1e3, line_search_max_iter=1)
    actor, critic = parameters(agent, critic=False), parameters(agent, critic=True)
    (update,) = train(agent, 1)
    assert update["train/is_line_search_success"] == 0.0
    assert update["train/kl"] == update["train/step_size"] == update["train/kl_predicted"] == 0.0
    assert update["train/skipped_updates"] == 0
    assert all(th.equal(tensor, actor[name]) for name, tensor in parameters(agent, critic=False).items())
    assert not all(th.equal(tensor, critic[name]) for name, tensor in parameters(agent, critic=True).items())


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (0.02, [0.02] * 4),
        ("lin_0.02", [0.015, 0.01, 0.005, 0.0]),
        (lambda p: 0.01 * (1 + p), [0.0175, 0.015, 0.0125, 0.01]),
    ],
)
@pytest.mark.parametrize("name", ["target_kl", "step_size", "damping", "learning_rate"])
def test_schedules_follow_the_progress(name, schedule, values):
    logged = {"target_kl": "kl_predicted"}.get(name, name)
    updates = train(make_agent("vector", line_search_max_iter=0, critic_solver="adam", **{name: schedule}), 4)
    assert [update[f"train/{logged}"] for update in updates] == pytest.approx(values, abs=1e-8)


@pytest.mark.parametrize("name", ["target_kl", "step_size", "damping", "learning_rate"])
def test_no_schedule_is_asked_beyond_the_end(name):
    asked = []

    def schedule(progress: float) -> float:
        asked.append(progress)
        return 0.01 + 0.01 * progress

    make_agent("vector", critic_solver="adam", **{name: schedule}).learn(
        2 * N_STEPS + 1
    )  # the third rollout is a whole one too
    assert max(asked) == 1.0
    assert min(asked) == 0.0


@pytest.mark.parametrize(
    ("space", "options", "damping"),
    [
        (spaces.Box(-1.0, 1.0, (6,), np.float32), {}, 0.6),
        (spaces.Box(-1.0, 1.0, (2, 2), np.float32), {}, 0.4),
        (spaces.MultiBinary(3), {}, 0.3),
        (spaces.MultiDiscrete([4, 5]), {}, 0.2),
        (spaces.Discrete(7), {}, 0.1),
        (spaces.Box(-1.0, 1.0, (6,), np.float32), {"relative_damping": True}, 0.1),
        (spaces.Box(-1.0, 1.0, (6,), np.float32), {"damping": 0.25}, 0.25),
    ],
)
def test_damping_is_a_tenth_for_each_action_dimension_unless_it_is_said(space, options, damping):
    model = NPG("MlpPolicy", TargetEnv(action_space=space), n_steps=N_STEPS, seed=0, device="cpu", **options)
    assert train(model, 1)[0]["train/damping"] == pytest.approx(damping)


@pytest.mark.parametrize(
    ("name", "value", "key", "expected"),
    [
        ("target_kl", 0.002, "kl_predicted", 0.002),
        ("target_kl", "lin_0.002", "kl_predicted", 0.002),
        ("damping", 0.7, "damping", 0.7),
    ],
)
def test_what_is_set_on_an_agent_counts_from_the_next_update_on(name, value, key, expected):
    agent = make_agent("vector", fisher_solver="exact", line_search_max_iter=0)
    assert train(agent, 1)[0][f"train/{key}"] != pytest.approx(expected)
    setattr(agent, name, value)
    if isinstance(value, str):
        agent._current_progress_remaining = 1.0
        agent.train()
        assert agent.logger.name_to_value[f"train/{key}"] == pytest.approx(expected)
    else:
        assert train(agent, 1)[0][f"train/{key}"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("environment", "options", "solver"),
    [
        ("vector", {}, "cg"),
        ("Dict", {}, "cg"),
        ("image", {}, "kfac"),
        ("image in a Dict", {}, "kfac"),
        (TargetEnv(spaces.Box(0, 1, (4, 4, 1)), spaces.Discrete(64)), {}, "kfac"),
        (TargetEnv(spaces.Box(0, 1, (4, 4, 1)), spaces.Discrete(65)), {}, "cg"),
        (TargetEnv(spaces.Box(0, 1, (4, 4, 1)), spaces.MultiDiscrete([50, 15])), {}, "cg"),
        ("vector", {"fisher_solver": "auto"}, "cg"),
        ("image", {"fisher_solver": "cg"}, "cg"),
    ],
)
def test_images_are_for_kfac_and_all_else_for_conjugate_gradient(environment, options, solver):
    model = make_agent(environment, **options)
    assert model.fisher_solver == solver
    assert type(model.fisher) is FISHER_SOLVERS[solver]


@pytest.mark.parametrize(
    ("environment", "options", "damping"),
    [
        ("image", {}, 0.001),
        ("image, Box", {}, 0.001),
        ("image in a Dict", {}, 0.001),
        ("Dict", {}, 0.1),
        ("image", {"fisher_solver": "cg"}, 0.01),
        ("image, Box", {"fisher_solver": "ekfac"}, 0.001),
        ("vector", {"fisher_solver": "kfac"}, 0.1),
        ("image", {"relative_damping": True}, 0.1),
        ("image", {"damping": 0.25}, 0.25),
    ],
)
def test_policies_of_images_are_damped_less(environment, options, damping):
    model = make_agent(environment, **options)
    d = 1 if "damping" in options or "relative_damping" in options else get_action_dim(model.action_space)
    assert train(model, 1)[0]["train/damping"] == pytest.approx(d * damping)


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"target_kl": 1e-4, "line_search_max_iter": 0}, 1.0 / 1.5),  # the model of the KL holds
        ({"step_size": 1e30, "line_search_max_iter": 1}, 1.5),  # no step is accepted
    ],
)
def test_adaptive_damping_follows_the_measured_kl(options, factor):
    updates = train(make_agent("vector", damping=0.1, adaptive_damping=True, **options), 4)
    assert [update["train/damping"] for update in updates] == pytest.approx([0.1 * factor**i for i in range(4)])


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_entropy_coefficient_decides_where_the_spread_goes(sign, use_sde):
    agent = make_agent("vector", ent_coef=sign * 100.0, use_sde=use_sde)
    start = float(agent.policy.log_std.detach().exp().mean())
    stds = [update["train/std"] for update in train(agent, 4)]
    assert (np.diff([start, *stds]) * sign > 0.0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_entropy_coefficient_decides_where_the_spread_of_squashed_actions_goes(sign):
    # A tanh of a wide Gaussian sits at its bounds: only a narrow one gains entropy by its spread.
    options = {"use_sde": True, "policy_kwargs": {"squash_output": True, "log_std_init": -2.0}}
    agent = make_agent("vector", n_steps=256, ent_coef=sign * 100.0, **options)
    stds = [update["train/std"] for update in train(agent, 4)]
    assert (np.diff([math.exp(-2.0), *stds]) * sign > 0.0).all()


def test_no_critic_updates_leave_the_critic():
    agent = make_agent("vector", n_critic_updates=0)
    critic = parameters(agent, critic=True)
    (update,) = train(agent, 1)
    assert math.isnan(update["train/value_loss"])
    assert update["train/is_line_search_success"] == 1.0
    assert all(th.equal(tensor, critic[name]) for name, tensor in parameters(agent, critic=True).items())


# What goes with it


@pytest.mark.parametrize(
    ("optimizer_class", "optimizer_kwargs"),
    [
        (th.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (th.optim.AdamW, {"weight_decay": 0.1}),
        (RMSpropTFLike, {"eps": 1e-5, "weight_decay": 0.1}),
    ],
)
def test_optimizer_moves_the_critic_alone(optimizer_class, optimizer_kwargs):
    kwargs = {"optimizer_class": optimizer_class, "optimizer_kwargs": optimizer_kwargs}
    # One rejected step: whatever moves the actor now is the optimizer.
    options = {"policy_kwargs": kwargs, "critic_solver": "adam", "learning_rate": 1e-2}
    agent = make_agent("vector", **options, step_size=1e3, line_search_max_iter=1, n_critic_updates=20)
    actor = parameters(agent, critic=False)
    first, second = train(agent)
    assert second["train/value_loss"] < first["train/value_loss"]
    assert all(th.equal(tensor, actor[name]) for name, tensor in parameters(agent, critic=False).items())

    assert_trains(make_agent("vector", **options))


class ScaledBuffer(RolloutBuffer):
    """A buffer of the user's own, with an argument of its own."""

    def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.scale = scale

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages *= self.scale


class HandsOutObjects(RolloutBuffer):
    """A buffer whose samples are of a class of the user's own."""

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Any:
        return SimpleNamespace(**super()._get_samples(batch_inds, env)._asdict())


class KeepsTensors(RolloutBuffer):
    """A buffer whose observations are a tensor, once there are all of them."""

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.observations = th.as_tensor(self.observations)  # type: ignore[assignment]

    def to_torch(self, array: Any, copy: bool = True) -> th.Tensor:
        return array if isinstance(array, th.Tensor) else super().to_torch(array, copy)


@pytest.mark.parametrize("buffer", [HandsOutObjects, KeepsTensors])
@pytest.mark.parametrize("env", ["vector", "Discrete"])
def test_buffers_of_ones_own_that_keep_and_hand_out_what_they_like(env, buffer):
    assert_trains(make_agent(env, rollout_buffer_class=buffer))


@pytest.mark.parametrize(("normalize_advantage", "ratio"), [(False, 10.0), (True, 1.0)])
def test_advantages_of_a_buffer_of_ones_own_are_used(normalize_advantage, ratio):
    options = {"normalize_advantage": normalize_advantage, "fisher_solver_kwargs": {"max_steps": 4, "rtol": 0.0}}
    one, ten = (
        train(make_agent(rollout_buffer_class=ScaledBuffer, rollout_buffer_kwargs={"scale": scale}, **options), 1)[0]
        for scale in (1.0, 10.0)
    )
    assert ten["train/natural_gradient_norm"] == pytest.approx(ratio * one["train/natural_gradient_norm"], rel=1e-3)


@pytest.mark.parametrize(
    "wrap", [VecNormalize, lambda env: VecFrameStack(env, 3)], ids=["VecNormalize", "VecFrameStack"]
)
def test_vec_wrappers_train(wrap):
    agent = make_agent(wrap(make_env("vector", 2)))
    assert_trains(agent)
    reward, _ = evaluate_policy(agent, agent.get_env(), n_eval_episodes=2)
    assert math.isfinite(reward)


def test_frame_stack_trains_on_images():
    assert_trains(make_agent(VecFrameStack(make_env("image"), 2), "CnnPolicy"), n_updates=1)


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_compiled_policy_trains_saves_and_loads(space, tmp_path):
    plain = make_agent(space, fast_paths=False)
    assert_trains(plain)
    compiled = make_agent(space)  # whose policy is no longer SB3's own, and so needs autograd
    compiled.policy = th.compile(compiled.policy, backend="eager")
    assert_trains(compiled)
    for name, tensor in plain.policy.state_dict().items():
        assert th.equal(compiled.policy.state_dict()[f"_orig_mod.{name}"], tensor)

    compiled.save(tmp_path / "agent")
    loaded = NPG.load(tmp_path / "agent", make_env(space), device="cpu")
    observations = loaded.get_env().reset()
    assert np.array_equal(
        loaded.predict(observations, deterministic=True)[0], compiled.predict(observations, deterministic=True)[0]
    )
    assert_trains(loaded)


@pytest.mark.parametrize("fast_paths", [True, False])
def test_policy_that_is_compiled_in_place_trains(fast_paths):
    plain = make_agent("vector", fast_paths=False)
    assert_trains(plain)
    agent = make_agent("vector", fast_paths=fast_paths)
    agent.policy.compile(backend="eager")
    assert_trains(agent)
    for name, tensor in plain.policy.state_dict().items():
        th.testing.assert_close(agent.policy.state_dict()[name], tensor)


def test_learning_goes_on_from_where_it_was():
    agent = make_agent("vector")
    train(agent, 2)
    agent.learn(N_STEPS, reset_num_timesteps=False)
    assert agent.num_timesteps == 3 * N_STEPS
    assert agent.logger.name_to_value["train/n_updates"] == 3


def test_agent_registered_by_the_environments_id_trains():
    agent = NPG("MlpPolicy", "CartPole-v1", n_steps=N_STEPS, batch_size=N_STEPS, seed=0, device="cpu")
    assert_trains(agent)


def test_arguments_reach_what_uses_them():
    agent = make_agent("vector", gamma=0.7, gae_lambda=0.6, stats_window_size=7)
    agent.learn(4 * N_STEPS)
    assert agent.rollout_buffer.gamma == 0.7
    assert agent.rollout_buffer.gae_lambda == 0.6
    assert len(agent.ep_info_buffer) == 7


def box(n_dimensions):
    return spaces.Box(-1.0, 1.0, (n_dimensions,), np.float32)


@pytest.mark.parametrize(
    ("action_space", "kwargs", "expected"),
    [
        (box(1), {}, 0.98),
        (box(3), {}, 0.98),
        (box(4), {}, 0.95),
        (box(6), {}, 0.95),
        (box(7), {}, 0.9),
        (spaces.Box(-1.0, 1.0, (2, 4), np.float32), {}, 0.9),
        (box(7), {"gae_lambda": 0.95}, 0.95),
        (box(7), {"gae_lambda": 0.0}, 0.0),
        (spaces.Discrete(2), {}, 0.95),
        (spaces.MultiBinary(9), {}, 0.95),
        (spaces.MultiDiscrete([2] * 9), {}, 0.95),
    ],
)
def test_lambda_of_gae_is_shorter_the_more_dimensions_actions_have(action_space, kwargs, expected, tmp_path):
    agent = make_agent(TargetEnv(action_space=action_space), **kwargs)
    assert agent.gae_lambda == agent.rollout_buffer.gae_lambda == expected
    agent.save(tmp_path / "agent")
    loaded = NPG.load(tmp_path / "agent", device="cpu")
    assert loaded.gae_lambda == loaded.rollout_buffer.gae_lambda == expected


# SB3's callbacks


def test_checkpoints_load(tmp_path):
    agent = make_agent("vector")
    agent.learn(
        2 * N_STEPS, CheckpointCallback(N_STEPS, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl_model_32_steps.zip", "rl_model_64_steps.zip"]
    assert NPG.load(tmp_path / "rl_model_64_steps", device="cpu").num_timesteps == 2 * N_STEPS


def test_evaluations_are_kept_with_the_best_agent(tmp_path):
    agent = make_agent("vector")
    evaluate = EvalCallback(
        make_env("vector", seed=1),
        eval_freq=N_STEPS,
        n_eval_episodes=2,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    agent.learn(2 * N_STEPS, evaluate)
    evaluations = np.load(tmp_path / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [N_STEPS, 2 * N_STEPS]
    assert NPG.load(tmp_path / "best_model", device="cpu").num_timesteps in evaluations["timesteps"]


@pytest.mark.parametrize(
    ("callback", "steps"),
    [
        (lambda: StopTrainingOnMaxEpisodes(5), 50),
        (lambda: _evaluation(callback_on_new_best=StopTrainingOnRewardThreshold(-1e9)), 40),
        (lambda: _evaluation(callback_after_eval=StopTrainingOnNoModelImprovement(0, min_evals=0)), 80),
        (lambda: lambda local, _: local["self"].num_timesteps < 45, 45),
        (lambda: CallbackList([LogEveryNTimesteps(16), StopTrainingOnMaxEpisodes(5)]), 50),
    ],
    ids=["max episodes", "reward threshold", "no improvement", "function", "list"],
)
def test_callbacks_stop_training_in_the_middle_of_a_rollout(callback, steps):
    agent = make_agent("vector")
    agent.learn(10 * N_STEPS, callback())
    assert agent.num_timesteps == steps
    assert agent._n_updates == steps // N_STEPS


class NeverBetter(EvalCallback):
    """Evaluates every agent the same."""

    def _on_step(self) -> bool:
        self.best_mean_reward = np.inf
        return super()._on_step()


def _evaluation(**kwargs: Any) -> EvalCallback:
    kind = NeverBetter if "callback_after_eval" in kwargs else EvalCallback
    return kind(make_env("vector", seed=1), eval_freq=40, n_eval_episodes=1, verbose=0, **kwargs)


def test_callbacks_every_so_many_steps_are_called():
    called = []

    class Note(StopTrainingOnMaxEpisodes):
        def _on_step(self) -> bool:
            called.append(self.num_timesteps)
            return True

    make_agent("vector").learn(2 * N_STEPS, CallbackList([EveryNTimesteps(20, Note(1)), LogEveryNTimesteps(16)]))
    assert called == [20, 40, 60]


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_progress_bar_trains(capsys):
    agent = make_agent("vector")
    agent.learn(2 * N_STEPS, progress_bar=True)
    assert agent._n_updates == 2
    shown = "".join(capsys.readouterr())
    assert "64/64" in shown


def test_tensorboard_has_the_figures(tmp_path):
    agent = make_agent("vector", tensorboard_log=str(tmp_path))
    agent.learn(3 * N_STEPS)
    agent.learn(N_STEPS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["NPG_1", "NPG_2"]
    events = EventAccumulator(str(tmp_path / "NPG_1"))
    events.Reload()
    # The last update is logged by the rollout after it.
    assert [event.step for event in events.Scalars("train/kl")] == [2 * N_STEPS, 3 * N_STEPS]
    assert set(events.Tags()["scalars"]) >= FIGURES - {"train/n_updates"} | {"train/std"}


@pytest.mark.parametrize(
    ("env", "chosen"),
    [
        ("vector", "fisher_solver='cg', damping=0.2, gae_lambda=0.98"),
        ("image", "fisher_solver='kfac', damping=0.001, gae_lambda=0.95"),
        ("Discrete", "fisher_solver='cg', damping=0.1, gae_lambda=0.95"),
    ],
)
def test_verbose_agent_tells_what_it_has_chosen(env, chosen, capsys):
    make_agent(env, verbose=0)
    assert capsys.readouterr().out == ""
    make_agent(env, verbose=1)
    assert f"Using {chosen}\n" in capsys.readouterr().out
    make_agent(env, verbose=1, damping="lin_0.3", gae_lambda=0.5, fisher_solver="diagonal")
    assert "Using fisher_solver='diagonal', damping='lin_0.3', gae_lambda=0.5\n" in capsys.readouterr().out


@pytest.mark.parametrize("verbose", [1, 2])
def test_verbose_agent_prints_its_figures(verbose, capsys):
    make_agent("vector", verbose=verbose).learn(2 * N_STEPS)
    assert "kl_predicted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("env", "policy", "options", "advised"),
    [
        ("vector", "MlpPolicy", {}, False),
        ("vector", "MlpPolicy", {"use_sde": True}, True),
        ("vector", "MlpPolicy", {"fast_paths": False}, True),
        ("MultiBinary", "MlpPolicy", {}, True),
        ("image", "CnnPolicy", {"fast_paths": False}, False),
    ],
)
def test_advice_on_the_device_is_for_small_networks_that_act_step_by_step_on_a_gpu(env, policy, options, advised):
    agent = make_agent(env, policy=policy, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent._maybe_recommend_cpu()
        assert not caught
        agent.device = th.device("cuda")  # no GPU is needed to be advised
        agent._maybe_recommend_cpu()
    assert [("device='cpu'" in str(one.message), one.category) for one in caught] == [(True, UserWarning)] * advised


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_line_search_keeps_the_kl_within_a_target_that_falls(space):
    updates = train(make_agent(space, target_kl="lin_1.0"), 8)
    assert any(update["train/line_search_steps"] > 1 for update in updates)
    for i, update in enumerate(updates, start=1):
        assert update["train/kl"] <= 1.0 - i / 8


def test_adaptive_damping_compares_the_kl_of_the_full_step(monkeypatch):
    """A search that has shortened the step says nothing about the model of the full one."""
    search = LineSearch(True, 0.5, 4, 0.0, 0.0, 0.0025, 0.01)
    monkeypatch.setattr("sb3_npg.npg.backtrack", lambda *_: search)
    agent = make_agent("vector", damping=0.1, adaptive_damping=True, target_kl=0.01)
    train(agent, 1)
    assert agent._damping_factor == 1.0


def test_entropy_loss_is_the_entropy_s_negative():
    (update,) = train(make_agent("Discrete"), 1)
    assert update["train/entropy_loss"] == pytest.approx(-math.log(3.0), abs=1e-3)


def test_explained_variance_is_the_critics():
    agent = make_agent("vector")
    (update,) = train(agent, 1)
    values, returns = agent.rollout_buffer.values, agent.rollout_buffer.returns
    assert update["train/explained_variance"] == pytest.approx(1.0 - np.var(returns - values) / np.var(returns))


def test_improvement_is_predicted_to_first_order():
    for update in train(make_agent("vector", n_steps=128, target_kl=1e-5, line_search_max_iter=0)):
        assert update["train/improvement"] == pytest.approx(update["train/improvement_predicted"], rel=0.05)


def test_rejected_step_is_predicted_to_improve_nothing():
    (update,) = train(make_agent("vector", step_size=1e3, line_search_max_iter=1), 1)
    assert update["train/improvement"] == update["train/improvement_predicted"] == 0.0


def test_std_is_the_mean_over_actions():
    agent = make_agent("vector", policy_kwargs={"net_arch": []})
    agent.policy.log_std.data = th.tensor([0.0, -3.0])
    agent.policy.log_std.requires_grad_(False)
    (update,) = train(agent, 1)
    assert update["train/std"] == pytest.approx(0.5 + 0.5 * math.exp(-3.0))


class Counting(IdentitySolver):
    """Notes how many rows the Fisher is a mean over."""

    def update(self, problem: Any) -> None:
        self.n_rows = problem.layers.n_rows


@pytest.mark.parametrize(("factor", "rows"), [(1, N_STEPS), (3, 11)])
def test_fisher_is_of_every_so_many_th_row(factor, rows):
    agent = make_agent("vector", sub_sampling_factor=factor)
    agent.fisher = Counting()
    train(agent, 1)
    assert agent.fisher.n_rows == rows


@pytest.mark.parametrize("critic_solver", ["gauss_newton", "adam"])
@pytest.mark.parametrize("fast_paths", [True, False])
def test_frozen_critic_stays_while_the_actor_learns(critic_solver, fast_paths):
    agent = make_agent("vector", critic_solver=critic_solver, fast_paths=fast_paths)
    for module in (agent.policy.mlp_extractor.value_net, agent.policy.value_net):
        module.requires_grad_(False)
    critic = parameters(agent, critic=True)
    for update in train(agent):
        assert update["train/is_line_search_success"] == 1.0
        assert update["train/skipped_updates"] == 0
        assert math.isnan(update["train/value_loss"])
    assert all(th.equal(tensor, critic[name]) for name, tensor in parameters(agent, critic=True).items())
