"""L, the mean KL and F of one policy update, for every distribution and kind of policy."""

import math

import pytest
import torch as th
from gymnasium import spaces

from sb3_npg.fisher import second_moments
from sb3_npg.fisher.autograd import batched_gradients
from sb3_npg.local_problem import LocalProblem
from tests import reference
from tests.cases import (
    DISTRIBUTIONS,
    POLICIES,
    DistributionCase,
    make_actions,
    make_observations,
    make_policy,
    make_problem,
)

pytestmark = pytest.mark.usefixtures("float64")

N = 6
every_policy = pytest.mark.parametrize("policy", POLICIES)
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)


@every_policy
@every_distribution
def test_fisher_is_covariance_of_scores_and_hessian_of_both_kls(distribution, policy):
    problem = make_problem(distribution, policy, N)
    agent, observations, parameters = problem.policy, problem.observations, problem.parameters
    scores = reference.score_fisher(agent, observations, N, parameters)
    forward, backward = reference.mean_kls(agent, observations, N)

    dense = problem.dense_fisher()
    assert reference.relative_error(dense, scores) < 1e-8
    assert reference.relative_error(dense, reference.hessian(forward, parameters)) < 1e-8
    assert reference.relative_error(dense, reference.hessian(backward, parameters)) < 1e-8
    assert reference.relative_error(dense, reference.hessian(problem.mean_kl(), parameters)) < 1e-8
    for vector in th.randn(3, len(dense), dtype=th.float64):
        assert reference.relative_error(problem.fisher_vector_product(vector), scores @ vector) < 1e-8


@every_distribution
def test_fisher_is_symmetric_and_positive_semidefinite(distribution):
    dense = make_problem(distribution, "Mlp", N).dense_fisher()
    assert th.equal(dense, dense.T) or reference.relative_error(dense, dense.T) < 1e-14
    assert float(th.linalg.eigvalsh(dense).min()) > -1e-12


@every_policy
def test_only_parameters_that_the_action_depends_on_act(policy):
    problem = make_problem("Gaussian", policy)
    acting = {id(parameter) for parameter in problem.parameters}
    names = {name for name, parameter in problem.policy.named_parameters() if id(parameter) in acting}
    assert "log_std" in names
    assert "action_net.weight" in names
    assert not any("value_net" in name or "unused" in name or name.startswith("vf_") for name in names)
    if "custom" in policy:
        assert any("value_attention" in name for name in names)


def test_frozen_parameters_do_not_act():
    policy = make_policy("Gaussian", "Mlp")
    policy.action_net.bias.requires_grad_(False)
    observations = make_observations(POLICIES["Mlp"].observation_space, N)
    problem = LocalProblem(policy, observations, make_actions(policy, observations), th.ones(N, dtype=th.float64))
    assert all(parameter is not policy.action_net.bias for parameter in problem.parameters)


@pytest.mark.parametrize("ent_coef", [0.0, 0.1])
@every_distribution
def test_surrogate_gradient_is_the_derivative_of_the_surrogate(distribution, ent_coef):
    problem = make_problem(distribution, "Mlp", N, ent_coef=ent_coef)
    gradient = problem.surrogate_gradient()
    start, epsilon = problem.vector.get(), 1e-5
    for direction in th.randn(3, len(gradient), dtype=th.float64):
        values = []
        for sign in (1, -1):
            problem.vector.set(start + sign * epsilon * direction)
            values.append(problem.evaluate().surrogate)
        derivative = (values[0] - values[1]) / (2 * epsilon)
        expected = float(gradient @ direction)
        if distribution.startswith("gSDE") and "learn_features" not in distribution:
            # The noise's features are a constant to the gradient but not to the surrogate.
            problem.vector.set(start)
            derivative = float(reference.flat_gradient(problem.surrogate(), problem.parameters) @ direction)
        assert expected == pytest.approx(derivative, rel=1e-5, abs=1e-8)


@every_distribution
def test_at_the_old_policy_the_surrogate_is_the_mean_advantage_and_the_kl_is_zero(distribution):
    problem = make_problem(distribution, "Mlp", N)
    assert float(problem.surrogate().detach()) == pytest.approx(float(problem.advantages.mean()), abs=1e-14)
    assert float(problem.mean_kl().detach()) == pytest.approx(0.0, abs=1e-14)
    assert problem.evaluate().mean_kl == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("distribution", ["Gaussian", "gSDE", "categorical", "multi-categorical", "Bernoulli"])
