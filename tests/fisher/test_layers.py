"""Records of layers against autograd: what K-FAC and its kin are made of, and where they are exact."""

import math
from functools import partial

import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_npg.fisher import (
    LayerBlock,
    LayerRecord,
    dense_blocks,
    jacobians,
    kronecker_factors,
    layer_blocks,
    second_moments,
    split_rows,
)
from sb3_npg.fisher.autograd import pull_all
from sb3_npg.fisher.rollout_fisher import RolloutFisher
from sb3_npg.local_problem import LocalProblem
from sb3_npg.policy_parts import split_policy
from sb3_npg.solvers import make_fisher_solver
from tests.cases import DISTRIBUTIONS, POLICIES, DistributionCase, make_actions
from tests.cases import make_problem as make_any_problem
from tests.networks import (
    NETWORKS,
    expected_layers,
    freeze_problem,
    make_network_policy,
    make_network_problem,
    make_observations,
)
from tests.reference import block, block_diagonal, curvature, matrix_of, relative_error, scores

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

#: These tests are of what hooks find, which a network that is known does without.
make_problem = partial(make_any_problem, fast_paths=False)


def index_of(one, p: int) -> th.Tensor:
    return one.gather(th.arange(p))


def exact_blocks(problem: LocalProblem) -> th.Tensor:
    """Return the dense F with all but the blocks of layers, and of what is in none, set to zero."""
    fisher = problem.dense_fisher()
    indices = [index_of(one, len(fisher)) for one in problem.layers.blocks]
    return block_diagonal([(index, block(fisher, index)) for index in indices], len(fisher))


def recorded_blocks(problem: LocalProblem, columns="exact", seed=0) -> th.Tensor:
    """Return Σ D Dᵀ / N of the recorded Jacobians, block by block."""
    p = len(problem.vector)
    total = th.zeros(p, p, dtype=th.float64)
    for records in problem.layers.records(columns, seed):
        for record in records:
            flat = jacobians(record.inputs, record.deltas).flatten(2).flatten(0, 1)
            index = index_of(record.block, p).flatten()
            total[index.unsqueeze(1), index] += flat.T @ flat / problem.layers.n_rows
    return total


def layers_only(problem: LocalProblem, matrix: th.Tensor) -> th.Tensor:
    indices = [index_of(one, len(matrix)) for one in layer_blocks(problem.layers.blocks)]
    return block_diagonal([(index, block(matrix, index)) for index in indices], len(matrix))


def natural_gradient(name: str, problem: LocalProblem, gradient: th.Tensor) -> th.Tensor:
    solver = make_fisher_solver(name)
    solver.update(problem)
    return solver.solve(problem, gradient, 0.1).natural_gradient


# Records are the truth


