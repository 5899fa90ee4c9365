"""K-FAC and EKFAC: how near they come to F, how they are damped, and what they keep from update to update."""

import hypothesis.strategies as st
import pytest
import torch as th
from hypothesis import given, settings

from sb3_npg.fisher import LayerBlock, dense_blocks, layer_blocks
from sb3_npg.solvers import make_fisher_solver
from sb3_npg.solvers.diagonal import DiagonalSolver
from tests.cases import DISTRIBUTIONS, POLICIES, make_problem
from tests.networks import expected_layers, make_network_problem
from tests.reference import block, block_diagonal, curvature, kfac_matrix, matrix_of, relative_error, single_layers

pytestmark = pytest.mark.usefixtures("float64")


def updated(name, *problems, **kwargs):
    solver = make_fisher_solver(name, kwargs)
    for problem in problems:
        solver.update(problem)
    return solver


def matrix(name, *problems, **kwargs):
    return matrix_of(updated(name, *problems, **kwargs), len(problems[-1].vector))


def factors(solver, problem):
    """Return A and G of each layer as the solver remembers them."""
    return {
        f"{one.name}.{factor}": solver.memory.tensors[f"{one.name}.{factor}"]
        for one in layer_blocks(problem.layers.blocks)
        for factor in "AG"
    }


def measured(solver, problem):
    """Return what a solver averages: the diagonal, or A and G."""
    return solver.eigenvalues() if isinstance(solver, DiagonalSolver) else factors(solver, problem)


# How near to F


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    distribution=st.sampled_from(sorted(DISTRIBUTIONS)),
    policy=st.sampled_from(sorted(POLICIES)),
    weight_sharing=st.sampled_from(["expand", "reduce"]),
    n=st.integers(1, 12),
    seed=st.integers(0, 2**16),
)
def test_ekfac_is_never_further_from_the_fisher_than_kfac(distribution, policy, weight_sharing, n, seed):
    """George et al. (2018), section 3: S is the best diagonal in K-FAC's eigenbasis."""
    problem = make_problem(distribution, policy, n, seed)
    fisher = problem.dense_fisher()
    kfac, ekfac = (matrix(name, problem, weight_sharing=weight_sharing) for name in ("kfac", "ekfac"))
    slack = 1e-9 * float(fisher.norm())
    assert float((fisher - ekfac).norm()) <= float((fisher - kfac).norm()) + slack
    # A layer has the trace of its block, which K-FAC has only where the inputs do not tell the rows apart.
    for one in layer_blocks(problem.layers.blocks):
        index = one.gather(th.arange(len(fisher)))
        traces = [float(block(one_matrix, index).trace()) for one_matrix in (ekfac, fisher)]
        assert traces[0] == pytest.approx(traces[1], rel=1e-8, abs=slack)


def test_ekfac_is_nearer_than_kfac_where_kfac_is_not_exact():
    problem = make_problem("categorical", "Mlp", 30)
    fisher = problem.dense_fisher()
    indices = [one.gather(th.arange(len(fisher))) for one in problem.layers.blocks]
    blocks = block_diagonal([(index, block(fisher, index)) for index in indices], len(fisher))
    kfac, ekfac = (relative_error(matrix(name, problem), blocks) for name in ("kfac", "ekfac"))
    assert 0.01 < ekfac < 0.95 * kfac


@settings(max_examples=15, deadline=None, derandomize=True)
@given(distribution=st.sampled_from(sorted(DISTRIBUTIONS)), n=st.integers(2, 8), seed=st.integers(0, 2**16))
def test_second_moments_are_the_diagonal_in_the_eigenbasis(distribution, n, seed):
    problem = make_problem(distribution, "Cnn", n, seed)
    fisher, solver = problem.dense_fisher(), updated("ekfac", problem)
    for one in layer_blocks(problem.layers.blocks):
        index = one.gather(th.arange(len(fisher)))
        a, g = (solver.memory.eigen(f"{one.name}.{factor}").vectors for factor in "AG")
        q = th.kron(g, a)
        expected = (q.T @ block(fisher, index) @ q).diagonal().view(index.shape)
        th.testing.assert_close(solver.memory.tensors[f"{one.name}.S"], expected, rtol=1e-8, atol=1e-10)


