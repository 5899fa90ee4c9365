"""F_out, its root and its KL in closed form, for each family of distributions."""

import math

import hypothesis.strategies as st
import pytest
import torch as th
from hypothesis import given, settings
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from torch.distributions import Independent, Normal

from sb3_npg.linalg import output_product
from sb3_npg.output_fisher import (
    BernoulliFisher,
    CategoricalFisher,
    GaussianFisher,
    MultiCategoricalFisher,
    OutputFisher,
    make_noise,
    make_output_fisher,
    make_sampler,
)
from tests.cases import make_policy

FAMILIES: dict[str, tuple[OutputFisher, int]] = {
    "Gaussian": (GaussianFisher(), 6),
    "categorical": (CategoricalFisher(), 5),
    "two actions": (CategoricalFisher(), 2),
    "one action": (CategoricalFisher(), 1),
    "multi-categorical": (MultiCategoricalFisher([3, 1, 2]), 6),
    "Bernoulli": (BernoulliFisher(), 4),
}
each_family = pytest.mark.parametrize(("family", "k"), FAMILIES.values(), ids=FAMILIES)


def dense(family: OutputFisher, outputs: th.Tensor) -> th.Tensor:
    """Return F_out of each row, shape (n, k, k), column by column."""
    identity = th.eye(outputs.shape[1], dtype=outputs.dtype)
    columns = [output_product(*family.weights_at(outputs), unit.expand_as(outputs)) for unit in identity]
    return th.stack(columns, dim=2)


@each_family
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), scale=st.floats(0.01, 5.0))
def test_product_is_the_hessian_of_the_kl(family, k, seed, scale):
    outputs = scale * th.randn(1, k, generator=th.Generator().manual_seed(seed), dtype=th.float64)
    matrix = dense(family, outputs)[0]
    for order in (lambda z: family.kl(outputs, z), lambda z: family.kl(z, outputs)):
        expected = th.autograd.functional.hessian(lambda z, order=order: order(z).sum(), outputs)[0, :, 0]
        th.testing.assert_close(matrix, expected, rtol=1e-9, atol=1e-14)


@each_family
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), scale=st.floats(0.01, 300.0))
def test_root_times_its_transpose_is_f_out_also_for_saturated_policies(family, k, seed, scale):
    if isinstance(family, GaussianFisher):
        scale = min(scale, 5.0)
    outputs = scale * th.randn(3, k, generator=th.Generator().manual_seed(seed), dtype=th.float64)
    root, matrix = family.root(outputs), dense(family, outputs)
    assert bool(th.isfinite(root).all())
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    th.testing.assert_close(root @ root.transpose(1, 2), matrix, rtol=1e-9, atol=1e-14 + 1e-12 * largest)


def test_fisher_of_saturated_bits_keeps_its_digits():
    outputs = th.tensor([[-30.0, 30.0, 20.0]])
    expected = (-outputs.abs()).exp()  # p (1 − p), but for less than its last digit
    matrix, root = dense(BernoulliFisher(), outputs), BernoulliFisher().root(outputs)
    th.testing.assert_close(matrix.diagonal(dim1=1, dim2=2), expected, rtol=1e-5, atol=0.0)
    th.testing.assert_close(root.diagonal(dim1=1, dim2=2).square(), expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(("name", "columns"), [("categorical", 4), ("multi-categorical", 3), ("one action", 0)])
def test_root_has_no_more_columns_than_the_rank(name, columns):
    family, k = FAMILIES[name]
    assert family.root(th.randn(2, k)).shape == (2, k, columns)


@each_family
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16))
def test_kl_is_positive_and_zero_only_at_itself(family, k, seed):
    generator = th.Generator().manual_seed(seed)
    old, new = th.randn(2, 5, k, generator=generator, dtype=th.float64)
    assert family.kl(old, new).shape == (5,)
    if k > 1:
        assert float(family.kl(old, new).min()) > 0
    th.testing.assert_close(family.kl(old, old), th.zeros(5, dtype=th.float64))


def distributions() -> list[tuple[Distribution, Distribution]]:
    """Return pairs of SB3 distributions with more than one action dimension, as constants."""
    z = th.randn(8, 3, 4, dtype=th.float64)
    log_std = 0.3 * th.randn(2, 4, dtype=th.float64)
    gsde = [StateDependentNoiseDistribution(4, full_std=False) for _ in range(2)]
    for one in gsde:
        one.latent_sde_dim = 5
    latent = th.rand(3, 5, dtype=th.float64)
    sde_log_std = 0.3 * th.randn(2, 5, 1, dtype=th.float64)
    return [
        tuple(DiagGaussianDistribution(4).proba_distribution(z[i], log_std[i]) for i in (0, 1)),
        tuple(gsde[i].proba_distribution(z[i], sde_log_std[i], latent) for i in (0, 1)),
        tuple(CategoricalDistribution(4).proba_distribution(z[i]) for i in (2, 3)),
        tuple(MultiCategoricalDistribution([2, 2]).proba_distribution(z[i]) for i in (4, 5)),
        tuple(BernoulliDistribution(4).proba_distribution(z[i]) for i in (6, 7)),
    ]


