"""Damping relative to the mean eigenvalue of each layer's block."""

from typing import Any

import pytest
import torch as th

from sb3_npg.fisher import layer_blocks
from sb3_npg.local_problem import LocalProblem
from sb3_npg.solvers import make_fisher_solver
from sb3_npg.solvers.direction import find_direction
from sb3_npg.solvers.scaling import ScaledLayers, ScaledProblem, block_scale
from tests.cases import DISTRIBUTIONS, POLICIES, make_problem
from tests.networks import NETWORKS, expected_layers, make_network_problem
from tests.reference import curvature, kfac_matrix, relative_error, scores, single_layers

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

EPSILON = 0.2
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "cg": ("cg", {"max_steps": 2000, "rtol": 1e-13}),
    "cg, kfac": ("cg", {"max_steps": 2000, "rtol": 1e-13, "preconditioner": "kfac"}),
    "diagonal": ("diagonal", {}),
    "exact": ("exact", {}),
    "kfac": ("kfac", {}),
    "woodbury": ("woodbury", {}),
}


def layerwise_damping(problem: LocalProblem, fisher: th.Tensor) -> th.Tensor:
    """Return the diagonal of Λ: ε tr(F_l) / P_l for the parameters of each block."""
    damping = th.full((len(fisher),), th.nan, dtype=th.float64)
    for one in problem.layers.blocks:
        index = one.gather(th.arange(len(fisher))).flatten()
        damping[index] = EPSILON * fisher.diagonal()[index].mean()
    return damping


def own_matrix(name: str, problem: LocalProblem) -> th.Tensor:
    exact = curvature(
        problem.policy,
        problem.observations,
        problem.n_rows,
        problem.parameters,
        single_layers(problem.policy, problem.parameters),
    )
    if name == "woodbury":
        rows = scores(problem.policy, problem.observations, problem.actions, problem.parameters)
        return rows.T @ rows / len(rows)
    if name == "diagonal":
        return th.diag(exact.fisher.diagonal())
    return kfac_matrix(exact) if name == "kfac" else exact.fisher


@pytest.mark.parametrize(
    ("distribution", "policy"), [("Gaussian", "Mlp"), ("gSDE", "Mlp"), ("categorical", "Mlp"), ("Bernoulli", "Cnn")]
)
@pytest.mark.parametrize("name", SETTINGS)
def test_solution_equals_a_dense_solve_with_the_damping_of_each_layer(name, policy, distribution):
    problem = make_problem(distribution, policy, 4)
    fisher, gradient = problem.dense_fisher(), problem.surrogate_gradient()
    damping = th.diag(layerwise_damping(problem, fisher))
    expected = th.linalg.solve(own_matrix(name, problem) + damping, gradient)
    registered, kwargs = SETTINGS[name]
    direction = find_direction(make_fisher_solver(registered, kwargs), problem, gradient, EPSILON, relative=True)
    assert relative_error(direction.natural_gradient, expected) < 1e-8


@pytest.mark.parametrize("name", SETTINGS)
def test_figures_are_those_of_the_true_fisher(name):
    problem = make_problem("categorical", "Mlp", 12)
    fisher, gradient = problem.dense_fisher(), problem.surrogate_gradient()
    registered, kwargs = SETTINGS[name]
    found = find_direction(make_fisher_solver(registered, kwargs), problem, gradient, EPSILON, relative=True)
    x, root = found.natural_gradient, layerwise_damping(problem, fisher).sqrt()
    assert found.damping == EPSILON
    assert found.curvature == pytest.approx(float(x @ fisher @ x), rel=1e-9)
    assert found.slope == pytest.approx(float(gradient @ x), rel=1e-9)
    # In the coordinates in which each block's mean eigenvalue is one.
    wrong = (gradient - fisher @ x - root.square() * x) / root
    expected = float(wrong.norm() / (gradient / root).norm())
    assert found.stats["residual"] == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", ["cg", "exact", "kfac"])
