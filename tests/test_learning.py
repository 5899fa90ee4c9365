"""NPG solves what it should: rewards far above those of the policy before training."""

from functools import partial
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import (
    IdentityEnv,
    IdentityEnvBox,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_npg import NPG
from tests.agents import seeded

# Each pays 1 for the right action at each of 100 steps.
IDENTITIES: dict[str, Any] = {
    "Box": lambda: IdentityEnvBox(eps=0.3),
    "Discrete": lambda: IdentityEnv(4),
    "MultiDiscrete": lambda: IdentityEnvMultiDiscrete(3),
    "MultiBinary": lambda: IdentityEnvMultiBinary(3),
}


def mean_reward(agent: NPG, env: Any, *, trained: bool) -> float:
    """Return the mean reward of 16 episodes; before training, of actions that are as good as random."""
    reward, _ = evaluate_policy(agent, env, n_eval_episodes=16, deterministic=trained)
    return float(reward)  # type: ignore[arg-type]


def identities(space: str, n_envs: int, seed: int) -> DummyVecEnv:
    def environment(i: int) -> gym.Env[Any, Any]:
        return Monitor(seeded(IDENTITIES[space](), seed + i))

    return DummyVecEnv([lambda i=i: environment(i) for i in range(n_envs)])


@pytest.mark.parametrize("solver", ["cg", "exact"])
@pytest.mark.parametrize(
    ("space", "steps", "random_level"),
    [("Box", 10_000, 35.0), ("Discrete", 6_000, 35.0), ("MultiDiscrete", 8_000, 20.0), ("MultiBinary", 6_000, 20.0)],
)
def test_right_action_is_learnt_in_every_action_space(space, steps, random_level, solver):
    agent = NPG(
        "MlpPolicy",
        identities(space, 4, seed=0),
        n_steps=128,
        batch_size=128,
        gamma=0.0,
        gae_lambda=0.0,
        fisher_solver=solver,
        target_kl=0.05,
        n_critic_updates=2,
        policy_kwargs={"net_arch": [16]},
        seed=0,
        device="cpu",
    )
    evaluation = identities(space, 1, seed=100)
    assert mean_reward(agent, evaluation, trained=False) < random_level
    agent.learn(steps)
    assert mean_reward(agent, evaluation, trained=True) > 95.0


def test_cartpole_is_learnt_in_any_unit_of_the_rewards():
    scaled = partial(gym.wrappers.TransformReward, func=lambda reward: 1000.0 * float(reward))
    env = make_vec_env("CartPole-v1", n_envs=8, seed=0, wrapper_class=scaled)
    agent = NPG("MlpPolicy", env, n_steps=128, seed=0, device="cpu").learn(30_000)
    assert mean_reward(agent, make_vec_env("CartPole-v1", n_envs=1, seed=100), trained=True) > 450.0


@pytest.mark.parametrize(
    ("name", "random_level", "solved", "steps", "options"),
    [
        ("CartPole-v1", 60.0, 475.0, 49_152, {"n_steps": 128, "gamma": 0.98}),
        ("Pendulum-v1", -900.0, -300.0, 98_304, {"n_steps": 256, "gamma": 0.9, "damping": 1e-3}),
    ],
)
def test_classic_control_is_solved(name, random_level, solved, steps, options):
    settings = {"target_kl": 0.05, "seed": 0, "device": "cpu", **options}
    agent = NPG("MlpPolicy", make_vec_env(name, 8, seed=0), **settings)
    evaluation = make_vec_env(name, 8, seed=100)
    assert mean_reward(agent, evaluation, trained=False) < random_level
    agent.learn(steps)
    assert mean_reward(agent, evaluation, trained=True) > solved
