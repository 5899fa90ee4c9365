"""NaN and infinity: the run goes on, the update is skipped, nothing that it would have moved has moved."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from torch.distributions import Normal

from sb3_npg import NPG
from sb3_npg.acting.collecting import FiniteForward
from sb3_npg.numerics import NumericalFailure, all_finite, refusals_as_failures
from sb3_npg.observations import finite_observations
from sb3_npg.rollout import normalized, require_finite_rollout
from sb3_npg.solvers import FISHER_SOLVERS, FisherSolver, Problem, Solution
from tests.agents import (
    N_STEPS,
    POLICIES,
    NormalizingExtractor,
    Snapshots,
    TargetEnv,
    dict_space,
    make_agent,
    parameters,
    same,
    seeded,
    snapshot,
    train,
)

NAN, INFINITY = float("nan"), float("inf")
ACTION_SPACES = (
    spaces.Box(-1.0, 1.0, (2,), np.float32),
    spaces.Discrete(3),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiBinary(3),
)


class FaultyEnv(gym.Wrapper[Any, Any, Any, Any]):
    """
    Sends a value that is no number at some of its steps.

    :param env: the environment
    :param where: "reward" or "observation"
    :param value: what to send
    :param steps: when, counted from 1
    """

    def __init__(self, env: gym.Env[Any, Any], where: str, value: float, steps: tuple[int, ...]):
        super().__init__(env)
        self.where, self.value, self.steps = where, value, steps
        self.n_steps = 0

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.n_steps += 1
        if self.n_steps in self.steps and self.where == "reward":
            reward = self.value
        elif self.n_steps in self.steps:
            observation = {**observation} if isinstance(observation, dict) else observation.copy()
            (observation["vector"] if isinstance(observation, dict) else observation)[1] = self.value
        return observation, reward, terminated, truncated, info


def faulty_env(kind: str, where: str, value: float, *steps: int, actions: Any = None) -> FaultyEnv:
    return FaultyEnv(seeded(TargetEnv(dict_space() if kind == "Dict" else None, actions)), where, value, steps)


def run(agent: NPG, n_updates: int) -> tuple[Snapshots, list[str]]:
    """Train, and return the agent's states and the messages of the warnings."""
    states = Snapshots()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent.learn(n_updates * agent.n_steps * agent.n_envs, states)
    assert all(warning.category is RuntimeWarning for warning in caught)
    return states, [str(warning.message) for warning in caught]


def moved(states: Snapshots) -> list[bool]:
    return [not same(before, after) for before, after in zip(states.before, states.after, strict=True)]


# Environments


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY], ids=str)
@pytest.mark.parametrize("where", ["reward", "observation"])
@pytest.mark.parametrize("kind", ["vector", "Dict"])
def test_bad_rollout_moves_nothing_and_the_next_ones_train(kind, where, value):
    env = faulty_env(kind, where, value, N_STEPS + 5)
    states, messages = run(make_agent(env, POLICIES.get(kind)), 4)

    assert moved(states) == [True, False, True, True]
    assert [update["train/skipped_updates"] for update in states.updates] == [0, 1, 1, 1]
    assert [update["train/n_updates"] for update in states.updates] == [1, 2, 3, 4]
    assert "train/kl" not in states.updates[1]
    assert "train/kl" in states.updates[2]
    (message,) = messages
    assert message.startswith(f"NPG skipped an update at {2 * N_STEPS} steps")
    assert f"the environment's {where}s" in message
    assert "VecCheckNan" in message


@pytest.mark.parametrize("actions", ACTION_SPACES, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("where", ["reward", "observation"])
def test_bad_rollout_moves_nothing_in_every_action_space(where, actions):
    env = faulty_env("vector", where, NAN, 5, actions=actions)
    states, messages = run(make_agent(env), 2)
    assert moved(states) == [False, True]
    assert len(messages) == 1


class OverflowingEnv(gym.Env[np.ndarray, Any]):
    """Observes a finite number that a network overflows on, and refuses an action that is not finite."""

    def __init__(self, dtype: Any, value: float, actions: Any):
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), dtype)
        self.action_space = actions
        self._value = value
        self._n_steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, self.observation_space.dtype), {}

    def step(self, action):
        assert np.isfinite(action).all()
        self._n_steps += 1
        value = self._value if self._n_steps == 5 else 0.1 * self._n_steps
        return np.full(3, value, self.observation_space.dtype), float(self._n_steps % 3), False, False, {}