def test_eigenvalues_are_those_of_the_matrix():
    problem = make_problem("gSDE", "Mlp", 12)
    for name in ("diagonal", "ekfac", "kfac"):
        solver = updated(name, problem)
        values = th.cat(list(solver.eigenvalues().values())).sort().values
        expected = th.linalg.eigvalsh(matrix(name, problem)).sort().values
        th.testing.assert_close(values, expected, rtol=1e-8, atol=1e-8)
        condition = solver.solve(problem, problem.surrogate_gradient(), 0.1).stats["condition"]
        assert condition == pytest.approx(float((values[-1] + 0.1) / (values[0] + 0.1)), rel=1e-8)


# Damping split between large factors


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize(("name", "largest_eigen"), [("kfac", 0), ("kfac", 4), ("ekfac", 0)])
@pytest.mark.parametrize("network", ["Linear", "two convolutions", "at every position", "no bias", "frozen weight"])
def test_large_factors_are_damped_one_by_one(network, largest_eigen, name, weight_sharing):
    """(A + π√λ I) ⊗ (G + √λ/π I) with π² = mean eigenvalue of A / of G; small ones are damped together."""
    problem = make_network_problem(network, "categorical", 3)
    p, damping = len(problem.vector), 0.03
    layers = expected_layers(problem, network)
    exact = curvature(problem.policy, problem.observations, 3, problem.parameters, layers)
    dense = kfac_matrix(exact, weight_sharing) + damping * th.eye(p, dtype=th.float64)
    n_large = 0
    for layer in exact.layers:
        a, g = layer.factors[weight_sharing]
        if max(len(a), len(g)) > largest_eigen:
            n_large += 1
            pi = float((a.trace() / len(a)) / (g.trace() / len(g))) ** 0.5
            a = a + pi * damping**0.5 * th.eye(len(a), dtype=th.float64)
            g = g + damping**0.5 / pi * th.eye(len(g), dtype=th.float64)
            index = layer.index.flatten()
            dense[index.unsqueeze(1), index] = th.kron(g, a)
    assert n_large > 0
    solver = updated(name, problem, largest_eigen=largest_eigen, weight_sharing=weight_sharing)
    gradient = problem.surrogate_gradient()
    x = solver.solve(problem, gradient, damping).natural_gradient
    assert relative_error(x, th.linalg.solve(dense, gradient)) < 1e-8


@pytest.mark.parametrize("memory_budget", [2**28, 1])
@pytest.mark.parametrize("options", [{}, {"columns": "sampled"}, {"largest_eigen": 3}], ids=str)
@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_wide_factors_of_few_rows_are_inverted_in_the_space_of_rows(name, options, memory_budget, monkeypatch):
    problem = make_problem("categorical", "Mlp", 2, memory_budget=memory_budget)
    gradient = problem.surrogate_gradient()
    multiplied = updated(name, problem, **{"largest_eigen": 0, **options})
    monkeypatch.setattr("sb3_npg.solvers.kfac.SMALLEST_GRAM", 1)
    as_rows = updated(name, problem, **{"largest_eigen": 0, **options})
    assert as_rows._grams
    assert not multiplied._grams
    for damping in (1.0, 1e-3):
        one, other = (solver.solve(problem, gradient, damping) for solver in (as_rows, multiplied))
        assert relative_error(one.natural_gradient, other.natural_gradient) < 1e-10
    for one, other in zip(as_rows.eigenvalues().values(), multiplied.eigenvalues().values(), strict=True):
        th.testing.assert_close(one.sort().values, other.sort().values)
    with pytest.raises(ArithmeticError, match="not positive definite"):
        as_rows.apply_inverse(gradient, 0.0)