def test_mean_kl_is_torchs_summed_over_dimensions_and_goes_from_old_to_new(distribution):
    problem = make_problem(distribution, "Mlp", N)
    old = reference.frozen(problem.policy.get_distribution(problem.observations))
    problem.vector.set(problem.vector.get() + 0.3 * th.randn(len(problem.vector), dtype=th.float64))
    new = reference.frozen(problem.policy.get_distribution(problem.observations))
    expected = sum(float(th.distributions.kl_divergence(p, q).sum()) for p, q in zip(old, new, strict=True)) / N
    assert problem.evaluate().mean_kl == pytest.approx(expected, rel=1e-10)
    assert float(problem.mean_kl().detach()) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("distribution", ["Gaussian", "categorical", "gSDE squash_output"])
def test_chunks_change_nothing(distribution):
    whole = make_problem(distribution, "Cnn" if distribution == "categorical" else "Mlp", 11, ent_coef=0.1)
    pieces = make_problem(
        distribution, "Cnn" if distribution == "categorical" else "Mlp", 11, ent_coef=0.1, memory_budget=1
    )
    vector = th.randn(len(whole.vector), dtype=th.float64)
    assert len(pieces._chunks) == 11
    assert len(whole._chunks) == 1
    th.testing.assert_close(pieces.surrogate_gradient(), whole.surrogate_gradient(), rtol=1e-12, atol=1e-14)
    for _ in range(2):
        th.testing.assert_close(
            pieces.fisher_vector_product(vector), whole.fisher_vector_product(vector), rtol=1e-12, atol=1e-14
        )
    th.testing.assert_close(pieces.dense_fisher(), whole.dense_fisher(), rtol=1e-12, atol=1e-14)
    for problem in (pieces, whole):
        problem.vector.set(problem.vector.get() + 0.1 * vector)
    assert tuple(pieces.evaluate()) == pytest.approx(tuple(whole.evaluate()), rel=1e-12)


@pytest.mark.parametrize("policy", ["Mlp", "MultiInput"])
def test_sub_sampling_uses_some_rows_for_the_fisher_and_all_rows_for_the_rest(policy):
    everything = make_problem("categorical", policy, 12)
    some = make_problem("categorical", policy, 12, sub_sampling_factor=4)
    observations = everything.observations
    rows = slice(None, None, 4)
    picked = {k: v[rows] for k, v in observations.items()} if isinstance(observations, dict) else observations[rows]
    every_fourth = LocalProblem(everything.policy, picked, everything.actions[rows], everything.advantages[rows])
    assert th.equal(some.surrogate_gradient(), everything.surrogate_gradient())
    th.testing.assert_close(some.dense_fisher(), every_fourth.dense_fisher(), rtol=1e-12, atol=1e-15)
    vector = th.randn(len(some.vector), dtype=th.float64)
    assert th.equal(some.fisher_vector_product(vector), some.fisher_vector_product(vector))


@pytest.mark.parametrize("fast_paths", [True, False], ids=["by hand", "autograd"])
@pytest.mark.parametrize("distribution", ["Gaussian", "gSDE", "categorical", "multi-categorical", "Bernoulli"])
def test_entropy_is_that_of_the_policy_that_collected_the_rollout(distribution, fast_paths):
    problem = make_problem(distribution, "Mlp", N, fast_paths=fast_paths)
    expected = float(problem.policy.get_distribution(problem.observations).entropy().mean().detach())
    problem.vector.set(problem.vector.get() + 0.1)
    assert problem.old_entropy() == pytest.approx(expected, rel=1e-12)


def test_entropy_of_squashed_actions_is_of_those_that_were_taken():
    problem = make_problem("squashed Gaussian", "Mlp", N)
    log_prob = problem.policy.get_distribution(problem.observations).log_prob(problem.actions)
    assert problem.old_entropy() == pytest.approx(-float(log_prob.mean().detach()), rel=1e-12)


def test_entropy_bonus_adds_the_entropy():
    plain, bonus = make_problem("categorical", "Mlp", N), make_problem("categorical", "Mlp", N, ent_coef=0.5)
    entropy = plain.policy.get_distribution(plain.observations).entropy().mean()
    assert float((bonus.surrogate() - plain.surrogate()).detach()) == pytest.approx(
        0.5 * float(entropy.detach()), rel=1e-12
    )


def test_entropy_of_squashed_actions_has_the_right_gradient_on_average():
    """H = −E[log π] has no closed form after a tanh; its estimate's gradient must be unbiased."""
    n = 40_000
    policy = make_policy("squashed Gaussian", "Mlp, net_arch=[]")
    observations = make_observations(POLICIES["Mlp"].observation_space, 1).repeat(n, 1)
    actions = make_actions(policy, observations)
    zero = th.zeros(n, dtype=th.float64)
    estimate = LocalProblem(policy, observations, actions, zero, ent_coef=1.0).surrogate_gradient()
    # By reparametrisation: a = tanh(μ + σε), H = E[−log π(a(θ))] differentiated through the action.
    distribution = policy.get_distribution(observations)
    reparametrised = -distribution.log_prob(distribution.get_actions()).mean()
    expected = reference.flat_gradient(reparametrised, [policy.log_std])
    log_std_gradient = estimate[: policy.log_std.numel()]
    th.testing.assert_close(log_std_gradient, expected, rtol=0.1, atol=0.05)


