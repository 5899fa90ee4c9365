"""What makes the natural gradient natural: it does not see how the policy is written down."""

import copy
import math

import pytest
import torch as th
from torch import nn

from sb3_npg.fisher import LayerBlock, OutputModel, RolloutFisher
from sb3_npg.fisher.autograd import Linearization
from sb3_npg.local_problem import LocalProblem
from sb3_npg.output_fisher import CategoricalFisher, GaussianFisher
from sb3_npg.parameters import ParameterVector
from sb3_npg.solvers import make_fisher_solver
from tests.cases import make_problem
from tests.networks import freeze_problem, make_network_policy, make_observations

pytestmark = pytest.mark.usefixtures("float64")


def well_conditioned(n: int) -> th.Tensor:
    """Return an invertible matrix far from orthogonal (condition number 10)."""
    left, _ = th.linalg.qr(th.randn(n, n, dtype=th.float64))
    right, _ = th.linalg.qr(th.randn(n, n, dtype=th.float64))
    return left @ th.diag(th.logspace(-0.5, 0.5, n, dtype=th.float64)) @ right


class Reparametrized(nn.Module):
    """A linear layer whose weight is P W Q and whose bias is P b, for trained W and b."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.left = well_conditioned(layer.out_features)
        self.right = well_conditioned(layer.in_features)
        self.weight = nn.Parameter(th.linalg.solve(self.left, layer.weight.detach()) @ th.linalg.inv(self.right))
        self.bias = nn.Parameter(th.linalg.solve(self.left, layer.bias.detach()))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x @ (self.left @ self.weight @ self.right).T + self.left @ self.bias


def reparametrize(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Reparametrized(child))
        else:
            reparametrize(child)


def change_of_policy(problem: LocalProblem, solver: str, damping: float = 0.0) -> th.Tensor:
    """Return the first-order change of the policy's outputs along x, per unit of root KL."""
    made = make_fisher_solver(solver)
    made.update(problem)
    x = made.solve(problem, problem.surrogate_gradient(), damping).natural_gradient
    x = x / (x @ problem.fisher_vector_product(x)).sqrt()
    distribution = problem.policy.get_distribution(problem.observations)
    return Linearization(problem.metric.outputs(distribution), problem.vector).push(x)


def difference(one: th.Tensor, other: th.Tensor) -> float:
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("distribution", ["Gaussian", "categorical", "multi-categorical", "Bernoulli"])
def test_exact_natural_gradient_changes_the_policy_alike_in_any_coordinates(distribution):
    """Amari (1998): F⁻¹∇L transforms as a tangent vector; ∇L does not."""
    plain = make_problem(distribution, "Mlp", 200)
    mixed = copy.deepcopy(plain.policy)
    reparametrize(mixed)
    twin = LocalProblem(mixed, plain.observations, plain.actions, plain.advantages)
    outputs = [p.metric.outputs(p.policy.get_distribution(p.observations)) for p in (plain, twin)]
    th.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-10)

    # Damping is what depends on the coordinates: the less of it, the more alike.
    much, little = (
        difference(change_of_policy(plain, "exact", damping), change_of_policy(twin, "exact", damping))
        for damping in (1e-6, 1e-11)
    )
    assert little < 0.1 * much
    assert little < 5e-3
    assert difference(change_of_policy(plain, "identity"), change_of_policy(twin, "identity")) > 0.1


class InOtherCoordinates(nn.Module):
    """A linear layer that sees an affine map of its input, and whose output is mapped back linearly."""

    def __init__(self, layer: nn.Linear, before: bool, after: bool):
        super().__init__()
        n_in, n_out = layer.in_features, layer.out_features
        self.inner = well_conditioned(n_in) if before else th.eye(n_in, dtype=th.float64)
        self.shift = th.randn(n_in, dtype=th.float64) if before else th.zeros(n_in, dtype=th.float64)
        self.outer = well_conditioned(n_out) if after else th.eye(n_out, dtype=th.float64)
        self.layer = copy.deepcopy(layer)
        with th.no_grad():
            weight = th.linalg.solve(self.outer, layer.weight @ th.linalg.inv(self.inner))
            self.layer.weight.copy_(weight)
            self.layer.bias.copy_(th.linalg.solve(self.outer, layer.bias) - weight @ self.shift)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.layer(x @ self.inner.T + self.shift) @ self.outer.T


