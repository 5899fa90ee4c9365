"""The search for hyperparameters draws arguments of NPG; numerical trouble ends a trial, and no study."""

import math
from contextlib import nullcontext

import gymnasium as gym
import numpy as np
import optuna
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_npg import NPG
from sb3_npg.zoo.commands import main
from sb3_npg.zoo.experiments import PruneSkippedUpdates, _pruning
from sb3_npg.zoo.search import convert_npg_params, sample_npg_params

ENV = "CartPole-v1"
SEARCH = ["train", "-optimize", "--no-optim-plots", "--eval-episodes", "1", "--sampler", "random", "--seed", "0"]
pytestmark = pytest.mark.filterwarnings("default")


#: What an environment's block may hold that not every draw goes with.
BLOCKS = (
    {},
    {"fisher_solver_kwargs": {"max_steps": 5, "preconditioner": "kfac"}, "critic_solver_kwargs": {"damping": 1.0}},
    {"fisher_solver": "kfac", "fisher_solver_kwargs": {"columns": "propagated"}, "critic_solver": "adam"},
    {"step_size": 0.1},
)


@given(seed=st.integers(0, 2**31 - 1), n_actions=st.sampled_from([0, 1]), block=st.sampled_from(BLOCKS))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_what_is_drawn_builds_an_agent(seed, n_actions, block):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    arguments = sample_npg_params(trial, n_actions, 1, {})
    NPG("MlpPolicy", "Pendulum-v1" if n_actions else ENV, device="cpu", **{**block, **arguments})
    assert convert_npg_params(trial.params) == arguments
    assert ("log_std_init" in arguments["policy_kwargs"]) == (n_actions > 0)
    assert {name: arguments[name] for name in ("n_steps", "gamma", "gae_lambda")} == trial.user_attrs


@pytest.mark.parametrize("critic_solver", ["gauss_newton", "adam"])
@pytest.mark.parametrize("fisher_solver", ["cg", "cg + kfac", "kfac", "ekfac"])
def test_what_is_drawn_goes_to_the_solver_that_takes_it(fisher_solver, critic_solver):
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    sample_npg_params(trial, 0, 1, {})
    drawn = {**trial.params, "fisher_solver": fisher_solver, "critic_solver": critic_solver}
    arguments = convert_npg_params(drawn)
    kwargs = arguments["fisher_solver_kwargs"]
    assert (kwargs and kwargs["max_steps"]) == (drawn["cg_max_steps"] if "cg" in fisher_solver else None)
    if critic_solver == "adam":
        assert (arguments["n_critic_updates"], arguments["critic_solver_kwargs"]) == (drawn["n_epochs"], None)
        assert arguments["learning_rate"] == drawn["learning_rate"]
        assert arguments["batch_size"] == 2 ** drawn["batch_size_pow"]
    else:
        assert arguments["n_critic_updates"] == drawn["critic_steps"]
        default = 10.0 * min(1.0, 100.0 * drawn["one_minus_gamma"])
        expected = pytest.approx(drawn["critic_damping_factor"] * default)
        assert arguments["critic_solver_kwargs"] == {"damping": expected}
        assert not {"learning_rate", "batch_size"} & set(arguments)


def test_every_trial_draws_from_one_space():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(20)]
    for trial in trials:
        sample_npg_params(trial, 2, 1, {})
    assert len({tuple(trial.params) for trial in trials}) == 1


@pytest.mark.parametrize(
    "error",
    [
        th.linalg.LinAlgError("singular"),
        FloatingPointError("overflow"),
        ValueError("NaN"),
        th.OutOfMemoryError("too large"),
    ],
)
def test_a_failing_trial_is_pruned(tmp_path, monkeypatch, capsys, error):
    monkeypatch.chdir(tmp_path)
    train, failures = NPG.train, [error]

    def failing_once(self):
        if failures:
            raise failures.pop()
        train(self)

    monkeypatch.setattr(NPG, "train", failing_once)
    assert main([*SEARCH, "--env", ENV, "-n", "64", "--n-trials", "2"]) == 0
    assert "Number of finished trials:  2" in capsys.readouterr().out


def test_a_trial_whose_agent_scores_no_number_is_pruned():
    with pytest.raises(optuna.TrialPruned, match="NaN"):
        _pruning(lambda *_: math.nan)(None, None)
    assert _pruning(lambda *_: -math.inf)(None, None) == -math.inf


@pytest.mark.parametrize(
    ("skipped", "updates", "pruned"), [(4, 4, False), (5, 5, True), (5, 10, True), (5, 11, False), (6, 11, True)]
)
def test_a_trial_is_pruned_when_half_of_its_updates_were_skipped(skipped, updates, pruned):
    agent, callback = NPG("MlpPolicy", ENV, device="cpu"), PruneSkippedUpdates()
    agent._n_skipped_updates, agent._n_updates = skipped, updates
    callback.init_callback(agent)
    with pytest.raises(optuna.TrialPruned, match=f"{skipped} of {updates}") if pruned else nullcontext():
        callback.on_rollout_start()


def test_a_study_s_own_error_is_its_own(tmp_path, monkeypatch):
    def broken(**kwargs):
        raise ValueError("no such storage")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(optuna, "create_study", broken)
    with pytest.raises(ValueError, match="no such storage") as raised:
        main([*SEARCH, "--env", ENV, "-n", "64", "--n-trials", "1"])
    assert raised.traceback[-1].name == "broken"


@pytest.mark.parametrize("named", ["null", "sb3_npg.callbacks.StaggerEpisodes", "[sb3_npg.callbacks.StaggerEpisodes]"])
def test_a_block_may_name_a_callback_or_several_or_none(tmp_path, monkeypatch, capsys, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yml").write_text(f"{ENV}: {{n_timesteps: 64, policy: MlpPolicy, callback: {named}}}\n")
    assert main([*SEARCH, "--env", ENV, "-conf", "mine.yml", "--n-trials", "1"]) == 0
    assert "Number of finished trials:  1" in capsys.readouterr().out


class NaNRewards(gym.Wrapper):
    """Every reward is NaN."""

    def __init__(self):
        super().__init__(gym.make(ENV))

    def step(self, action):
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, np.nan, terminated, truncated, info


def test_trials_whose_updates_are_skipped_are_pruned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(gym.registry, "NaNRewards-v0", gym.envs.registration.EnvSpec("NaNRewards-v0", NaNRewards))
    assert main([*SEARCH, "--env", "NaNRewards-v0", "-n", "20000", "--n-trials", "1"]) == 2
    assert "no trial came to its end" in capsys.readouterr().err