@pytest.mark.parametrize("validates", [True, False])  # torch.compile switches it off
@pytest.mark.parametrize("fast_paths", [True, False])
@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("actions", ACTION_SPACES, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize(("dtype", "value"), [(np.float64, 1e300), (np.float32, 3e38)], ids=["float64", "float32"])
def test_actions_are_finite_where_a_network_overflows(
    dtype, value, actions, use_sde, fast_paths, validates, monkeypatch
):
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", validates)
    if use_sde and not isinstance(actions, spaces.Box):
        pytest.skip("gSDE is for continuous actions")
    env = OverflowingEnv(dtype, value, actions)
    relu = {"activation_fn": nn.ReLU}
    agent = make_agent(env, use_sde=use_sde, fast_paths=fast_paths, policy_kwargs=relu)
    with th.no_grad():
        agent.policy.mlp_extractor.policy_net[0].weight.mul_(100.0)  # its sums overflow in single precision
    states, messages = run(agent, 2)
    assert [update["train/skipped_updates"] for update in states.updates] == [1, 1]
    assert len(messages) == 1
    assert all(tensor.isfinite().all() for tensor in agent.policy.parameters())


@pytest.mark.parametrize("options", [{"use_sde": True, "sde_sample_freq": 4}, {"ent_coef": 0.01}], ids=str)
@pytest.mark.parametrize("where", ["reward", "observation"])
def test_bad_rollout_moves_nothing_with_other_options(where, options):
    states, messages = run(make_agent(faulty_env("vector", where, NAN, 5), **options), 2)
    assert moved(states) == [False, True]
    assert len(messages) == 1


@pytest.mark.parametrize("where", ["reward", "observation"])
def test_bad_rollout_leaves_running_averages(where):
    extractor = {"features_extractor_class": NormalizingExtractor}
    states, _ = run(make_agent(faulty_env("vector", where, NAN, 5), policy_kwargs=extractor), 2)
    assert any("running_mean" in name for name in states.before[0]["policy"])
    assert moved(states) == [False, True]


@pytest.mark.parametrize("where", ["reward", "observation"])
def test_compiled_policy_survives_a_bad_rollout(where):
    agent = make_agent(faulty_env("vector", where, NAN, 5))
    agent.policy = th.compile(agent.policy, backend="eager")
    states, messages = run(agent, 2)
    assert moved(states) == [False, True]
    assert sum(message.startswith("NPG skipped an update") for message in messages) == 1


def test_observation_between_two_rollouts_skips_both():
    # It ends the bootstrapped return of the first and begins the second.
    states, messages = run(make_agent(faulty_env("vector", "observation", NAN, N_STEPS)), 3)
    assert moved(states) == [False, False, True]
    assert states.updates[-1]["train/skipped_updates"] == 2
    assert len(messages) == 1


@pytest.mark.parametrize("step", [10, 20])
def test_observation_at_the_end_of_an_episode_skips_one_update(step):
    # The return of an episode that ends by its time limit holds the value of that observation.
    states, messages = run(make_agent(faulty_env("vector", "observation", NAN, step)), 2)
    assert moved(states) == [False, True]
    (message,) = messages
    assert "observation" in message


def test_one_bad_environment_of_three_skips_the_update():
    good = [lambda i=i: seeded(TargetEnv(), i) for i in range(2)]
    states, messages = run(make_agent(DummyVecEnv([*good, lambda: faulty_env("vector", "reward", NAN, 5)])), 2)
    assert moved(states) == [False, True]
    assert len(messages) == 1


def test_environment_that_never_sends_a_number_ends_no_run():
    agent = make_agent(faulty_env("vector", "reward", NAN, *range(10 * N_STEPS)))
    states, messages = run(agent, 4)
    assert moved(states) == [False] * 4
    assert states.updates[-1]["train/skipped_updates"] == 4
    assert len(messages) == 1


@pytest.mark.parametrize("critic_solver", ["gauss_newton", "adam"])
@pytest.mark.parametrize("size", [1e20, 1e30, 3e38])
def test_rewards_too_large_for_the_critic_do_not_poison_it(size, critic_solver):
    # Finite rewards whose squares are not.
    agent = make_agent(faulty_env("vector", "reward", size, 5), critic_solver=critic_solver)
    states, messages = run(agent, 3)
    assert same(
        [states.before[0]["optimizer"], _critic(states.before[0])],
        [states.after[0]["optimizer"], _critic(states.after[0])],
    )
    assert len(messages) == 1
    assert moved(states)[1:] == [True, True]
    assert all(th.isfinite(tensor).all() for tensor in agent.policy.state_dict().values())


def _critic(state: dict[str, Any]) -> dict[str, th.Tensor]:
    return {name: tensor for name, tensor in state["policy"].items() if "value_net" in name}


# Solvers


class FailingSolver(FisherSolver):
    """
    Fails below some damping; above it, returns the gradient.

    :param below: the damping
    :param how: kind of the failure
    """

    def __init__(self, below: float = INFINITY, how: str = "ArithmeticError"):
        super().__init__()
        self.below, self.how = below, how
        self.asked: list[float] = []

    def solve(self, problem: Problem, gradient: th.Tensor, damping: float) -> Solution:
        self.asked.append(damping)
        if damping >= self.below:
            return Solution(gradient.clone(), {})
        if self.how == "ArithmeticError":
            raise ArithmeticError("no pivot")
        if self.how == "LinAlgError":
            raise th.linalg.LinAlgError("no pivot")
        return Solution({"NaN": gradient * NAN, "zero": gradient * 0.0, "descent": -gradient}[self.how], {})


every_failure = pytest.mark.parametrize("how", ["ArithmeticError", "LinAlgError", "NaN", "zero", "descent"])


@pytest.fixture
def _failing(monkeypatch):
    monkeypatch.setitem(FISHER_SOLVERS, "failing", FailingSolver)


@every_failure
@pytest.mark.parametrize(
    ("damping", "below", "found"), [(0.1, 0.5, 1.0), (0.1, 50.0, 100.0), (0.0, 1e-6, 1e-4), (0.1, 0.1, 0.1)]
)
@pytest.mark.usefixtures("_failing")
def test_failing_solver_is_asked_again_with_more_damping(how, damping, below, found):
    agent = make_agent(fisher_solver="failing", fisher_solver_kwargs={"below": below, "how": how}, damping=damping)
    for update in train(agent):
        assert update["train/damping"] == pytest.approx(found)
        assert update["train/is_line_search_success"] == 1.0
        assert update["train/skipped_updates"] == 0
    # The next update starts from the user's damping again.
    assert agent.fisher.asked[0] == agent.fisher.asked[len(agent.fisher.asked) // 2] == damping


@every_failure
@pytest.mark.usefixtures("_failing")
def test_solver_that_always_fails_leaves_the_actor_and_the_critic_trains(how):
    agent = make_agent(fisher_solver="failing", fisher_solver_kwargs={"how": how}, damping=0.1)
    actor, critic = parameters(agent, critic=False), parameters(agent, critic=True)
    states, messages = run(agent, 3)

    assert same(parameters(agent, critic=False), actor)
    assert not same(parameters(agent, critic=True), critic)
    assert [update["train/skipped_updates"] for update in states.updates] == [1, 2, 3]
    assert all(np.isfinite(update["train/value_loss"]) for update in states.updates)
    (message,) = messages
    assert "no natural gradient up to damping 100" in message


@every_failure
@pytest.mark.usefixtures("_failing")
def test_solver_that_always_fails_leaves_running_averages(how):
    extractor = {"features_extractor_class": NormalizingExtractor}
    kwargs = {"how": how}
    agent = make_agent(
        fisher_solver="failing", fisher_solver_kwargs=kwargs, policy_kwargs=extractor, n_critic_updates=0
    )
    states, _ = run(agent, 1)
    assert moved(states) == [False]


@pytest.mark.parametrize("search", [0, 10])
def test_step_to_a_policy_that_is_no_number_is_taken_back(search):
    agent = make_agent(step_size=1e30, line_search_max_iter=search)
    actor = parameters(agent, critic=False)
    states, messages = run(agent, 2)
    assert same(parameters(agent, critic=False), actor)
    # A search that finds nothing is an answer, a full step that cannot be taken a failure.
    assert [update["train/skipped_updates"] for update in states.updates] == ([1, 2] if search == 0 else [0, 0])
    assert len(messages) == (1 if search == 0 else 0)


# Policies and advantages


class ConstantEnv(TargetEnv):
    """Pays the same for everything."""

    def step(self, action: Any) -> Any:
        observation, _, *others = super().step(action)
        return observation, 2.0, *others


def agent_without_advantages(action_space: Any = None, **kwargs: Any) -> NPG:
    """Build an agent whose critic knows what it will get."""
    env = seeded(ConstantEnv(action_space=action_space))
    agent = make_agent(env, gamma=0.0, n_critic_updates=0, **kwargs)
    with th.no_grad():
        agent.policy.value_net.weight.zero_()
        agent.policy.value_net.bias.fill_(2.0)
    return agent


@pytest.mark.parametrize("normalize_advantage", [True, False])
@pytest.mark.parametrize("action_space", [None, spaces.Discrete(3)], ids=["Box", "Discrete"])
def test_advantages_of_zero_move_nothing(action_space, normalize_advantage):
    agent = agent_without_advantages(action_space, normalize_advantage=normalize_advantage)
    states, messages = run(agent, 2)
    assert not agent.rollout_buffer.advantages.any()
    assert moved(states) == [False, False]
    (message,) = messages
    assert "gradient is zero" in message


def test_advantages_of_zero_leave_the_entropy_bonus():
    agent = agent_without_advantages(ent_coef=1.0)
    start = float(agent.policy.log_std.detach().exp().mean())
    (update,) = train(agent, 1)
    assert update["train/std"] > start
    assert update["train/skipped_updates"] == 0


@pytest.mark.parametrize("logit", [30.0, 1e4, 1e30])
@pytest.mark.parametrize("space", ["Discrete", "MultiDiscrete", "MultiBinary"])
def test_saturated_policy_keeps_going(space, logit):
    """A categorical whose other probabilities are zero in single precision has no gradient."""
    agent = make_agent(space)
    with th.no_grad():
        agent.policy.action_net.bias.copy_(th.linspace(-logit, logit, len(agent.policy.action_net.bias)))
    actor, critic = (parameters(agent, critic=critic) for critic in (False, True))
    run(agent, 3)
    has_gradient = space == "MultiBinary" or logit < 100.0  # the middle one of three Bernoullis is not saturated
    assert agent._n_skipped_updates == (0 if has_gradient else 3)
    assert has_gradient or same(parameters(agent, critic=False), actor)
    assert not same(parameters(agent, critic=True), critic)
    assert all(th.isfinite(tensor).all() for tensor in agent.policy.state_dict().values())


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("log_std", [-60.0, -30.0, 30.0])
def test_extreme_spread_keeps_going(log_std, use_sde):
    agent = make_agent(use_sde=use_sde, policy_kwargs={"log_std_init": log_std})
    actor, critic = (parameters(agent, critic=critic) for critic in (False, True))
    run(agent, 3)
    trains = use_sde or log_std > 0.0  # gSDE's σ is at least 1e-3; 1/σ² of others overflows
    assert agent._n_skipped_updates == (0 if trains else 3)
    assert same(parameters(agent, critic=False), actor) != trains
    assert not same(parameters(agent, critic=True), critic)
    assert all(th.isfinite(tensor).all() for tensor in agent.policy.state_dict().values())


def test_skips_are_counted_across_files(tmp_path):
    agent = make_agent(faulty_env("vector", "reward", NAN, 5))
    run(agent, 2)
    agent.save(tmp_path / "agent")
    loaded = NPG.load(tmp_path / "agent", faulty_env("vector", "reward", NAN, 5), device="cpu")
    states, messages = run(loaded, 2)
    assert [update["train/skipped_updates"] for update in states.updates] == [2, 2]
    assert len(messages) == 1  # once more in each run
    assert not same(snapshot(loaded), snapshot(agent))


def test_damping_that_a_schedule_makes_negative_skips_the_policy_step():
    agent = make_agent("vector", damping=lambda progress: 0.1 * (2.0 * progress - 1.0))
    acting = parameters(agent, critic=False)
    with pytest.warns(RuntimeWarning, match=r"`damping` is -0\.1 at a progress of 0"):
        agent.learn(N_STEPS)
    assert same(parameters(agent, critic=False), acting)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_interrupts_an_update_leaves_the_agent_as_it_was(error, monkeypatch):
    agent = make_agent("vector")
    train(agent, 1)
    before = snapshot(agent)

    def interrupted(*_args: Any) -> None:
        assert not same(snapshot(agent), before)  # the full step is taken unseen
        raise error

    monkeypatch.setattr("sb3_npg.npg.backtrack", interrupted)
    with pytest.raises(error):
        agent.train()
    assert same(snapshot(agent), before)


@pytest.mark.parametrize("fast_paths", [True, False], ids=["by hand", "autograd"])
@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.SGD])
def test_what_interrupts_the_critic_leaves_it_as_it_was(optimizer, fast_paths, monkeypatch):
    """Also what the optimizer remembers, and which flags it has."""
    kwargs = {"optimizer_class": optimizer}
    options = {"critic_solver": "adam", "n_critic_updates": 5, "policy_kwargs": kwargs, "fast_paths": fast_paths}
    agent = make_agent("vector", **options)
    train(agent, 2)
    monkeypatch.setattr("sb3_npg.npg.backtrack", fail)  # the policy stays too
    critic = parameters(agent, critic=True)
    state = copy.deepcopy(agent.policy.optimizer.state_dict())
    steps: list[None] = []
    step = optimizer.step

    def interrupted(self: th.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        steps.append(None)
        if len(steps) == 3:
            assert not same(parameters(agent, critic=True), critic)
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(optimizer, "step", interrupted)
    with pytest.warns(RuntimeWarning, match="skipped"), pytest.raises(KeyboardInterrupt):
        agent.train()
    assert same(parameters(agent, critic=True), critic)
    after = agent.policy.optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"]
    assert after["state"].keys() == state["state"].keys()
    for index, kept in state["state"].items():
        for name, value in kept.items():
            assert after["state"][index][name] is value is None or th.equal(after["state"][index][name], value)
    assert not any(module.training for module in agent.policy.modules())


def fail(*_args: Any) -> None:
    raise NumericalFailure("on purpose")


def test_a_full_step_that_is_not_finite_raises_the_adaptive_damping():
    agent = make_agent("vector", adaptive_damping=True, line_search_max_iter=0, step_size=1e30)
    with pytest.warns(RuntimeWarning, match="after the full step is not finite"):
        agent.learn(2 * N_STEPS)
    assert agent._damping_factor == pytest.approx(1.5**2)


@pytest.mark.parametrize("value", [0.0, 0.1, 100.3, -1e-7])
@pytest.mark.parametrize("n_rows", [1000, 2048])
def test_equal_advantages_are_normalised_to_zeros(value, n_rows):
    advantages = th.full((n_rows,), value)
    assert not normalized(advantages).any()
    advantages[0] += 1.0
    assert normalized(advantages).std() == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [1e-8, 1.0])
