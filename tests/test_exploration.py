"""The noise that a new policy begins with."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_npg import NPG
from tests.agents import N_STEPS, TargetEnv


def make_gaussian(n_dimensions: int, policy: Any = "MlpPolicy", **kwargs: Any) -> NPG:
    env: gym.Env[Any, Any] = TargetEnv(action_space=spaces.Box(-1.0, 1.0, (n_dimensions,), np.float32))
    return NPG(policy, env, n_steps=N_STEPS, seed=0, device="cpu", **kwargs)


@pytest.mark.parametrize(("n_dimensions", "as_of"), [(1, 1), (2, 2), (3, 2), (8, 2)])
def test_noise_has_the_one_norm_of_two_dimensions_at_sigma_one(n_dimensions, as_of):
    distribution = make_gaussian(n_dimensions).policy.get_distribution(th.zeros(100_000, 3))
    noise = (distribution.get_actions() - distribution.mode()).detach()
    # E|ε| of a standard normal ε is √(2/π), its variance 1 − 2/π.
    sigma = as_of / n_dimensions
    standard_error = sigma * math.sqrt(n_dimensions * (1 - 2 / math.pi) / 100_000)
    expected = as_of * math.sqrt(2 / math.pi)
    assert float(noise.abs().sum(dim=1).mean()) == pytest.approx(expected, abs=5 * standard_error)


@pytest.mark.parametrize("log_std_init", [0.0, -2.0])
def test_what_the_user_says_stays(log_std_init):
    policy = make_gaussian(4, policy_kwargs={"log_std_init": log_std_init}).policy
    assert (policy.log_std == log_std_init).all()


class Loud(ActorCriticPolicy):
    """A policy that has chosen."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs, log_std_init=0.7)


def test_what_the_class_of_the_policy_says_stays():
    assert (make_gaussian(4, Loud).policy.log_std == th.tensor(0.7)).all()


class Uneven(ActorCriticPolicy):
    """A policy that sets its parameter itself, beside SB3's argument."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        with th.no_grad():
            self.log_std[1] = -1.0


def test_what_the_class_of_the_policy_sets_stays():
    policy = make_gaussian(4, Uneven).policy
    assert th.equal(policy.log_std.detach(), th.tensor([0.0, -1.0, 0.0, 0.0]))
    assert policy.log_std_init == 0.0


def test_state_dependent_exploration_begins_as_in_sb3():
    assert (make_gaussian(4, use_sde=True).policy.log_std == 0.0).all()


def test_policy_by_itself_remembers_its_start(tmp_path):
    policy = make_gaussian(4).policy
    policy.save(tmp_path / "policy")
    loaded = ActorCriticPolicy.load(tmp_path / "policy")
    assert loaded.log_std_init == pytest.approx(math.log(0.5))
    assert th.equal(loaded.log_std, policy.log_std)


def test_loaded_agent_keeps_the_noise_that_it_has_learnt(tmp_path):
    agent = make_gaussian(4).learn(2 * N_STEPS)
    agent.save(tmp_path / "agent")
    loaded = NPG.load(tmp_path / "agent", policy_kwargs={})
    assert loaded.policy_kwargs == agent.policy_kwargs == {}
    assert th.equal(loaded.policy.log_std, agent.policy.log_std)
    assert not (agent.policy.log_std == math.log(0.5)).any()