def test_factors_that_are_remembered_are_multiplied_out(monkeypatch):
    monkeypatch.setattr("sb3_npg.solvers.kfac.SMALLEST_GRAM", 1)
    solver = updated("kfac", make_problem("categorical", "Mlp", 2), largest_eigen=0, decay=0.5)
    assert not solver._grams


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_factors_of_many_rows_take_the_place_of_those_that_were_kept_as_rows(name, monkeypatch):
    monkeypatch.setattr("sb3_npg.solvers.kfac.SMALLEST_GRAM", 1)
    few, many = (make_problem("categorical", "Mlp", n) for n in (2, 12))
    gradient = many.surrogate_gradient()
    assert updated(name, few, largest_eigen=0)._grams
    ours, fresh = (updated(name, *seen, largest_eigen=0) for seen in ([few, many], [many]))
    assert not fresh._grams
    one, other = (solver.solve(many, gradient, 0.1).natural_gradient for solver in (ours, fresh))
    assert th.equal(one, other)


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_split_damping_follows_the_damping_and_the_update(name):
    problems = [make_problem("Gaussian", "Mlp", 8, seed) for seed in range(2)]
    gradient = problems[0].surrogate_gradient()
    solver = updated(name, problems[0], largest_eigen=0)
    first, more, again = (solver.solve(problems[0], gradient, damping).natural_gradient for damping in (0.1, 1.0, 0.1))
    assert th.equal(first, again)
    assert relative_error(more, first) > 0.1
    solver.update(problems[1])
    fresh = updated(name, problems[1], largest_eigen=0)
    one, other = (each.solve(problems[1], gradient, 0.1).natural_gradient for each in (solver, fresh))
    assert th.equal(one, other)


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_layers_without_inputs_or_without_gradient_are_damped_alone(name):
    """Factors of zeros, as of a layer behind dead units: x = g/λ there."""
    problem = make_problem("Gaussian", "Mlp", 8)
    with th.no_grad():
        problem.policy.action_net.weight.zero_()  # nothing is propagated back
    gradient = th.randn(len(problem.vector), dtype=th.float64)
    for largest_eigen in (0, 1024):
        x = updated(name, problem, largest_eigen=largest_eigen).solve(problem, gradient, 0.2).natural_gradient
        hidden = next(one for one in layer_blocks(problem.layers.blocks) if "policy_net.0" in one.name)
        if largest_eigen:
            th.testing.assert_close(hidden.gather(x), hidden.gather(gradient) / 0.2)
        assert bool(th.isfinite(x).all())


def test_either_factor_that_is_singular_is_told():
    """Without damping: what goes in spans all inputs, and nothing is propagated back."""
    problem = make_problem("Gaussian", "Mlp", 20)
    with th.no_grad():
        problem.policy.action_net.weight.zero_()
    solver = updated("kfac", problem, largest_eigen=0)
    hidden = [f"{one.name}.A" for one in layer_blocks(problem.layers.blocks) if "policy_net" in one.name]
    assert all(float(th.linalg.eigvalsh(factors(solver, problem)[name])[0]) > 1e-6 for name in hidden)
    with pytest.raises(ArithmeticError, match="not positive definite"):
        solver.apply_inverse(th.randn(len(problem.vector), dtype=th.float64), 0.0)


# From update to update


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("name", ["diagonal", "kfac", "ekfac"])
def test_averages_are_weighted_means_of_the_updates(name, decay):
    problems = [make_problem("categorical", "Mlp", 6, seed) for seed in range(4)]
    solver = make_fisher_solver(name, {"decay": decay})
    for n, problem in enumerate(problems, start=1):
        solver.update(problem)
        weights = [decay ** (n - 1 - i) for i in range(n)]
        singles = [updated(name, one) for one in problems[:n]]
        for each, average in measured(solver, problem).items():
            newest = [measured(single, problem)[each] for single in singles]
            mean = sum(w * one for w, one in zip(weights, newest, strict=True)) / sum(weights)
            th.testing.assert_close(average, mean, rtol=1e-10, atol=1e-14)