def test_advantages_are_normalised_as_in_sb3(scale):
    advantages = scale * th.randn(20)
    expected = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    th.testing.assert_close(normalized(advantages), expected)


def test_a_frozen_actor_stays_while_the_critic_learns():
    agent = make_agent("vector")
    train(agent, 1)
    frozen = [*agent.policy.mlp_extractor.policy_net.parameters(), *agent.policy.action_net.parameters()]
    for parameter in (*frozen, agent.policy.log_std):
        parameter.requires_grad_(False)
    acting, critic = parameters(agent, critic=False), parameters(agent, critic=True)
    (update,) = train(agent, 1)
    assert update["train/skipped_updates"] == 0
    assert same(parameters(agent, critic=False), acting)
    assert not same(parameters(agent, critic=True), critic)
    for parameter in frozen:
        parameter.requires_grad_(True)
    train(agent, 1)
    assert not same(parameters(agent, critic=False), acting)


def test_damping_that_is_not_adaptive_stays():
    agent = make_agent("vector", damping=0.1, line_search_max_iter=0, step_size=1e30)
    with pytest.warns(RuntimeWarning, match="after the full step is not finite"):
        agent.learn(2 * N_STEPS)
    assert agent._damping_factor == 1.0


def test_numbers_whose_squares_overflow_are_finite():
    assert all_finite(th.full((3,), 3e38))
    assert not all_finite(th.ones(3), th.tensor([1.0, INFINITY]))
    assert not all_finite(th.tensor([NAN]))


