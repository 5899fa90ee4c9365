"""The seed decides everything, and nothing else does."""

import random
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_npg import NPG
from sb3_npg.solvers import FISHER_SOLVERS
from tests.agents import make_agent, make_env, same, snapshot, train

KINDS: dict[str, dict[str, Any]] = {
    "Box": {"env": "Box"},
    "Discrete": {"env": "Discrete"},
    "MultiDiscrete": {"env": "MultiDiscrete"},
    "MultiBinary": {"env": "MultiBinary"},
    "Dict, every third row": {"env": "Dict", "sub_sampling_factor": 3},
    "gSDE": {"env": "vector", "use_sde": True, "sde_sample_freq": 4},
    "gSDE, squashed": {"env": "vector", "use_sde": True, "policy_kwargs": {"squash_output": True}, "ent_coef": 0.01},
}
every_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


def run(n_updates: int = 3, **options: Any) -> NPG:
    agent = make_agent(**options)
    train(agent, n_updates)
    return agent


def stir_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    th.manual_seed(seed)


@every_kind
def test_same_seed_gives_the_same_agent_bit_for_bit(options):
    runs = []
    for stirred in (1, 2):
        stir_generators(stirred)  # the state of the generators before does not matter
        agent = run(**options)
        observations = make_env(options["env"], n_envs=8, seed=3).reset()
        deterministic, _ = agent.predict(observations, deterministic=True)
        sampled, _ = agent.predict(observations, deterministic=False)
        runs.append((snapshot(agent), deterministic, sampled))
    assert same(runs[0][0], runs[1][0])
    assert np.array_equal(runs[0][1], runs[1][1])
    assert np.array_equal(runs[0][2], runs[1][2])


@every_kind
def test_another_seed_gives_another_agent(options):
    one, other = run(1, **options), run(1, **{**options, "seed": 1})
    for name, parameter in one.policy.named_parameters():
        if parameter.dim() > 1:
            assert not th.equal(parameter, dict(other.policy.named_parameters())[name])


def test_same_weights_and_another_seed_give_another_run():
    one, other = make_agent("Box"), make_agent("Box", seed=1)
    other.policy.load_state_dict(one.policy.state_dict())
    for agent in (one, other):
        agent.set_random_seed(agent.seed)
        train(agent, 1)
    assert not same(snapshot(one), snapshot(other))


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("solver", FISHER_SOLVERS)
def test_policy_step_draws_nothing_from_torch(solver, use_sde):
    agent = make_agent(
        fisher_solver=solver,
        use_sde=use_sde,
        sub_sampling_factor=2,
        policy_kwargs={"net_arch": [8]},
        n_critic_updates=0,
    )
    train(agent, 1)
    generator = th.get_rng_state()
    actor = snapshot(agent)
    agent.train()
    assert th.equal(th.get_rng_state(), generator)
    assert not same(snapshot(agent), actor)


def test_seed_decides_where_the_environment_starts():
    observations = []
    for seed in (4, 4, 5):
        agent = NPG("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, seed=seed, device="cpu").learn(64)
        observations.append(agent.rollout_buffer.observations)
    assert np.array_equal(observations[0], observations[1])
    assert not np.array_equal(observations[0], observations[2])