def test_products_leave_no_trace():
    problem = make_problem("Gaussian", "Mlp", N)
    before = problem.vector.get()
    state = th.get_rng_state()
    problem.surrogate_gradient()
    problem.fisher_vector_product(before)
    problem.dense_fisher()
    problem.evaluate()
    assert th.equal(problem.vector.get(), before)
    assert th.equal(th.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in problem.policy.parameters())


@pytest.mark.parametrize(
    ("fast_paths", "error"), [(True, "the parameters have moved"), (False, "modified by an inplace operation")]
)
def test_products_after_the_parameters_have_moved_are_refused(fast_paths, error):
    problem = make_problem("Gaussian", "Mlp", N, fast_paths=fast_paths)
    vector = th.randn(len(problem.vector), dtype=th.float64)
    problem.fisher_vector_product(vector)
    problem.vector.set(problem.vector.get() + 0.1)
    with pytest.raises(RuntimeError, match=error):
        problem.fisher_vector_product(vector)


@pytest.mark.parametrize("fast_paths", [True, False])
def test_evaluation_of_a_policy_of_nan_is_nan_and_not_an_error(fast_paths):
    problem = make_problem("Gaussian", "Mlp", N, fast_paths=fast_paths)
    before = float(problem.surrogate().detach())
    problem.vector.set(th.full_like(problem.vector.get(), math.nan))
    assert problem.evaluate() == pytest.approx((before, math.nan, math.nan), nan_ok=True)


class CubeWithoutBatchingRule(th.autograd.Function):
    """x³, whose backward pass looks at a value, which a batched one does not have."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient * (1.0 if gradient.sum().item() > -1e9 else 0.0)


def test_dense_fisher_of_operations_that_cannot_be_batched_is_the_same():
    class Cube(th.nn.Module):
        def forward(self, x):
            return CubeWithoutBatchingRule.apply(x)

    class PlainCube(th.nn.Module):
        def forward(self, x):
            return x**3

    fishers = []
    for activation in (Cube, PlainCube):
        policy = make_policy("categorical", "Mlp")
        policy.mlp_extractor.policy_net[1] = activation()
        observations = make_observations(POLICIES["Mlp"].observation_space, N)
        problem = LocalProblem(policy, observations, th.zeros(N), th.ones(N, dtype=th.float64))
        fishers.append(problem.dense_fisher())
    th.testing.assert_close(*fishers, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("fast_paths", [True, False])
def test_a_single_action_has_no_fisher(fast_paths, monkeypatch):
    monkeypatch.setitem(DISTRIBUTIONS, "single", DistributionCase(spaces.Discrete(1)))
    problem = make_problem("single", "Mlp", fast_paths=fast_paths)
    assert not any(second_moments(record).any() for records in problem.layers.records() for record in records)
    assert not problem.dense_fisher().any()
    assert not problem.fisher_vector_product(problem.vector.get()).any()
    assert not problem.surrogate_gradient().any()


@pytest.mark.parametrize("log_std", [1e3, -1e3])
@pytest.mark.parametrize("fast_paths", [True, False])
def test_evaluation_of_a_spread_of_zero_or_infinity_is_not_finite(fast_paths, log_std):
    problem = make_problem("Gaussian", "Mlp", N, fast_paths=fast_paths)
    with th.no_grad():
        problem.policy.log_std.fill_(log_std)
    found = problem.evaluate()
    assert not (math.isfinite(found.surrogate) and math.isfinite(found.mean_kl))


@pytest.mark.parametrize("fast_paths", [True, False])
def test_products_do_not_ask_whether_gradients_are_enabled(fast_paths):
    problem, twin = (make_problem("gSDE", "Mlp", N, fast_paths=fast_paths) for _ in range(2))
    vector = th.randn(len(problem.vector), dtype=th.float64)
    with th.no_grad():
        product = problem.fisher_vector_product(vector)
    assert th.equal(product, twin.fisher_vector_product(vector))


@pytest.mark.parametrize("cube", [CubeWithoutBatchingRule.apply, lambda x: x**3], ids=["one at a time", "batched"])
def test_gradients_of_what_is_not_reached_are_zeros(cube):
    x, other = (th.randn(3, dtype=th.float64, requires_grad=True) for _ in range(2))
    cotangents = th.randn(4, 3, dtype=th.float64)
    by_x, by_other = batched_gradients(cube(x), (x, other), cotangents)
    th.testing.assert_close(by_x, 3.0 * cotangents * x.detach().square())
    assert th.equal(by_other, th.zeros(4, 3, dtype=th.float64))