def test_what_holds_no_number_is_finite():
    assert all_finite()
    assert all_finite(th.zeros(0))
    assert all_finite(th.zeros(0), th.ones(2), th.tensor([3]))
    assert not all_finite(th.zeros(0), th.tensor([NAN]))


REFUSED: dict[str, Callable[[], Any]] = {
    "parameter": lambda: Normal(th.tensor(NAN), 1.0, validate_args=True),
    "value": lambda: Normal(0.0, 1.0, validate_args=True).log_prob(th.tensor(NAN)),
    "Bernoulli": lambda: th.bernoulli(th.tensor([NAN])),
    "categorical": lambda: th.multinomial(th.tensor([NAN, 1.0]), 1),
    "all improbable": lambda: th.multinomial(th.zeros(2), 1),
    "normal": lambda: th.normal(th.zeros(1), th.tensor([NAN])),
}


@pytest.mark.parametrize("draw", REFUSED.values(), ids=REFUSED)
def test_what_torch_refuses_to_draw_from_is_a_numerical_failure(draw):
    with pytest.raises(NumericalFailure, match="distribution is not finite"), refusals_as_failures():
        draw()
    with pytest.raises(RuntimeError, match="else"), refusals_as_failures():
        raise RuntimeError("something else")


@pytest.mark.parametrize("where", ["reward", "observation"])
def test_bad_rollout_moves_nothing_where_the_optimizer_has_a_state(where):
    states, messages = run(make_agent(faulty_env("vector", where, NAN, N_STEPS + 5), critic_solver="adam"), 3)
    assert moved(states) == [True, False, True]
    assert len(messages) == 1