def in_other_coordinates(policy: nn.Module, before: bool, after: bool) -> nn.Module:
    """Map the inputs, such as the observations, or the outputs of each layer that acts."""
    policy = copy.deepcopy(policy)
    network = policy.mlp_extractor.policy_net
    for i, layer in enumerate(network):
        if isinstance(layer, nn.Linear):
            network[i] = InOtherCoordinates(layer, before, after)
    policy.action_net = InOtherCoordinates(policy.action_net, before, after)
    return policy


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("distribution", ["Gaussian", "categorical", "multi-categorical", "Bernoulli"])
def test_kfac_changes_the_policy_alike_in_any_coordinates_of_its_layers(distribution, before, after):
    """
    Luk & Grosse (2018), A Coordinate-Free Construction of Scalable Natural Gradient: K-FAC does not see an
    affine map of what goes into a layer, the observations among it, nor a linear map of what comes out.
    """
    plain = make_problem(distribution, "Mlp", 200)
    mixed = in_other_coordinates(plain.policy, before, after)
    twin = LocalProblem(mixed, plain.observations, plain.actions, plain.advantages)
    outputs = [p.metric.outputs(p.policy.get_distribution(p.observations)) for p in (plain, twin)]
    th.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-10)
    assert {type(block) for block in twin.layers.blocks if block.name != "log_std"} == {LayerBlock}

    def differ(solver: str, damping: float) -> float:
        return difference(change_of_policy(plain, solver, damping), change_of_policy(twin, solver, damping))

    for solver in ("exact", "kfac"):
        much, little = differ(solver, 1e-6), differ(solver, 1e-11)
        assert little < 0.1 * much
        assert little < 5e-3
    for solver in ("diagonal", "identity"):
        assert differ(solver, 1e-11) > 0.1


@pytest.mark.parametrize("solver", ["exact", "kfac"])
def test_hidden_units_of_a_linear_network_may_be_mixed(solver):
    """s₂ = W₂ M⁻¹ (M W₁ x + M b₁) + b₂: the maps of two layers that belong to one representation."""
    policy = make_network_policy(
        nn.Flatten, (3,), "categorical", net_arch={"pi": [4], "vf": []}, activation_fn=nn.Identity
    )
    plain = freeze_problem(policy, make_observations((3,), 100))
    mixed, mix = copy.deepcopy(policy), well_conditioned(4)
    hidden, last = mixed.mlp_extractor.policy_net[0], mixed.action_net
    with th.no_grad():
        hidden.weight.copy_(mix @ hidden.weight)
        hidden.bias.copy_(mix @ hidden.bias)
        last.weight.copy_(last.weight @ th.linalg.inv(mix))
    twin = LocalProblem(mixed, plain.observations, plain.actions, plain.advantages)
    alike = difference(change_of_policy(plain, solver, 1e-11), change_of_policy(twin, solver, 1e-11))
    assert alike < 1e-3
    for other in ("diagonal", "identity"):
        assert difference(change_of_policy(plain, other, 1e-11), change_of_policy(twin, other, 1e-11)) > 0.1


def test_conjugate_gradient_run_long_finds_the_same_change():
    problem = make_problem("Gaussian", "Mlp", 200)
    solver = make_fisher_solver("cg", {"max_steps": 500, "rtol": 1e-12})
    gradient = problem.surrogate_gradient()
    x = solver.solve(problem, gradient, 1e-3).natural_gradient
    expected = make_fisher_solver("exact").solve(problem, gradient, 1e-3).natural_gradient
    assert difference(expected, x) < 1e-6


