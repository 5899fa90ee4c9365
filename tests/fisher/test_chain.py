"""The Fisher as a chain of layers: the same matrix as by any other way."""

import pytest
import torch as th

from sb3_npg.solvers.base import fisher_chain, layer_chain
from sb3_npg.solvers.scaling import ScaledProblem
from tests.cases import DISTRIBUTIONS, POLICIES, make_problem

BY_HAND = [name for name in POLICIES if name.startswith("Mlp") or name == "MultiInput"]
EXACT = {"rtol": 1e-10, "atol": 1e-12}

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("policy", BY_HAND)
@pytest.mark.parametrize("distribution", [name for name in DISTRIBUTIONS if name != "gSDE learn_features"])
def test_chain_multiplies_as_the_fisher_does(distribution, policy):
    problem = make_problem(distribution, policy, 6)
    chain = problem.fisher_chain()
    assert chain is not None
    for vector in th.randn(3, len(problem.vector), dtype=th.float64):
        th.testing.assert_close(chain.product(vector), problem.fisher_vector_product(vector), **EXACT)


def test_chain_of_a_scaled_problem_is_scaled():
    problem = make_problem("Gaussian", "Mlp", 6)
    vector, scale = th.randn(2, len(problem.vector), dtype=th.float64)
    scaled = ScaledProblem(problem, scale.abs() + 0.5)
    chain = fisher_chain(scaled)
    assert chain is not None
    th.testing.assert_close(chain.product(vector), scaled.fisher_vector_product(vector), **EXACT)


def test_chain_leaves_out_what_is_not_trained():
    trained = make_problem("Gaussian", "Mlp", 6)
    policy = trained.policy
    policy.mlp_extractor.policy_net[0].requires_grad_(False)
    policy.log_std.requires_grad_(False)
    problem = type(trained)(policy, trained.observations, trained.actions, trained.advantages)
    assert len(problem.vector) < len(trained.vector)
    chain = problem.fisher_chain()
    assert chain is not None
    assert chain.noise is chain.noise_span is None
    vector = th.randn(len(problem.vector), dtype=th.float64)
    th.testing.assert_close(chain.product(vector), problem.fisher_vector_product(vector), **EXACT)


def test_no_chain_through_autograd_or_in_chunks():
    assert make_problem("Gaussian", "Cnn", 6).fisher_chain() is None
    assert make_problem("Gaussian", "NatureCNN", 6).fisher_chain() is None
    assert make_problem("Gaussian", "Mlp", 6, fast_paths=False).fisher_chain() is None
    assert make_problem("Gaussian", "Mlp", 6, memory_budget=1).fisher_chain() is None
    assert fisher_chain(object()) is None


def test_layers_are_a_chain_where_the_fisher_is():
    assert layer_chain(make_problem("Gaussian", "Mlp", 6).layers) is not None
    assert layer_chain(make_problem("Gaussian", "NatureCNN", 6).layers) is None
    assert layer_chain(make_problem("Gaussian", "Mlp", 6, fast_paths=False).layers) is None
    assert layer_chain(make_problem("Gaussian", "Mlp", 6, memory_budget=1).layers) is None
