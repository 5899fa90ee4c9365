"""The critic's Gauss–Newton steps against normal equations, and the regression by minibatches against autograd."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_npg import NPG
from sb3_npg.critic import GaussNewtonSolver, MinibatchSolver, ValueProblem, make_critic_solver, make_values
from sb3_npg.critic.gauss_newton import _fit_intercept
from sb3_npg.critic.minibatches import _minibatches, fused
from sb3_npg.critic.problem import ProximalProblem
from sb3_npg.critic.values import FeedForwardValues
from sb3_npg.fisher import FeedForward
from sb3_npg.networks import read_critic
from sb3_npg.numerics import NumericalFailure
from sb3_npg.parameters import ParameterVector
from sb3_npg.policy_parts import PolicyParts, split_policy
from sb3_npg.rollout import Samples, read_rollout
from sb3_npg.solvers import FisherSolver, Problem, ScaledProblem, Solution
from sb3_npg.solvers.direction import Direction, find_direction
from sb3_npg.solvers.scaling import mean_eigenvalue
from tests.agents import ENVIRONMENTS, N_STEPS, make_agent, make_env, parameters, same, train
from tests.cases import POLICIES, make_observations, make_policy

N = 9
both_ways = pytest.mark.parametrize("fast_paths", [True, False])
BY_HAND = [name for name in POLICIES if name != "custom extractor, not shared"]


def make_value_problem(policy: str, fast_paths: bool = True, **kwargs: Any) -> "RegressionOfPolicy":
    made = make_policy("Gaussian", policy)
    observations = make_observations(POLICIES[policy].observation_space, N)
    parts = split_policy(made, observations, fast_paths)
    values = make_values(made, observations, ParameterVector(parts.critic_parameters), parts.critic)
    problem = RegressionOfPolicy(values, th.randn(N, dtype=th.float64), **kwargs)
    problem.policy, problem.observations = made, observations
    return problem


def test_records_of_the_critics_layers_stay_within_the_memory_budget():
    # Each number of an image is in 25 of the patches that a convolution sees.
    modules = nn.Sequential(nn.Conv2d(1, 2, 5), nn.ReLU(), nn.Conv2d(2, 2, 5), nn.Flatten(), nn.Linear(2 * 8 * 8, 1))
    network = FeedForward.read(modules, modules)
    assert network is not None
    budget = 100_000
    values = FeedForwardValues(network, th.randn(N, 1, 16, 16), ParameterVector(list(modules.parameters())))
    chunks = list(ValueProblem(values, th.randn(N), memory_budget=budget).layers.records())
    assert 1 < len(chunks) < N
    for records in chunks:
        # The columns of ones that biases see are not counted.
        ones = sum(record.inputs[..., 0].nbytes for record in records)
        assert sum(record.inputs.nbytes + record.deltas.nbytes for record in records) - ones <= budget


class RegressionOfPolicy(ValueProblem):
    """Remembers what it is made of."""

    policy: Any
    observations: Any


def jacobian(problem: RegressionOfPolicy) -> th.Tensor:
    """Form J by one backward pass for each row, shape (N, p)."""
    values = problem.policy.predict_values(problem.observations).flatten()
    rows = [th.autograd.grad(v, problem.vector.tensors, retain_graph=True, materialize_grads=True) for v in values]
    return th.stack([problem.vector.flatten(row) for row in rows])


@both_ways
@pytest.mark.usefixtures("float64")
def test_values_are_differentiated_within_the_memory_budget(fast_paths):
    assert len(make_value_problem("Mlp", fast_paths, memory_budget=2**28)._chunks) == 1
    assert len(make_value_problem("Mlp", fast_paths, memory_budget=1)._chunks) == N


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("memory_budget", [2**28, 1])
@both_ways
@pytest.mark.parametrize("policy", POLICIES)
def test_fisher_gradient_and_loss_are_those_of_the_regression(policy, fast_paths, memory_budget):
    problem = make_value_problem(policy, fast_paths, memory_budget=memory_budget)
    j = jacobian(problem)
    error = problem.returns.flatten() - problem.policy.predict_values(problem.observations).flatten().detach()
    assert problem.loss() == pytest.approx(float(error.square().mean()), rel=1e-12)
    th.testing.assert_close(problem.gradient(), j.T @ error / N, rtol=1e-10, atol=1e-12)
    v = th.randn(len(problem.vector), dtype=th.float64)
    th.testing.assert_close(problem.fisher_vector_product(v), j.T @ (j @ v) / N, rtol=1e-10, atol=1e-12)
    th.testing.assert_close(problem.dense_fisher(), j.T @ j / N, rtol=1e-10, atol=1e-12)
    assert float(mean_eigenvalue(problem.layers)) == pytest.approx(float(j.square().sum()) / N / j.shape[1], rel=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("columns", ["exact", "sampled"])
@pytest.mark.parametrize("policy", BY_HAND)
def test_layers_by_hand_are_those_that_hooks_find(policy, columns):
    by_hand, autograd = (make_value_problem(policy, fast_paths) for fast_paths in (True, False))
    assert [vars(block) for block in by_hand.layers.blocks] == [vars(block) for block in autograd.layers.blocks]
    for records, expected in zip(by_hand.layers.records(columns), autograd.layers.records(columns), strict=True):
        for one, other in zip(records, expected, strict=True):
            th.testing.assert_close(one.inputs, other.inputs, rtol=1e-10, atol=1e-12)
            th.testing.assert_close(one.deltas, other.deltas, rtol=1e-10, atol=1e-12)


def fit(solver: GaussNewtonSolver, problem: RegressionOfPolicy, n_updates: int = 1, fast_paths: bool = True) -> float:
    """Run a solver on a problem's policy and rows."""
    critic = read_critic(problem.policy) if fast_paths else None
    parts = PolicyParts(problem.vector, list(problem.vector.tensors), [], critic=critic)
    samples: Samples = RolloutOf(problem.observations, problem.returns.flatten())  # type: ignore[assignment]
    return solver.fit(problem.policy, parts, samples, n_updates, 4)