def test_likely_action_of_zeros_is_the_likely_one():
    asked = []

    def forward(obs: th.Tensor, deterministic: bool = False) -> Any:
        asked.append(deterministic)
        return 10.0 * obs, obs, obs

    for deterministic in (True, False):
        FiniteForward(forward, spaces.Box(-1.0, 1.0, (3,)))(th.full((1, 3), 3e38), deterministic=deterministic)
        FiniteForward(forward, spaces.Box(-1.0, 1.0, (3,)))(th.full((1, 3), 3e38), deterministic)
    assert asked == 4 * [True] + 4 * [False]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("observations", "the environment's observations"),
        ("rewards", "the environment's rewards"),
        ("actions", "the actions' log-probabilities"),
        ("log_probs", "the actions' log-probabilities"),
        ("advantages", "the advantages"),
        ("returns", "the advantages"),
    ],
)
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY], ids=str)
def test_every_array_of_a_rollout_is_looked_at(name, words, value):
    agent = make_agent("vector")
    train(agent, 1)
    require_finite_rollout(agent.rollout_buffer)
    getattr(agent.rollout_buffer, name).flat[3] = value
    with pytest.raises(NumericalFailure, match=f"^{words}"):
        require_finite_rollout(agent.rollout_buffer)


@pytest.mark.parametrize("keep", [np.ndarray.tolist, th.as_tensor], ids=["list", "tensor"])
@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_a_buffer_of_ones_own_may_keep_its_arrays_otherwise(keep, value):
    agent = make_agent("vector")
    train(agent, 1)
    good = agent.rollout_buffer.observations.copy()
    agent.rollout_buffer.observations = keep(good)
    require_finite_rollout(agent.rollout_buffer)
    good.flat[3] = value
    agent.rollout_buffer.observations = keep(good)
    with pytest.raises(NumericalFailure, match=r"^the environment's observations"):
        require_finite_rollout(agent.rollout_buffer)