@pytest.mark.parametrize("distribution", ["Gaussian", "gSDE learn_features", "categorical"])
@pytest.mark.parametrize("network", NETWORKS)
def test_recorded_jacobians_give_the_blocks_of_the_dense_fisher(network, distribution):
    problem = make_network_problem(network, distribution, 5)
    expected = layers_only(problem, problem.dense_fisher())
    assert layer_blocks(problem.layers.blocks)
    th.testing.assert_close(recorded_blocks(problem), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_formed_blocks_are_those_of_the_dense_fisher(distribution, policy):
    problem = make_problem(distribution, policy)
    fisher = problem.dense_fisher()
    for one in dense_blocks(problem.layers.blocks):
        expected = th.zeros(one.size, one.size, dtype=th.float64)
        place = one.gather(th.arange(one.size))
        at = place.unsqueeze(2), place.unsqueeze(1)
        expected[at] = problem.layers.dense_block(one)
        th.testing.assert_close(expected, fisher[one.span, one.span], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_sampled_records_are_the_scores_of_the_actions_taken(distribution, policy, monkeypatch):
    problem = make_problem(distribution, policy)
    expected = scores(problem.policy, problem.observations, problem.actions, problem.parameters)
    recorded = th.full_like(expected, th.nan)
    (records,) = problem.layers.records("sampled")
    for record in records:
        index = index_of(record.block, expected.shape[1])
        recorded[:, index] = jacobians(record.inputs, record.deltas)[0]
    monkeypatch.setattr("sb3_npg.fisher.rollout_fisher._ROWS_AT_ONCE", 4)
    for one in dense_blocks(problem.layers.blocks):
        recorded[:, one.span] = problem.layers.scores(one)
    th.testing.assert_close(recorded, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("columns", ["exact", "sampled"])
@pytest.mark.parametrize("distribution", ["Gaussian", "gSDE", "categorical"])
def test_chunks_of_rows_change_nothing(distribution, columns):
    whole, chunked = (make_problem(distribution, "Cnn", 7, memory_budget=budget) for budget in (2**28, 5_000))
    assert len(whole.layers.chunks) == 1 < len(chunked.layers.chunks)
    th.testing.assert_close(recorded_blocks(chunked, columns), recorded_blocks(whole, columns))
    for name in ("diagonal", "kfac", "ekfac", "woodbury"):
        gradient = whole.surrogate_gradient()
        x, y = (natural_gradient(name, problem, gradient) for problem in (whole, chunked))
        th.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)


def test_records_of_one_kind_are_not_taken_for_another():
    problem = make_problem("categorical", "Mlp", 7)
    fresh = [recorded_blocks(make_problem("categorical", "Mlp", 7), *kind) for kind in _KINDS]
    again = [recorded_blocks(problem, *kind) for kind in _KINDS]
    for one, other in zip(fresh, again, strict=True):
        assert th.equal(one, other)
    assert not th.allclose(fresh[0], fresh[1])
    assert not th.allclose(fresh[1], fresh[2])


_KINDS = [("exact", 0), ("propagated", 0), ("propagated", 1), ("sampled", 0), ("exact", 0)]


def test_records_see_the_rows_of_the_fisher_alone():
    problem = make_problem("Gaussian", "Mlp", 9, sub_sampling_factor=2)
    assert problem.layers.n_rows == 5
    th.testing.assert_close(recorded_blocks(problem), layers_only(problem, problem.dense_fisher()))


def test_looking_at_layers_leaves_no_trace():
    problem = make_problem("Gaussian", "Cnn", 5)
    before, state = problem.vector.get(), th.get_rng_state()
    for columns in ("exact", "propagated", "sampled"):
        list(problem.layers.records(columns))
    assert th.equal(problem.vector.get(), before)
    assert th.equal(th.get_rng_state(), state)
    assert not any(module._forward_hooks for module in problem.policy.modules())
    assert all(parameter.grad is None for parameter in problem.policy.parameters())


@pytest.mark.parametrize("columns", ["exact", "propagated", "sampled"])
@pytest.mark.parametrize("fast_paths", [True, False])
def test_layers_are_looked_at_again_for_other_signs_alone(columns, fast_paths):
    layers = make_problem("Gaussian", "Mlp", 5, fast_paths=fast_paths).layers
    (first,), (again,), (other,) = (list(layers.records(columns, seed)) for seed in (0, 0, 1))
    assert again is first
    assert (other is first) == (columns != "propagated")


# Columns


@pytest.mark.parametrize("columns", ["propagated", "sampled"])
@pytest.mark.parametrize("distribution", ["Gaussian", "squashed Gaussian", "multi-categorical", "Bernoulli"])
def test_one_column_is_right_on_average(distribution, columns):
    """The mean over draws comes as near to F as its standard error says, and a single draw does not."""
    n_draws, n = 400, 4
    few = make_problem(distribution, "Mlp", n)
    observations = few.observations.repeat(n_draws, 1)
    actions = make_actions(few.policy, observations)
    many = LocalProblem(few.policy, observations, actions, few.advantages.repeat(n_draws))
    fisher = few.dense_fisher()
    (records,) = many.layers.records(columns)
    for record in records:
        rows = jacobians(record.inputs, record.deltas)[0].flatten(1).view(n_draws, n, -1)
        draws = rows.mT @ rows / n
        expected = block(fisher, index_of(record.block, len(fisher)))
        spread = (draws - expected).square().sum(dim=(1, 2)).mean().sqrt()
        error = (draws.mean(dim=0) - expected).norm()
        assert float(spread) > 0.1 * float(expected.norm())
        assert float(error) < 2.0 * float(spread) / n_draws**0.5


@pytest.mark.parametrize("fast_paths", [True, False])
def test_rows_that_come_again_in_another_chunk_have_signs_of_their_own(fast_paths):
    few = make_any_problem("categorical", "Mlp", 6, fast_paths=fast_paths)
    observations, actions = few.observations.repeat(2, 1), few.actions.repeat(2)
    parts = split_policy(few.policy, observations, fast_paths)
    layers = LocalProblem(few.policy, observations, actions, few.advantages.repeat(2), parts=parts).layers
    layers.chunks = split_rows(12, 6)
    for first, second in zip(*layers.records("propagated"), strict=True):
        assert th.equal(first.inputs, second.inputs)
        assert not th.allclose(first.deltas, second.deltas)


@pytest.mark.parametrize("space", [spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2), spaces.MultiBinary(1)], ids=str)
def test_one_column_is_exact_where_there_is_only_one(monkeypatch, space):
    monkeypatch.setitem(DISTRIBUTIONS, "one column", DistributionCase(space))
    problem = make_problem("one column", "Mlp", 6)
    for seed in range(3):
        th.testing.assert_close(recorded_blocks(problem, "propagated", seed), recorded_blocks(problem))


def test_columns_that_no_layer_moves_are_not_propagated():
    """A free log σ has columns of its own in the root, which would be zero everywhere."""
    (records,) = make_problem("Gaussian", "Mlp").layers.records()
    assert {record.deltas.shape[0] for record in records} == {2}
    (records,) = make_problem("gSDE learn_features", "Mlp").layers.records()
    assert {record.deltas.shape[0] for record in records} == {4}


# Statistics


@pytest.mark.parametrize("n_positions", [1, 3])
def test_second_moments_are_squares_of_jacobians(n_positions, monkeypatch):
    n, c, g, a = 5, 2, 3, 4
    inputs = th.randn(n, n_positions, a, dtype=th.float64)
    deltas = th.randn(c, n, n_positions, g, dtype=th.float64)
    expected = th.zeros(g, a, dtype=th.float64)
    for column in range(c):
        for row in range(n):
            expected += sum(th.outer(deltas[column, row, t], inputs[row, t]) for t in range(n_positions)).square()
    record = LayerRecord(LayerBlock("layer", slice(0, g * a), None, g), inputs, deltas)
    th.testing.assert_close(second_moments(record), expected)
    monkeypatch.setattr("sb3_npg.fisher.statistics.LARGEST_TEMPORARY", 1)  # one row at a time
    th.testing.assert_close(second_moments(record), expected)


@pytest.mark.parametrize("network", ["at every position", "convolution", "shared weight", "frozen weight"])
@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
def test_factors_are_those_of_the_reference(network, weight_sharing):
    problem = make_network_problem(network, "categorical", 3)
    layers = expected_layers(problem, network)
    exact = curvature(problem.policy, problem.observations, 3, problem.parameters, layers)
    expected = {int(one.index[0, 0]): one.factors for one in exact.layers}
    (records,) = problem.layers.records(weight_sharing=weight_sharing)
    assert len(records) == len(expected)
    for record in records:
        factors = expected[int(index_of(record.block, len(problem.vector))[0, 0])][weight_sharing]
        for sums, means in zip(kronecker_factors(record), factors, strict=True):
            th.testing.assert_close(sums / 3, means, rtol=1e-10, atol=1e-12)


# Where K-FAC is exact


def kfac_of(problem: LocalProblem, **kwargs) -> th.Tensor:
    solver = make_fisher_solver("kfac", kwargs)
    solver.update(problem)
    return matrix_of(solver, len(problem.vector))


def mlp_problem(n: int, activation: type[nn.Module], distribution: str = "Gaussian") -> LocalProblem:
    policy = make_network_policy(
        nn.Flatten, (3,), distribution, net_arch={"pi": [5, 4], "vf": [3]}, activation_fn=activation
    )
    return freeze_problem(policy, make_observations((3,), n))


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_kfac_is_exact_for_a_linear_gaussian_network(n):
    """Backpropagated columns are then the same for every row. Martens & Grosse (2015), section 3."""
    problem = mlp_problem(n, nn.Identity)
    th.testing.assert_close(kfac_of(problem), exact_blocks(problem), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("activation", "distribution"), [(nn.Tanh, "Gaussian"), (nn.Identity, "categorical")])
def test_kfac_is_an_approximation_for_others(activation, distribution):
    problem = mlp_problem(7, activation, distribution)
    assert relative_error(kfac_of(problem), exact_blocks(problem)) > 0.01


@pytest.mark.parametrize("policy", [name for name in POLICIES if "cnn" not in name.lower()])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_kfac_is_exact_for_one_row(distribution, policy):
    problem = make_problem(distribution, policy, 1)
    th.testing.assert_close(kfac_of(problem), exact_blocks(problem), rtol=1e-10, atol=1e-10)


class MeanOverPositions(nn.Module):
    """Averages an image over its pixels."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x.mean(dim=(2, 3))


def pooled_convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.Conv2d(3, 2, (2, 1)), MeanOverPositions(), nn.Linear(2, 2))


def test_reduce_is_exact_for_a_pooled_linear_convolution():
    """
    Every position has the same derivative in the last convolution, so its input counts by the mean alone.

    Eschenhagen et al. (2023), section 3.
    """
    problem = freeze_problem(make_network_policy(pooled_convolutions, (2, 4, 4)), make_observations((2, 4, 4), 6))
    exact, reduced, expanded = exact_blocks(problem), kfac_of(problem, weight_sharing="reduce"), kfac_of(problem)
    last = next(one for one in problem.layers.blocks if one.name.endswith("network.1"))
    index = index_of(last, len(exact))
    th.testing.assert_close(block(reduced, index), block(exact, index), rtol=1e-10, atol=1e-10)
    assert relative_error(block(expanded, index), block(exact, index)) > 0.1


def test_expand_is_exact_where_every_output_has_its_own_position():
    """A layer at several positions, each of which is the mean of one action. Eschenhagen et al. (2023), section 3."""
    policy = make_network_policy(lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten()), (2, 3))
    policy.action_net = nn.Identity()
    with th.no_grad():
        policy.log_std.fill_(-0.3)
    problem = freeze_problem(policy, make_observations((2, 3), 6))
    exact = exact_blocks(problem)
    th.testing.assert_close(kfac_of(problem), exact, rtol=1e-10, atol=1e-10)
    assert relative_error(kfac_of(problem, weight_sharing="reduce"), exact) > 0.1


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
def test_a_convolution_over_the_whole_image_is_a_dense_layer(weight_sharing):
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 3, (3, 2)), nn.Flatten(), nn.Linear(3, 2))

    problem = freeze_problem(make_network_policy(build, (2, 3, 2)), make_observations((2, 3, 2), 6))
    th.testing.assert_close(
        kfac_of(problem, weight_sharing=weight_sharing), exact_blocks(problem), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("solver", ["diagonal", "ekfac", "kfac", "woodbury"])
def test_rows_that_come_twice_count_as_once(solver):
    problem = make_problem("categorical", "Cnn", 4)
    twice = LocalProblem(
        problem.policy,
        problem.observations.repeat(2, 1, 1, 1),
        problem.actions.repeat(2),
        problem.advantages.repeat(2),
    )
    x, y = (natural_gradient(solver, one, one.surrogate_gradient()) for one in (problem, twice))
    assert relative_error(y, x) < 1e-9


@pytest.mark.parametrize("chunk_rows", [1, 7, 20, 300])
@pytest.mark.parametrize("distribution", ["Gaussian", "categorical"])
def test_scores_are_differentiated_within_the_chunks(distribution, chunk_rows, monkeypatch):
    n = 20
    problem = make_problem(distribution, "Cnn", n)
    expected = problem.dense_fisher()
    taken = []

    def counting(outputs, parameters, cotangents):
        taken.append(len(cotangents) * len(outputs))
        return pull_all(outputs, parameters, cotangents)

    monkeypatch.setattr("sb3_npg.fisher.rollout_fisher.pull_all", counting)
    fisher = RolloutFisher(problem.actor._model(), chunk_rows)
    th.testing.assert_close(fisher.dense(), expected)
    rank = problem.actor.metric.root(problem.actor.act(slice(0, 1)).outputs.detach()).shape[2]
    assert max(taken) <= max(chunk_rows, rank)
    assert len(taken) == -(-n // max(1, math.isqrt(chunk_rows // rank)))


class AtTwoScales(nn.Module):
    """One convolution of an image and of a part of it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 2)

    def forward(self, x):
        return th.cat([self.layer(x).flatten(1), self.layer(x[:, :, 1:, 1:]).flatten(1)], dim=1).tanh()