@pytest.mark.parametrize("case", range(5), ids=["Gaussian", "gSDE", "categorical", "multi-categorical", "Bernoulli"])
def test_kl_equals_its_monte_carlo_estimate_over_all_action_dimensions(case):
    old, new = distributions()[case]
    family = make_output_fisher(old)
    kl = family.kl(family.outputs(old), family.outputs(new))
    n = 20_000
    inner = old.distribution if isinstance(old.distribution, list) else [old.distribution]
    other = new.distribution if isinstance(new.distribution, list) else [new.distribution]
    log_ratio = th.zeros(n, 3, dtype=th.float64)
    for p, q in zip(inner, other, strict=True):
        samples = p.sample((n,))
        log_ratio += (p.log_prob(samples) - q.log_prob(samples)).reshape(n, 3, -1).sum(dim=2)
    error = log_ratio.std(dim=0) / math.sqrt(n)
    assert bool(((log_ratio.mean(dim=0) - kl).abs() < 4 * error).all())


def test_small_kl_keeps_its_digits_in_float32():
    """The textbook form of the Gaussian KL loses all digits of log-std steps below 1e-4 in float32."""
    old = th.zeros(1, 2)
    new = th.tensor([[0.0, 1e-4]])
    assert float(GaussianFisher().kl(old, new)) == pytest.approx(1e-8, rel=1e-2)


@pytest.mark.parametrize("dtype", [th.float32, th.float64], ids=str)
@pytest.mark.parametrize("family", [CategoricalFisher(), MultiCategoricalFisher([2, 3])], ids=["one", "several"])
def test_actions_that_are_impossible_cost_nothing(family, dtype):
    possible = [0, 1, 2, 4]
    old, new = th.randn(2, 1, 5, dtype=dtype, generator=th.Generator().manual_seed(0))
    less = CategoricalFisher() if isinstance(family, CategoricalFisher) else MultiCategoricalFisher([2, 2])
    expected = [less.kl(old[:, possible], new[:, possible]), less.entropy(old[:, possible])]
    old[:, 3] = new[:, 3] = -math.inf
    new.requires_grad_()
    kl = family.kl(old, new)
    th.testing.assert_close([kl, family.entropy(old)], expected)
    (gradient,) = th.autograd.grad((kl + family.entropy(new)).sum(), new)
    assert gradient.isfinite().all()
    assert gradient[0, 3] == 0.0
    assert not family.kl(old.nan_to_num(neginf=0.0), old) < 1e30  # what was possible and is no longer


def test_a_distribution_of_an_unknown_kind_is_refused():
    class Unknown(DiagGaussianDistribution.__base__):
        pass

    Unknown.__abstractmethods__ = frozenset()
    with pytest.raises(ValueError, match=r"`policy` acts by a Unknown.*MaskablePPO"):
        make_output_fisher(Unknown())


@pytest.mark.parametrize(
    ("distribution", "inside", "expected"),
    [
        (DiagGaussianDistribution(2), Independent(Normal(th.zeros(1, 2), th.ones(1, 2)), 1), "Normal"),
        (CategoricalDistribution(2), Normal(th.zeros(1), th.ones(1)), "Categorical"),
        (MultiCategoricalDistribution([2, 2]), Normal(th.zeros(1), th.ones(1)), "list of Categorical"),
        (BernoulliDistribution(2), Normal(th.zeros(1), th.ones(1)), "Bernoulli"),
    ],
)
def test_a_distribution_that_holds_another_one_is_refused_by_name(distribution, inside, expected):
    distribution.distribution = inside
    held = type(inside).__name__
    with pytest.raises(ValueError, match=rf"`policy` acts by .*is a {held}, and .* is known for a {expected} there"):
        make_output_fisher(distribution).outputs(distribution)


@pytest.mark.parametrize("log_std", [-1e4, 1e4, math.nan])
def test_spread_of_zero_or_infinity_is_that_of_no_distribution(log_std):
    assert not GaussianFisher().is_defined(th.tensor([[0.0, 1.0, -1.0, log_std]]))
    assert GaussianFisher().is_defined(th.tensor([[0.0, 1.0, -1.0, 1.0]]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_actions_are_finite_where_the_noise_of_gsde_is_not(value):
    policy = make_policy("gSDE", "Mlp")
    sampler = make_sampler(GaussianFisher(), make_noise(policy.action_dist, policy.log_std))
    features = th.full((1, len(policy.log_std)), value, dtype=th.float64)
    actions, _ = sampler.draw(th.zeros(1, 2, dtype=th.float64), features)
    assert bool(actions.isfinite().all())