def test_action_that_is_not_finite_is_the_one_for_zeros():
    acted = FiniteForward(lambda obs: (10.0 * obs, obs, obs), spaces.Box(-1.0, 1.0, (3,)))(th.full((1, 3), 3e38))
    assert not acted[0].any()


@pytest.mark.parametrize("critic", ["adam", "gauss_newton"])
@pytest.mark.parametrize("shared", [True, False])
def test_averages_that_overflow_are_put_back(critic, shared):
    # A finite observation whose variance is not, which batch normalisation makes finite values of.
    extractor = {"features_extractor_class": NormalizingExtractor, "share_features_extractor": shared}
    agent = make_agent(faulty_env("vector", "observation", 3e38, 5), policy_kwargs=extractor, critic_solver=critic)
    run(agent, 3)
    assert agent._n_skipped_updates == 1
    assert all(th.isfinite(tensor).all() for tensor in agent.policy.state_dict().values())


class Reassigning(BaseFeaturesExtractor):
    """Keeps averages in buffers that it replaces, not writes to."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, 3)
        self.register_buffer("variance", th.ones(observation_space.shape))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        if self.training:
            self.variance = 0.9 * self.variance + 0.1 * observations.square().mean(dim=0)
        return observations / (self.variance + 1e-3).sqrt()


@pytest.mark.parametrize("critic", ["adam", "gauss_newton"])
@pytest.mark.parametrize("shared", [True, False])
def test_buffers_that_are_replaced_are_put_back(critic, shared):
    extractor = {"features_extractor_class": Reassigning, "share_features_extractor": shared}
    agent = make_agent(faulty_env("vector", "observation", 1e30, 5), policy_kwargs=extractor, critic_solver=critic)
    own = [module.variance for module in agent.policy.modules() if isinstance(module, Reassigning)]
    run(agent, 1)
    assert agent._n_skipped_updates == 1
    after = [module.variance for module in agent.policy.modules() if isinstance(module, Reassigning)]
    assert all(one is other and th.equal(one, th.ones(one.shape)) for one, other in zip(own, after, strict=True))


class Expanded(NormalizingExtractor):
    """Has a buffer whose entries lie at one place."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.register_buffer("halves", th.full((1,), 0.5).expand(8))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.halves * super().forward(observations)