def tabular(logits: th.Tensor) -> RolloutFisher:
    """Return the Fisher of a softmax over a table of logits, all states equally likely."""
    table = nn.Parameter(logits)
    model = OutputModel(lambda rows: table[rows], len(logits), ParameterVector([table]), CategoricalFisher())
    return RolloutFisher(model, len(logits))


def test_tabular_softmax_natural_gradient_is_multiplicative_weights():
    """
    For a table of logits the natural gradient is the advantage function: log π ← log π + ηA.

    Kakade (2001), section 4; Agarwal et al. (2021), On the Theory of Policy Gradient Methods, lemma 15.
    """
    n_states, n_actions, eta = 5, 4, 0.7
    logits = th.randn(n_states, n_actions, dtype=th.float64)
    probabilities = logits.softmax(dim=1)
    q_values = th.randn(n_states, n_actions, dtype=th.float64)
    advantages = q_values - (probabilities * q_values).sum(dim=1, keepdim=True)
    gradient = (probabilities * advantages / n_states).flatten()  # of mean_s Σ_a π(a|s) A(s, a)

    fisher = tabular(logits)

    class Problem:
        fisher_vector_product = staticmethod(fisher.product)
        dense_fisher = staticmethod(fisher.dense)

    for solver in ("cg", "exact"):
        kwargs = {"max_steps": 100, "rtol": 1e-12} if solver == "cg" else None
        x = make_fisher_solver(solver, kwargs).solve(Problem(), gradient, 1e-10).natural_gradient
        updated = (logits + eta * x.view(n_states, n_actions)).softmax(dim=1)
        expected = probabilities * (eta * advantages).exp()
        expected = expected / expected.sum(dim=1, keepdim=True)
        th.testing.assert_close(updated, expected, rtol=1e-6, atol=1e-8)


def test_two_parameter_gaussian_has_the_natural_gradient_known_by_hand():
    """π = N(μ, σ²) with θ = (μ, σ): F = diag(1/σ², 2/σ²), so F⁻¹g = (σ² g_μ, σ²/2 g_σ)."""
    mean, std = 0.3, 0.7
    theta = nn.Parameter(th.tensor([mean, std], dtype=th.float64))

    def outputs(_rows: slice) -> th.Tensor:
        return th.stack([theta[0], theta[1].log()]).unsqueeze(0)

    fisher = RolloutFisher(OutputModel(outputs, 1, ParameterVector([theta]), GaussianFisher()), 1)
    expected = th.diag(th.tensor([1 / std**2, 2 / std**2], dtype=th.float64))
    th.testing.assert_close(fisher.dense(), expected)
    gradient = th.tensor([0.5, -1.2], dtype=th.float64)
    natural = th.linalg.solve(fisher.dense(), gradient)
    th.testing.assert_close(natural, th.tensor([std**2 * 0.5, std**2 / 2 * -1.2], dtype=th.float64))


def test_log_std_of_a_gaussian_has_the_fisher_two_times_identity():
    problem = make_problem("Gaussian", "Mlp", 30)
    d = problem.policy.log_std.numel()
    dense = problem.dense_fisher()
    assert problem.parameters[0] is problem.policy.log_std
    th.testing.assert_close(dense[:d, :d], 2.0 * th.eye(d, dtype=th.float64))
    assert float(dense[:d, d:].abs().max()) < 1e-15


def test_kl_of_a_step_is_measured_in_nats():
    """Moving the mean of one unit Gaussian by 1 costs ½ nat; two dimensions cost 1."""
    old, new = th.zeros(1, 4), th.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert float(GaussianFisher().kl(old, new)) == pytest.approx(1.0)
    assert math.isclose(float(GaussianFisher().kl(old[:, :2], new[:, [0, 2]])), 0.5)
