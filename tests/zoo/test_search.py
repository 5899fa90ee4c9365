"""The search for hyperparameters draws arguments of NPG; numerical trouble ends a trial, and no study."""

import gymnasium as gym
import numpy as np
import optuna
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_npg import NPG
from sb3_npg.zoo.commands import main
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


def test_every_trial_draws_from_one_space():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(20)]
    for trial in trials:
        sample_npg_params(trial, 2, 1, {})
    assert len({tuple(trial.params) for trial in trials}) == 1


@pytest.mark.parametrize(
    "error", [th.linalg.LinAlgError("singular"), FloatingPointError("overflow"), ValueError("NaN")]
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


def test_a_block_may_name_no_callback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yml").write_text(f"{ENV}: {{n_timesteps: 64, policy: MlpPolicy, callback: null}}\n")
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