@pytest.mark.usefixtures("float64")
def test_reduced_records_are_means_and_sums_over_all_positions():
    problem = freeze_problem(make_network_policy(AtTwoScales, (2, 4, 4)), make_observations((2, 4, 4), 5))
    (expanded,), (reduced,) = (list(problem.layers.records(weight_sharing=way)) for way in ("expand", "reduce"))
    for every, one in zip(expanded, reduced, strict=True):
        th.testing.assert_close(one.inputs, every.inputs.mean(dim=1, keepdim=True))
        th.testing.assert_close(one.deltas, every.deltas.sum(dim=2, keepdim=True))
    assert {record.inputs.shape[1] for record in expanded} == {1, 9 + 4}


@pytest.mark.parametrize(
    ("policy", "n_actions", "budget"), [("NatureCNN", 4, 80_000), ("Mlp", 20, 15_000)], ids=["positions", "columns"]
)
@pytest.mark.parametrize("fast_paths", [True, False])
def test_records_of_a_chunk_stay_within_the_memory_budget(fast_paths, policy, n_actions, budget, monkeypatch):
    """A convolution has inputs at every position, and a layer has derivatives of every column of F_out's root."""
    monkeypatch.setitem(DISTRIBUTIONS, "actions", DistributionCase(spaces.Discrete(n_actions)))
    problem = make_any_problem("actions", policy, 9, fast_paths=fast_paths, memory_budget=budget)
    chunks = list(problem.layers.records())
    assert 1 < len(chunks) < 9
    for records in chunks:
        # The columns of ones that biases see are not counted.
        ones = sum(record.inputs[..., 0].nbytes for record in records)
        assert sum(record.inputs.nbytes + record.deltas.nbytes for record in records) - ones <= budget


@pytest.mark.parametrize("distribution", ["Gaussian", "gSDE", "gSDE full_std=False"])
def test_chunks_of_different_lengths_change_nothing_of_the_noise(distribution):
    whole, chunked = (make_any_problem(distribution, "Mlp", 7, memory_budget=budget) for budget in (2**28, 1_500))
    assert {rows.stop - rows.start for rows in chunked.layers.chunks} == {3, 4}
    (noise,) = dense_blocks(whole.layers.blocks)
    th.testing.assert_close(chunked.layers.dense_block(noise), whole.layers.dense_block(noise))
    th.testing.assert_close(chunked.layers.scores(noise), whole.layers.scores(noise))