def test_buffers_that_overlap_themselves_end_no_run():
    agent = make_agent(faulty_env("vector", "reward", NAN, 5), policy_kwargs={"features_extractor_class": Expanded})
    run(agent, 2)
    assert agent._n_skipped_updates == 1


@pytest.mark.parametrize("name", ["target_kl", "step_size"])
def test_a_step_that_a_schedule_makes_no_number_skips_the_policy_step(name):
    agent = make_agent("vector", **{name: lambda progress: 0.01 if progress > 0.0 else NAN})
    acting = parameters(agent, critic=False)
    with pytest.warns(RuntimeWarning, match=rf"`{name}` is NaN at a progress of 0"):
        agent.learn(N_STEPS)
    assert same(parameters(agent, critic=False), acting)


@pytest.mark.parametrize("name", ["damping", "target_kl", "step_size"])
def test_errors_of_a_user_s_schedule_are_not_taken_for_a_numerical_failure(name):
    agent = make_agent("vector", **{name: lambda progress: 0.01 / progress})
    with pytest.raises(ZeroDivisionError):
        agent.learn(N_STEPS)


class MaskedExtractor(NormalizingExtractor):
    """Leaves out half of its features by what it adds to them."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.register_buffer("mask", th.tensor([0.0, -INFINITY]).repeat(4))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return (super().forward(observations) + self.mask).softmax(dim=1)


@pytest.mark.parametrize("critic", ["adam", "gauss_newton"])
def test_a_mask_of_infinities_is_no_failure(critic):
    extractor = {"features_extractor_class": MaskedExtractor}
    agent = make_agent("vector", policy_kwargs=extractor, critic_solver=critic)
    run(agent, 2)
    assert agent._n_skipped_updates == 0


def test_numbers_that_single_precision_does_not_hold_are_zeros():
    largest = float(th.finfo(th.float32).max)
    observations = th.tensor([1e300, -1e300, 3.5e38, NAN, INFINITY, largest, -largest, 0.5], dtype=th.float64)
    expected = th.tensor([0.0, 0.0, 0.0, 0.0, 0.0, largest, -largest, 0.5], dtype=th.float64)
    assert th.equal(finite_observations(observations), expected)
    assert th.equal(finite_observations({"one": observations})["one"], expected)


@pytest.mark.parametrize("fast_paths", [True, False])
def test_critic_that_its_last_step_makes_infinite_is_put_back(fast_paths):
    """The loss was that of the step before, and finite."""
    kwargs = {"optimizer_class": th.optim.SGD}
    agent = make_agent(
        critic_solver="adam", n_critic_updates=1, learning_rate=3e38, policy_kwargs=kwargs, fast_paths=fast_paths
    )
    critic = parameters(agent, critic=True)
    with pytest.warns(RuntimeWarning, match="the critic after its regression is not finite"):
        (update,) = train(agent, 1)
    assert update["train/skipped_updates"] == 1
    assert same(parameters(agent, critic=True), critic)