def after_intercept(problem: RegressionOfPolicy, damping: float) -> th.Tensor:
    """Return the parameters that the steps begin with."""
    before = problem.vector.get()
    with th.no_grad():
        problem.policy.value_net.bias += problem.residuals().mean() / (1.0 + damping)
    moved = problem.vector.get()
    problem.vector.set(before)
    return moved


def last_layer(problem: RegressionOfPolicy) -> th.Tensor:
    """Return ones where the parameters are those of V's last layer, else zeros, shape (p,)."""
    own = {id(parameter) for parameter in problem.policy.value_net.parameters()}
    return problem.vector.flatten([th.full_like(one, float(id(one) in own)) for one in problem.vector.tensors])


def units(problem: RegressionOfPolicy) -> th.Tensor:
    """Return the diagonal of S⁻¹: the returns' standard deviation for V's last layer, else 1."""
    return 1.0 + (float(problem.returns.std(correction=0)) - 1.0) * last_layer(problem)


def eigenvalue_at(problem: RegressionOfPolicy, parameters: th.Tensor) -> float:
    """Return the mean eigenvalue of S⁻¹JᵀJS⁻¹/N at some parameters."""
    before = problem.vector.get()
    problem.vector.set(parameters)
    eigenvalue = float((jacobian(problem) * units(problem)).square().sum()) / N / len(problem.vector)
    problem.vector.set(before)
    return eigenvalue


class RolloutOf:
    """What a critic solver reads of a rollout."""

    def __init__(self, observations: Any, returns: th.Tensor):
        self.observations, self.returns = observations, returns