def test_absolute_damping_is_the_same_in_each_layer(name):
    problem = make_problem("categorical", "Mlp", 6)
    gradient = problem.surrogate_gradient()
    registered, kwargs = SETTINGS[name]
    found = find_direction(make_fisher_solver(registered, kwargs), problem, gradient, EPSILON)
    matrix = own_matrix(name, problem) + EPSILON * th.eye(len(gradient), dtype=th.float64)
    assert relative_error(found.natural_gradient, th.linalg.solve(matrix, gradient)) < 1e-8
    residual = gradient - problem.dense_fisher() @ found.natural_gradient - EPSILON * found.natural_gradient
    assert found.stats["residual"] == pytest.approx(float(residual.norm() / gradient.norm()), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_scale_makes_the_mean_eigenvalue_of_each_block_one(distribution, policy):
    problem = make_problem(distribution, policy)
    scaled = ScaledProblem(problem, block_scale(problem.layers))
    diagonal = scaled.dense_fisher().diagonal()
    for one in problem.layers.blocks:
        assert float(one.gather(diagonal).mean()) == pytest.approx(1.0, rel=1e-8)


@pytest.mark.parametrize("network", ["Linear", "two convolutions", "shared weight", "frozen bias", "used twice"])
def test_scaled_problem_is_the_problem_in_other_coordinates(network):
    problem = make_network_problem(network, "categorical", 5)
    scale = block_scale(problem.layers)
    scaled, fisher = ScaledProblem(problem, scale), problem.dense_fisher()
    expected = th.diag(1.0 / scale) @ fisher @ th.diag(1.0 / scale)
    vector = th.randn(len(scale), dtype=th.float64)
    th.testing.assert_close(scaled.dense_fisher(), expected)
    th.testing.assert_close(scaled.fisher_vector_product(vector), expected @ vector)
    assert NETWORKS[network].layers is not None
    layers = expected_layers(problem, network)
    exact = curvature(problem.policy, problem.observations, 5, problem.parameters, layers)
    for name, kwargs, matrix in (
        ("kfac", {}, kfac_matrix(exact)),
        ("kfac", {"weight_sharing": "reduce"}, kfac_matrix(exact, "reduce")),
        ("diagonal", {}, th.diag(fisher.diagonal())),
    ):
        solver = make_fisher_solver(name, kwargs)
        solver.update(scaled)
        x = solver.solve(scaled, vector, EPSILON).natural_gradient
        dense = matrix / scale / scale.unsqueeze(1) + EPSILON * th.eye(len(scale), dtype=th.float64)
        assert relative_error(x, th.linalg.solve(dense, vector)) < 1e-8


@pytest.mark.parametrize(
    "kind", [("exact", 0, "reduce"), ("propagated", 0, "expand"), ("propagated", 1, "expand"), ("sampled", 0, "expand")]
)
def test_scaled_records_are_of_the_kind_that_is_asked_for(kind):
    layers = make_network_problem("two convolutions", "categorical", 5).layers
    scale = block_scale(layers)
    (scaled,), (expected,) = (list(each.records(*kind)) for each in (ScaledLayers(layers, scale), layers))
    for (one, inputs, deltas), record in zip(scaled, expected, strict=True):
        assert one is record.block
        th.testing.assert_close(inputs, record.inputs)
        th.testing.assert_close(deltas * one.gather(scale)[0, 0], record.deltas)


@pytest.mark.parametrize("name", ["cg", "diagonal", "exact", "kfac"])
def test_layer_written_in_other_units_takes_the_same_step(name):
    """Weights of a hidden layer counted in thousandths: F_l is 10⁶ times as small, and the step 10³ times as long."""

    class InUnits(th.nn.Module):
        def __init__(self, layer: th.nn.Linear, unit: float):
            super().__init__()
            self.layer, self.unit = layer, unit
            with th.no_grad():
                for parameter in layer.parameters():
                    parameter.div_(unit)

        def forward(self, x: th.Tensor) -> th.Tensor:
            return self.layer(x) * self.unit

    steps = []
    for unit in (1.0, 1e-3):
        problem = make_problem("categorical", "Mlp", 8)
        network = problem.policy.mlp_extractor.policy_net
        network[2] = InUnits(network[2], unit)
        problem = LocalProblem(problem.policy, problem.observations, problem.actions, problem.advantages)
        registered, kwargs = SETTINGS[name]
        gradient = problem.surrogate_gradient()
        x = find_direction(make_fisher_solver(registered, kwargs), problem, gradient, EPSILON, relative=True)
        (place,) = (one for one in layer_blocks(problem.layers.blocks) if "policy_net.2" in one.name)
        place.scatter(unit * place.gather(x.natural_gradient), x.natural_gradient)
        steps.append(x.natural_gradient)
    assert relative_error(steps[1], steps[0]) < 1e-7


@pytest.mark.parametrize("name", SETTINGS)
def test_block_without_curvature_is_finite(name):
    """A layer of which the policy sees nothing, as behind dead units: its gradient is zero too."""
    problem = make_problem("Gaussian", "Mlp", 8)
    with th.no_grad():
        problem.policy.action_net.weight.zero_()
    problem = LocalProblem(problem.policy, problem.observations, problem.actions, problem.advantages)
    hidden = [one for one in layer_blocks(problem.layers.blocks) if "policy_net" in one.name]
    assert not any(one.gather(problem.dense_fisher().diagonal()).any() for one in hidden)
    scale = block_scale(problem.layers)
    assert bool((scale > 0.0).all())
    assert bool(th.isfinite(scale).all())
    registered, kwargs = SETTINGS[name]
    gradient = problem.surrogate_gradient()
    direction = find_direction(make_fisher_solver(registered, kwargs), problem, gradient, EPSILON, relative=True)
    assert bool(th.isfinite(direction.natural_gradient).all())
    assert not any(one.gather(direction.natural_gradient).any() for one in hidden)
    assert direction.damping == EPSILON


@pytest.mark.parametrize("name", ["diagonal", "kfac", "ekfac"])
def test_what_was_measured_in_other_coordinates_is_forgotten(name):
    """Relative damping is switched on between two updates: averages of F and of S⁻¹FS⁻¹ do not mix."""
    first, second = (make_problem("Gaussian", "Mlp", 8, seed) for seed in range(2))
    solver, fresh = (make_fisher_solver(name, {"decay": 0.9}) for _ in range(2))
    find_direction(solver, first, first.surrogate_gradient(), 0.1)
    gradient = second.surrogate_gradient()
    ours, expected = (find_direction(one, second, gradient, 0.1, relative=True) for one in (solver, fresh))
    assert th.equal(ours.natural_gradient, expected.natural_gradient)


def test_block_without_curvature_has_the_smallest_scale_that_is_given():
    problem = make_problem("Gaussian", "Mlp", 8)
    with th.no_grad():
        problem.policy.action_net.weight.zero_()
    problem = LocalProblem(problem.policy, problem.observations, problem.actions, problem.advantages)
    scale = block_scale(problem.layers)
    for one in layer_blocks(problem.layers.blocks):
        if "policy_net" in one.name:
            th.testing.assert_close(one.gather(scale), th.full(one.shape, 1e-4, dtype=th.float64) * scale.max())


def test_policy_without_curvature_stays_in_its_own_coordinates():
    problem = make_problem("categorical", "Mlp", 8)
    with th.no_grad():
        problem.policy.action_net.bias[0] = 1e4  # one action is certain
    problem = LocalProblem(problem.policy, problem.observations, problem.actions, problem.advantages)
    assert not problem.dense_fisher().any()
    assert th.equal(block_scale(problem.layers), th.ones(len(problem.vector), dtype=th.float64))