def test_kfac_solves_with_its_averages():
    problems = [make_problem("Gaussian", "Mlp", 5, seed) for seed in range(3)]
    weights = [0.25, 0.5, 1.0]
    exacts = [
        curvature(one.policy, one.observations, 5, one.parameters, single_layers(one.policy, one.parameters))
        for one in problems
    ]
    parts = []
    for i, layer in enumerate(exacts[0].layers):
        a, g = (
            sum(w * exact.layers[i].factors["expand"][k] for w, exact in zip(weights, exacts, strict=True)) / 1.75
            for k in (0, 1)
        )
        parts.append((layer.index, th.kron(g, a)))
    for index in exacts[0].others:
        blocks = [w * block(exact.fisher, index) for w, exact in zip(weights, exacts, strict=True)]
        parts.append((index, sum(blocks) / 1.75))
    expected = block_diagonal(parts, len(problems[0].vector))
    th.testing.assert_close(matrix("kfac", *problems, decay=0.5), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
@pytest.mark.parametrize(("statistics", "inverse"), [(1, 1), (2, 1), (1, 3), (3, 2), (2, 4)])
def test_factors_and_their_eigenbases_are_kept_for_their_intervals(name, statistics, inverse):
    """Factors are those of the newest update i ≡ 0 (mod statistics); their eigenbases, of i ≡ 0 (mod inverse)."""
    problems = [make_problem("categorical", "Mlp", 6, seed) for seed in range(7)]
    solver = make_fisher_solver(name, {"statistics_interval": statistics, "inverse_interval": inverse})
    for i, problem in enumerate(problems):
        solver.update(problem)
        newest = updated(name, problems[i - i % statistics])
        at_inverse = i - i % inverse
        decomposed = updated(name, problems[at_inverse - at_inverse % statistics])
        for each, tensor in factors(solver, problem).items():
            assert th.equal(tensor, newest.memory.tensors[each])
            for ours, theirs in zip(solver.memory.eigen(each), decomposed.memory.eigen(each), strict=True):
                assert th.equal(ours, theirs)


@pytest.mark.parametrize(
    ("statistics", "inverse", "measured_at"),
    [
        (2, 3, [0, 0, 2, 3, 4, 4, 6]),  # at even updates, and at 3 where the eigenbasis is new
        (3, 1, [0, 0, 0, 3, 3, 3, 6]),  # factors that stay have an eigenbasis that stays
        (3, 2, [0, 0, 0, 3, 4, 4, 6]),
    ],
)
def test_second_moments_are_kept_for_their_interval_or_as_long_as_the_eigenbasis(statistics, inverse, measured_at):
    problems = [make_problem("categorical", "Mlp", 6, seed) for seed in range(7)]
    solver = make_fisher_solver("ekfac", {"statistics_interval": statistics, "inverse_interval": inverse})
    for i, problem in enumerate(problems):
        solver.update(problem)
        source = problems[measured_at[i]]
        fisher = source.dense_fisher()
        for one in layer_blocks(problem.layers.blocks):
            a, g = (solver.memory.eigen(f"{one.name}.{factor}").vectors for factor in "AG")
            q, index = th.kron(g, a), one.gather(th.arange(len(fisher)))
            expected = (q.T @ block(fisher, index) @ q).diagonal().view(index.shape)
            th.testing.assert_close(solver.memory.tensors[f"{one.name}.S"], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("interval", [1, 3])
def test_diagonal_is_kept_for_its_interval(interval):
    problems = [make_problem("categorical", "Mlp", 6, seed) for seed in range(5)]
    solver = make_fisher_solver("diagonal", {"statistics_interval": interval})
    for i, problem in enumerate(problems):
        solver.update(problem)
        expected = problems[i - i % interval].dense_fisher().diagonal()
        th.testing.assert_close(matrix_of(solver, len(expected)).diagonal(), expected)


@pytest.mark.parametrize("name", ["diagonal", "kfac", "ekfac"])
def test_blocks_that_change_their_shape_are_measured_at_once(name):
    """A user froze a bias between two updates: nothing that is kept fits any more."""
    first, second = make_problem("Gaussian", "Mlp", 6), make_problem("Gaussian", "Mlp", 6)
    second.policy.action_net.bias.requires_grad_(False)
    second.policy.mlp_extractor.policy_net[0].weight.requires_grad_(False)
    second = type(second)(second.policy, second.observations, second.actions, second.advantages)
    kwargs = {"statistics_interval": 100, "decay": 0.9}
    if name != "diagonal":
        kwargs["inverse_interval"] = 100
    solver = updated(name, first, second, **kwargs)
    gradient = second.surrogate_gradient()
    ours, fresh = (one.solve(second, gradient, 0.1).natural_gradient for one in (solver, updated(name, second)))
    frozen = {one.name for one in second.layers.blocks} ^ {one.name for one in first.layers.blocks}
    for one in second.layers.blocks:
        if isinstance(one, LayerBlock) and (one.name in frozen or "action_net" in one.name):
            assert one.gather(ours).shape == one.shape
            th.testing.assert_close(one.gather(ours), one.gather(fresh))
    assert len(dense_blocks(second.layers.blocks)) == 1


@pytest.mark.parametrize("largest_eigen", [0, 1024])
@pytest.mark.parametrize("name", ["kfac", "ekfac"])
@pytest.mark.parametrize("distributions", [("categorical", "Bernoulli"), ("Gaussian", "gSDE")], ids="-".join)
def test_outputs_or_noise_of_another_shape_are_measured_at_once(distributions, name, largest_eigen):
    """What goes into the layers is as before: G of the last, or the block of the noise, fits no more."""
    first, second = (make_problem(distribution, "Mlp", 12) for distribution in distributions)
    kwargs = {"statistics_interval": 100, "inverse_interval": 100, "largest_eigen": largest_eigen}
    gradient = second.surrogate_gradient()
    solvers = [updated(name, *seen, **kwargs) for seen in ([first, second], [second])]
    ours, fresh = (solver.solve(second, gradient, 0.1).natural_gradient for solver in solvers)
    th.testing.assert_close(ours, fresh)


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
@pytest.mark.parametrize("largest_eigen", [0, 1024])
def test_state_that_is_loaded_into_a_solver_in_use_is_what_it_solves_with(name, largest_eigen):
    first, second = (make_problem("categorical", "Mlp", 12, seed) for seed in (0, 1))
    kwargs = {"inverse_interval": 100, "largest_eigen": largest_eigen}
    ours, theirs = updated(name, first, **kwargs), updated(name, second, **kwargs)
    gradient = second.surrogate_gradient()
    before = ours.solve(second, gradient, 0.1).natural_gradient
    ours.load_state_dict(theirs.state_dict())
    after, expected = (solver.solve(second, gradient, 0.1).natural_gradient for solver in (ours, theirs))
    assert not th.allclose(before, expected)
    assert th.equal(after, expected)


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
@pytest.mark.parametrize("limits", [(0, 1024), (1024, 0)], ids=str)
def test_factors_loaded_with_another_limit_are_inverted_as_it_says(limits, name):
    problem = make_problem("categorical", "Mlp", 12)
    gradient = problem.surrogate_gradient()
    saved, ours = (make_fisher_solver(name, {"inverse_interval": 100, "largest_eigen": limit}) for limit in limits)
    saved.update(problem)
    ours.load_state_dict(saved.state_dict())
    ours.update(problem)
    fresh = updated(name, problem, largest_eigen=limits[1])
    one, other = (solver.solve(problem, gradient, 0.1).natural_gradient for solver in (ours, fresh))
    th.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["diagonal", "kfac", "ekfac"])
def test_solver_that_never_saw_the_curvature_says_so(name):
    problem = make_problem("Gaussian", "Mlp", 6)
    with pytest.raises(ArithmeticError, match="update"):
        make_fisher_solver(name).solve(problem, problem.surrogate_gradient(), 0.1)


@pytest.mark.parametrize("name", ["diagonal", "kfac", "ekfac"])
def test_random_columns_are_drawn_anew_at_each_update(name):
    problem = make_problem("categorical", "Mlp", 6)
    solver = make_fisher_solver(name, {"columns": "propagated"})
    found = []
    for _ in range(2):
        solver.update(problem)
        found.append(list(measured(solver, problem).values()))
    assert not all(map(th.equal, *found))