@pytest.mark.usefixtures("float64")
@both_ways
def test_one_step_on_a_linear_critic_is_ridge_regression(fast_paths):
    problem = make_value_problem("Mlp, net_arch=[]", fast_paths)
    j = jacobian(problem)
    original = problem.vector.get()
    start = after_intercept(problem, 0.3)
    problem.vector.set(start)
    error = problem.returns.flatten() - problem.policy.predict_values(problem.observations).flatten().detach()
    damping = 0.3 * float(j.square().sum()) / N / j.shape[1]
    problem.vector.set(original)
    ridge = th.linalg.solve(j.T @ j / N + damping * th.eye(j.shape[1], dtype=th.float64), j.T @ error / N)
    fit(GaussNewtonSolver("exact", damping=0.3, max_change=100.0), problem, fast_paths=fast_paths)
    th.testing.assert_close(problem.vector.get() - start, ridge, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("float64")
@both_ways
def test_further_steps_on_a_linear_critic_have_nothing_to_add(fast_paths):
    once, often = (make_value_problem("Mlp, net_arch=[]", fast_paths) for _ in range(2))
    for problem, n_updates in ((once, 1), (often, 20)):
        fit(GaussNewtonSolver("exact", damping=0.3, max_change=100.0), problem, n_updates, fast_paths)
    assert th.equal(once.vector.get(), often.vector.get())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("policy", ["Mlp", "MultiInput", "Cnn", "NatureCNN"])
@pytest.mark.parametrize("damping", [0.01, 10.0])
def test_steps_end_where_fit_and_nearness_to_the_start_balance(policy, damping):
    problem = make_value_problem(policy)
    start = after_intercept(problem, damping)
    eigenvalue = eigenvalue_at(problem, start)
    fit(GaussNewtonSolver("cg", {"max_steps": 50}, damping=damping, min_gain=1e-15), problem, 200)
    problem.refresh()
    pull = damping * eigenvalue * (problem.vector.get() - start) / units(problem) ** 2
    assert float((problem.gradient() - pull).norm()) < 1e-5 * float(pull.norm())


@pytest.mark.usefixtures("float64")
@both_ways
@pytest.mark.parametrize("policy", ["Mlp", "MultiInput", "Cnn"])
def test_step_is_of_least_norm_with_the_last_layer_in_units_of_the_returns(policy, fast_paths):
    problem = make_value_problem(policy, fast_paths)
    problem.returns *= 7.0
    start = after_intercept(problem, 10.0)
    before = problem.vector.get()
    problem.vector.set(start)
    unit = units(problem)
    assert float(unit.max()) > 2.0
    error = problem.returns.flatten() - problem.policy.predict_values(problem.observations).flatten().detach()
    j = jacobian(problem) * unit
    problem.vector.set(before)
    damping = 10.0 * float(j.square().sum()) / N / j.shape[1]
    expected = unit * th.linalg.solve(j.T @ j / N + damping * th.eye(j.shape[1], dtype=th.float64), j.T @ error / N)
    fit(GaussNewtonSolver("exact", damping=10.0, max_change=100.0), problem, fast_paths=fast_paths)
    step = problem.vector.get() - start
    halvings = math.log2(float(expected.norm() / step.norm()))
    assert halvings == pytest.approx(round(halvings), abs=1e-6)
    th.testing.assert_close(step * 2.0 ** round(halvings), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("float64")
@both_ways
@pytest.mark.parametrize("solver", ["exact", "cg", "kfac"])
@pytest.mark.parametrize("policy", ["Mlp", "MultiInput", "Cnn"])
def test_a_critic_learns_alike_in_any_unit_of_the_returns(policy, solver, fast_paths):
    small, large = (make_value_problem(policy, fast_paths) for _ in range(2))
    small.returns *= 7.0
    large.returns *= 7.0 * 1000.0
    unit = 1.0 + 999.0 * last_layer(large)
    large.vector.set(unit * large.vector.get())
    for problem in (small, large):
        fit(GaussNewtonSolver(solver), problem, n_updates=3, fast_paths=fast_paths)
    th.testing.assert_close(large.vector.get(), unit * small.vector.get(), rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("policy", ["Mlp", "MultiInput", "Cnn", "NatureCNN"])
@pytest.mark.parametrize("damping", [1e-6, 1.0, 10.0])
def test_intercept_takes_up_its_damped_part_of_the_mean(policy, damping):
    problem = make_value_problem(policy)
    residuals = problem.residuals()
    fit(GaussNewtonSolver(damping=damping), problem, 0)
    shift = residuals.mean() / (1.0 + damping)
    th.testing.assert_close(problem.residuals(), residuals - shift, rtol=1e-10, atol=1e-12)


class Squared(ActorCriticPolicy):
    """Does more to V after the bias that V usually ends in."""

    def predict_values(self, obs):
        return super().predict_values(obs).square()


class Rooted(ActorCriticPolicy):
    """Has no V where that bias is too low."""

    def predict_values(self, obs):
        return super().predict_values(obs).add(5.0).sqrt()


def make_squared_problem(returns: float, policy_class: type[ActorCriticPolicy] = Squared) -> RegressionOfPolicy:
    env = make_env("vector")
    policy = policy_class(env.observation_space, env.action_space, lambda _: 1e-3).double()
    observations = th.randn(N, *env.observation_space.shape, dtype=th.float64)
    parts = split_policy(policy, observations)
    values = make_values(policy, observations, ParameterVector(parts.critic_parameters), parts.critic)
    problem = RegressionOfPolicy(values, returns * th.ones(N, dtype=th.float64))
    problem.policy, problem.observations = policy, observations
    return problem


@pytest.mark.usefixtures("float64")
def test_bias_that_is_no_intercept_never_makes_the_fit_worse():
    problem = make_squared_problem(-10.0)
    loss, before = problem.loss(), problem.vector.get()
    fit(GaussNewtonSolver(), problem, 0, fast_paths=False)
    assert problem.loss() == loss
    assert th.equal(problem.vector.get(), before)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("fisher_solver", ["cg", "kfac", "ekfac", "exact", "woodbury"])
def test_linear_critic_reaches_the_least_squares_loss(fisher_solver):
    problem = make_value_problem("Mlp, net_arch=[]")
    j = jacobian(problem)
    values = problem.policy.predict_values(problem.observations).flatten().detach()
    target = problem.returns.flatten() - values
    best = float((target - j @ th.linalg.lstsq(j, target.unsqueeze(1)).solution.flatten()).square().mean())
    fit(GaussNewtonSolver(fisher_solver, damping=1e-6, max_change=100.0), problem, 5)
    assert problem.loss() == pytest.approx(best, rel=1e-3)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_damping_needs_no_tuning_to_the_scale_of_rewards(scale):
    plain, scaled = make_value_problem("Mlp"), make_value_problem("Mlp")
    with th.no_grad():
        for problem, factor in ((plain, 1.0), (scaled, scale)):
            for parameter in problem.policy.value_net.parameters():
                parameter.mul_(factor)
        scaled.returns.mul_(scale)
    # Only the last layer sees the scale of its own outputs.
    for problem in (plain, scaled):
        problem.values.parameters = ParameterVector(list(problem.policy.value_net.parameters()))
        fit(GaussNewtonSolver("exact"), problem)
    assert float(scaled.loss()) == pytest.approx(float(plain.loss()) * scale**2, rel=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("max_change", [0.05, 0.3])
def test_change_of_the_values_is_bounded(max_change):
    problem = make_value_problem("Mlp, net_arch=[]")
    problem.vector.set(after_intercept(problem, 0.0))
    before, loss = problem.policy.predict_values(problem.observations).detach(), float(problem.loss())
    fit(GaussNewtonSolver("exact", damping=1e-3, max_change=max_change), problem)
    change = problem.policy.predict_values(problem.observations).detach() - before
    assert float(change.square().mean().sqrt()) == pytest.approx(max_change * math.sqrt(loss), rel=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("policy", ["Mlp", "Cnn"])
@pytest.mark.parametrize("damping", [1e-8, 1.0])
def test_loss_never_rises(policy, damping):
    problem = make_value_problem(policy)
    solver = GaussNewtonSolver(damping=damping)
    losses = [float(problem.loss())]
    for _ in range(6):
        assert fit(solver, problem) == pytest.approx(losses[-1])
        losses.append(float(problem.loss()))
    assert (np.diff(losses) <= 0.0).all()
    assert losses[-1] < losses[0]


@pytest.mark.usefixtures("float64")
def test_step_that_cannot_be_had_leaves_the_critic_bit_for_bit():
    problem = make_value_problem("Mlp")
    solver = GaussNewtonSolver(backtrack_max_iter=2)
    before = after_intercept(problem, solver.damping)
    value = ProximalProblem.value
    try:
        ProximalProblem.value = lambda self: math.inf  # type: ignore[method-assign]
        fit(solver, problem, 3)
    finally:
        ProximalProblem.value = value  # type: ignore[method-assign]
    assert th.equal(problem.vector.get(), before)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("part", "n_steps"), [(0.9, 2), (1.1, 1), (1e9, 1)])
def test_step_is_taken_if_half_its_slope_is_worth_it_beside_what_was_gained(part, n_steps, monkeypatch):
    # The first step has nothing before it, and is taken whatever it promises.
    slopes, values, value = [], [], ProximalProblem.value

    def find(*args: Any) -> Direction:
        direction = find_direction(*args)
        slopes.append(direction.slope)
        return direction

    def value_of(objective: ProximalProblem) -> float:
        values.append(value(objective))
        return values[-1]

    monkeypatch.setattr("sb3_npg.critic.gauss_newton.find_direction", find)
    monkeypatch.setattr(ProximalProblem, "value", value_of)
    problem = make_value_problem("Mlp")
    solver = GaussNewtonSolver("exact", damping=1.0, max_change=100.0, min_gain=0.0)
    original = problem.vector.get()
    problem.vector.set(after_intercept(problem, solver.damping))
    start = 0.5 * float(problem.loss())
    problem.vector.set(original)
    fit(solver, problem, 2)
    gained, promised = start - values[0], 0.5 * slopes[1]
    assert len(values) == len(slopes) == 2
    assert 0.0 < gained < start
    problem.vector.set(original)
    values.clear()
    solver.min_gain = part * promised / gained
    fit(solver, problem, 2)
    assert len(values) == n_steps


@pytest.mark.usefixtures("float64")
def test_steps_are_measured_against_what_the_intercept_leaves(monkeypatch):
    problem, solver = make_value_problem("Mlp"), GaussNewtonSolver()
    problem.returns.add_(5.0)
    original, start = problem.vector.get(), after_intercept(problem, solver.damping)
    before = float(problem.loss())
    problem.vector.set(start)
    left = float(problem.loss())
    problem.vector.set(original)
    assert left < before
    monkeypatch.setattr(ProximalProblem, "value", lambda _: 0.5 * (0.5 * left + 0.5 * before))
    fit(solver, problem, 3)
    assert th.equal(problem.vector.get(), start)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("backtrack_max_iter", [0, 2])
def test_step_is_halved_as_often_as_asked_for(backtrack_max_iter, monkeypatch):
    problem, solver = make_value_problem("Mlp"), GaussNewtonSolver(backtrack_max_iter=backtrack_max_iter)
    start, lengths = after_intercept(problem, solver.damping), []

    def never(_objective: ProximalProblem) -> float:
        lengths.append(float((problem.vector.get() - start).norm()))
        return math.inf

    monkeypatch.setattr(ProximalProblem, "value", never)
    fit(solver, problem)
    assert lengths == pytest.approx([lengths[0] * 0.5**halvings for halvings in range(backtrack_max_iter + 1)])


class NoSolver(FisherSolver):
    """Has no answer at any damping."""

    def solve(self, problem: Problem, gradient: th.Tensor, damping: float) -> Solution:
        raise ArithmeticError("no pivot")


@pytest.mark.usefixtures("float64")
def test_solver_without_an_answer_is_a_numerical_failure():
    problem, solver = make_value_problem("Mlp"), GaussNewtonSolver()
    solver.solver = NoSolver()
    with pytest.raises(NumericalFailure, match="no natural gradient up to damping"):
        fit(solver, problem)


@pytest.mark.usefixtures("float64")
def test_steps_see_the_layers_behind_the_intercept(monkeypatch):
    # Squares have other derivatives once the bias before them has moved.
    problem = make_squared_problem(1.0)
    before, seen = float(mean_eigenvalue(problem.layers)), []

    def find(_solver: FisherSolver, system: ScaledProblem, *_others: Any) -> Direction:
        stale = system.problem
        assert isinstance(stale, ValueProblem)
        fresh = ValueProblem(stale.values, stale.returns.flatten())
        seen.extend(float(mean_eigenvalue(each.layers)) for each in (stale, fresh))
        raise NumericalFailure("seen enough")

    monkeypatch.setattr("sb3_npg.critic.gauss_newton.find_direction", find)
    with pytest.raises(NumericalFailure, match="seen enough"):
        fit(GaussNewtonSolver(damping=0.1), problem, fast_paths=False)
    assert seen[0] == pytest.approx(seen[1], rel=1e-12)
    assert seen[1] != pytest.approx(before, rel=0.1)


@pytest.mark.usefixtures("float64")
@both_ways
def test_refreshed_layers_are_those_of_the_parameters_that_are_there(fast_paths):
    problem = make_value_problem("Mlp", fast_paths)
    before = float(mean_eigenvalue(problem.layers))
    problem.vector.set(2.0 * problem.vector.get())
    problem.refresh()
    expected = float(jacobian(problem).square().sum()) / N / len(problem.vector)
    assert float(mean_eigenvalue(problem.layers)) == pytest.approx(expected, rel=1e-10)
    assert before != pytest.approx(expected, rel=0.1)


@pytest.mark.usefixtures("float64")
def test_perfect_critic_is_left_alone():
    problem = make_value_problem("Mlp")
    problem.returns.copy_(problem.policy.predict_values(problem.observations).detach())
    before = problem.vector.get()
    assert fit(GaussNewtonSolver(), problem, 3) == pytest.approx(0.0, abs=1e-20)
    assert th.equal(problem.vector.get(), before)


@pytest.mark.usefixtures("float64")
def test_returns_of_nan_are_a_numerical_failure():
    problem = make_value_problem("Mlp")
    problem.returns[3] = math.nan
    with pytest.raises(NumericalFailure, match="critic's loss"):
        fit(GaussNewtonSolver(), problem)


# In training


@pytest.mark.parametrize("fisher_solver", ["cg", "kfac", "ekfac", "diagonal", "exact", "woodbury", "identity"])
@pytest.mark.parametrize("env", list(ENVIRONMENTS))
def test_agents_of_every_kind_fit_their_rollout_better_than_before(env, fisher_solver):
    if "image" in env and fisher_solver in ("exact", "woodbury", "ekfac"):
        pytest.skip("too large for this solver")
    kwargs = {"fisher_solver": fisher_solver}
    agent = make_agent(env, critic_solver="gauss_newton", critic_solver_kwargs=kwargs, policy_kwargs=SMALL.get(env))
    updates = train(agent, 2)
    assert updates[-1]["train/skipped_updates"] == 0
    rollout = read_rollout(agent.rollout_buffer, agent.action_space)
    with th.no_grad():
        values = agent.policy.predict_values(rollout.observations).squeeze(1)
    assert float((values - rollout.returns).square().mean()) < updates[-1]["train/value_loss"]


SMALL = {name: {"net_arch": [8]} for name in ENVIRONMENTS if "image" not in name}


def test_critic_leaves_the_action_distribution_bit_for_bit():
    agent = make_agent("vector", critic_solver="gauss_newton", line_search_max_iter=1, step_size=1e30)
    before = parameters(agent, critic=False)
    train(agent, 2)
    assert all(th.equal(before[name], tensor) for name, tensor in parameters(agent, critic=False).items())


def test_saved_agent_goes_on_with_its_critic_solver(tmp_path):
    agent = make_agent("vector", critic_solver="gauss_newton", critic_solver_kwargs={"damping": 3.0})
    agent.save(tmp_path / "agent")
    loaded = NPG.load(tmp_path / "agent")
    assert isinstance(loaded._critic_solver, GaussNewtonSolver)
    assert loaded._critic_solver.damping == 3.0


@pytest.mark.parametrize(
    ("gamma", "damping"), [(0.0, 10.0), (0.9, 10.0), (0.99, 10.0), (0.995, 5.0), (0.9999, 0.1), (1.0, 0.01)]
)
def test_default_damping_falls_as_the_horizon_grows(gamma, damping):
    agent = make_agent("vector", critic_solver="gauss_newton", gamma=gamma)
    assert isinstance(agent._critic_solver, GaussNewtonSolver)
    assert agent._critic_solver.damping == pytest.approx(damping)
    assert agent._critic_solver.min_gain == pytest.approx(0.03 * damping)


def test_damping_that_a_user_asks_for_stays_at_any_horizon():
    agent = make_agent("vector", critic_solver="gauss_newton", critic_solver_kwargs={"damping": 3.0}, gamma=0.9999)
    assert isinstance(agent._critic_solver, GaussNewtonSolver)
    assert agent._critic_solver.damping == 3.0


@pytest.mark.parametrize("n_updates", [None, 3])
@pytest.mark.parametrize("critic_solver", ["adam", "gauss_newton"])
def test_number_of_updates_is_the_solvers_own_unless_given(critic_solver, n_updates, monkeypatch):
    agent = make_agent("vector", critic_solver=critic_solver, n_critic_updates=n_updates)
    seen = []
    monkeypatch.setattr(type(agent._critic_solver), "fit", lambda *args: seen.append(args[-2]) or 0.0)
    train(agent, 1)
    assert seen == [type(agent._critic_solver).n_updates if n_updates is None else n_updates]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"damping": 0.0}, "`critic_solver_kwargs['damping']`=0.0"),
        ({"max_change": -1.0}, "`critic_solver_kwargs['max_change']`=-1.0"),
        ({"backtrack_max_iter": 1.5}, "`critic_solver_kwargs['backtrack_max_iter']`=1.5"),
        ({"min_gain": -0.1}, "`critic_solver_kwargs['min_gain']`=-0.1"),
        ({"fisher_solver": "newton"}, "`critic_solver_kwargs['fisher_solver']`='newton'"),
        ({"fisher_solver_kwargs": {"max_steps": 0}}, "`critic_solver_kwargs['fisher_solver_kwargs']['max_steps']`=0"),
        ({"fisher_solver_kwargs": {"steps": 3}}, "`critic_solver_kwargs['fisher_solver_kwargs']` has ['steps']"),
        ({"lr": 0.1}, "`critic_solver_kwargs` has ['lr']"),
        (["damping"], "`critic_solver_kwargs`=['damping']"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name(kwargs, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is looked at
        make_agent("vector", critic_solver="gauss_newton", critic_solver_kwargs=kwargs)
    assert message in str(caught.value)


def test_arguments_for_a_solver_that_takes_none_are_refused():
    with pytest.raises(ValueError, match="critic_solver_kwargs"):
        make_critic_solver("adam", {"damping": 1.0}, gamma=0.99)


def test_critic_too_large_for_its_solver_is_refused_before_training():
    with pytest.raises(ValueError, match="exact"):
        make_agent(
            "vector",
            critic_solver="gauss_newton",
            critic_solver_kwargs={"fisher_solver": "exact"},
            policy_kwargs={"net_arch": {"pi": [4], "vf": [1000, 1000]}},
        )


# Minibatches


class Rebinding(th.optim.SGD):
    """Gives parameters new memory at each step."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data = parameter.data - group["lr"] * parameter.grad


@pytest.mark.filterwarnings("ignore:The critic's minibatches")
@pytest.mark.parametrize("batch_size", [N_STEPS, 7, 1])
@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.AdamW, th.optim.SGD, th.optim.RMSprop, Rebinding])
def test_minibatches_by_hand_are_autograds(optimizer, batch_size):
    kwargs = {"optimizer_class": optimizer, "net_arch": [8, 8]}
    agents = []
    for fast_paths in (True, False):
        options = {
            "critic_solver": "adam",
            "line_search_max_iter": 1,
            "step_size": 1e30,
            "batch_size": batch_size,
        }
        agents.append(make_agent("vector", fast_paths=fast_paths, policy_kwargs=kwargs, **options))
        train(agents[-1], 2)
    one, other = (parameters(agent, critic=True) for agent in agents)
    for name, tensor in one.items():
        th.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-5)


def test_fused_update_is_adams_and_is_set_back():
    results = []
    for fuse in (True, False):
        parameter = nn.Parameter(th.linspace(-1.0, 1.0, 5))
        optimizer = th.optim.Adam([parameter], lr=0.1, eps=1e-5)
        for _ in range(3):
            parameter.grad = parameter.detach().square() + 1.0
            if fuse:
                with fused(optimizer):
                    assert optimizer.param_groups[0]["fused"]
                    optimizer.step()
            else:
                optimizer.step()
        assert not optimizer.param_groups[0]["fused"]
        results.append(parameter.detach())
    th.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("memory_format", [th.contiguous_format, th.channels_last])
def test_adam_takes_gradients_by_hand_whatever_the_layout_of_the_parameters(memory_format):
    kwargs = {"policy_kwargs": {"share_features_extractor": False}, "step_size": 1e30, "line_search_max_iter": 1}
    agents = [make_agent("image", critic_solver="adam", fast_paths=way, **kwargs) for way in (True, False)]
    for agent in agents:
        agent.policy.to(memory_format=memory_format)
        train(agent, 1)
    one, other = (parameters(agent, critic=True) for agent in agents)
    for name, tensor in one.items():
        th.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-5)


def test_fused_update_counts_where_the_parameters_are():
    parameter = nn.Parameter(th.ones(2))
    optimizer = th.optim.Adam([parameter])
    parameter.grad = th.ones(2)
    optimizer.step()
    optimizer.state[parameter]["step"] = th.tensor(7.0, dtype=th.float64)  # as a file may have it
    with fused(optimizer):
        optimizer.step()
    assert same(optimizer.state[parameter]["step"], th.tensor(8.0))


@pytest.mark.parametrize(
    "options",
    [{"foreach": True}, {"foreach": False}, {"fused": False}, {"capturable": True}, {"differentiable": True}],
    ids=str,
)
def test_implementation_of_adam_that_a_user_asked_for_stays(options):
    optimizer = th.optim.Adam([nn.Parameter(th.ones(2))], **options)
    with fused(optimizer):
        assert not optimizer.param_groups[0]["fused"]


def test_each_pass_takes_all_rows_in_an_order_of_its_own():
    np.random.seed(0)
    batches = list(_minibatches(10, 3, 4, th.device("cpu")))
    assert [len(rows) for rows in batches] == 3 * [4, 4, 2]
    passes = [th.cat(batches[start : start + 3]).tolist() for start in (0, 3, 6)]
    assert all(sorted(order) == list(range(10)) for order in passes)
    assert len(set(map(tuple, passes))) == 3


class OwnAdam(th.optim.Adam):
    """May do something else in its step."""


def test_optimizer_of_a_class_of_its_own_is_left_alone():
    optimizer = OwnAdam([nn.Parameter(th.ones(2))])
    with fused(optimizer):
        assert not optimizer.param_groups[0]["fused"]


@both_ways
def test_logged_loss_is_the_mean_over_all_minibatches(fast_paths):
    agent = make_agent("vector", critic_solver="adam", learning_rate=0.0, batch_size=8, fast_paths=fast_paths)
    (update,) = train(agent, 1)
    error = agent.rollout_buffer.values - agent.rollout_buffer.returns
    assert update["train/value_loss"] == pytest.approx(float(np.square(error).mean()), rel=1e-5)


def test_gradients_do_not_stay_behind():
    agent = make_agent("vector", critic_solver="adam")
    train(agent, 1)
    assert all(parameter.grad is None for parameter in agent.policy.parameters())
    assert isinstance(agent._critic_solver, MinibatchSolver)


@pytest.mark.usefixtures("float64")
def test_change_of_the_values_is_bounded_by_what_the_intercept_leaves():
    problem, solver = make_value_problem("Mlp, net_arch=[]"), GaussNewtonSolver("exact", damping=1e-3, max_change=0.3)
    problem.returns.add_(5.0)
    original, start = problem.vector.get(), after_intercept(problem, solver.damping)
    problem.vector.set(start)
    before, left = problem.policy.predict_values(problem.observations).detach(), float(problem.loss())
    problem.vector.set(original)
    assert left < 0.5 * float(problem.loss())
    fit(solver, problem)
    change = problem.policy.predict_values(problem.observations).detach() - before
    assert float(change.square().mean().sqrt()) == pytest.approx(0.3 * math.sqrt(left), rel=1e-9)


@pytest.mark.usefixtures("float64")
def test_bias_that_leaves_no_values_is_put_back():
    problem = make_squared_problem(-20.0, Rooted)
    loss, before = problem.loss(), problem.vector.get()
    assert math.isfinite(loss)
    fit(GaussNewtonSolver(damping=0.1), problem, 0, fast_paths=False)
    assert problem.loss() == loss
    assert th.equal(problem.vector.get(), before)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("returns", "policy", "damping"), [(-10.0, Squared, 10.0), (-20.0, Rooted, 0.1)])
def test_bias_that_is_put_back_leaves_the_loss_that_there_was(returns, policy, damping):
    problem = make_squared_problem(returns, policy)
    loss, left, _ = _fit_intercept(problem.policy, problem, th.ones(len(problem.vector)), damping)
    assert left == loss == float(problem.loss())


@pytest.mark.parametrize(("kwargs", "max_steps"), [(None, 10), ({}, 15), ({"rtol": 0.1}, 15), ({"max_steps": 3}, 3)])
def test_ten_products_are_for_who_leaves_the_arguments_open(kwargs, max_steps):
    assert GaussNewtonSolver("cg", kwargs).solver.max_steps == max_steps


@both_ways
def test_gradients_that_somebody_left_move_nothing(fast_paths):
    agent = make_agent("vector", critic_solver="adam", fast_paths=fast_paths, step_size=1e30, line_search_max_iter=1)
    actor = parameters(agent, critic=False)
    for parameter in agent.policy.parameters():
        parameter.grad = th.ones_like(parameter)
    (update,) = train(agent, 1)
    assert update["train/is_line_search_success"] == 0.0
    assert same(parameters(agent, critic=False), actor)
