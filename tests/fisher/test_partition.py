"""How the parameters are cut into blocks: each once, and never one whose records are not the truth."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from sb3_npg.fisher import LayerBlock, dense_blocks, layer_blocks
from sb3_npg.fisher.autograd import pull_all
from sb3_npg.fisher.partition import untreated_block
from sb3_npg.local_problem import LocalProblem
from sb3_npg.solvers import make_fisher_solver
from tests.agents import make_agent
from tests.cases import DISTRIBUTIONS, POLICIES
from tests.cases import make_problem as make_any_problem
from tests.networks import (
    NETWORKS,
    Extractor,
    freeze_problem,
    make_network_policy,
    make_network_problem,
    make_observations,
)
from tests.reference import block, block_diagonal, curvature, matrix_of, scores

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

#: These tests are of what hooks find, which a network that is known does without.
make_problem = partial(make_any_problem, fast_paths=False)


class Functional(nn.Module):
    """Calls a layer, and uses its weight beside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return functional.linear(self.layer(x).tanh(), self.layer.weight.T).tanh()


class OnlyFunctional(Functional):
    """Never calls the layer that it has."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return functional.linear(x, self.layer.weight, self.layer.bias).tanh()


class ByKeyword(Functional):
    """Calls a layer by the name of its argument."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.layer(input=x).tanh()


class Penalised(Functional):
    """Uses the weight's norm."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.layer(x).tanh() * (1.0 + self.layer.weight.square().sum()).sqrt()


class RowsLast(Functional):
    """Mixes the features of all positions, with the rows in the second dimension: (T, n, features)."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.layer(x.transpose(0, 1)).tanh().sum(dim=0)


class BothWays(Functional):
    """Calls a layer with the rows in the first dimension, and once more with them in the second."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.layer(x).tanh().sum(dim=1) + self.layer(x.transpose(0, 1)).tanh().sum(dim=0)


class RowsInTheMiddle(nn.Module):
    """A recurrent network written by hand, rows in the second dimension, used once a position."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: th.Tensor) -> th.Tensor:
        state = th.zeros_like(x[:, 0])
        for position in x.transpose(0, 1):
            state = (self.inner(position) + self.outer(state)).tanh()
        return state


class FoldedPositions(Functional):
    """Folds positions into rows, as attention does: (n T, features)."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.layer(x.flatten(0, 1)).tanh().view(len(x), -1)


class Table(nn.Module):
    """Looks rows up in a table that a layer makes, as large as the rows that the layers are tried on."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Parameter(th.zeros(3, 2)), nn.Linear(2, 4)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x @ self.layer(self.embedding).tanh()


class ImageTable(Functional):
    """Convolves one image, of as many channels as the rows that the layers are tried on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.register_buffer("image", th.linspace(-1.0, 1.0, 12, dtype=th.float64).view(3, 2, 2))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x @ self.layer(self.image.to(x.dtype)).tanh().flatten(1)


class Looked(nn.Module):
    """An embedding of which kind of row it is."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.embedding(x.argmax(dim=1)).tanh()


class Scaled(nn.Linear):
    """A layer that is not what its type says."""

    def forward(self, input: th.Tensor) -> th.Tensor:
        return super().forward(input * 2.0)


class PartlyDetached(Functional):
    """Stops the gradient of one of two calls."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.layer(x).tanh() + self.layer(2.0 * x).detach()


class PartlyWithoutGradients(Functional):
    """Calls a layer once more without gradients."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        with th.no_grad():
            shift = self.layer(2.0 * x)
        return self.layer(x).tanh() + shift


class Hooked(Functional):
    """A layer whose output another hook changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer.register_forward_hook(lambda _module, _inputs, output: 3.0 * output.tanh())

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.layer(x)


class WrittenOver(Functional):
    """Works in place on what comes out of a layer."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        out = self.layer(x)
        out *= 2.0
        return out.tanh_()


class Branched(nn.Module):
    """Different layers for different rows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return th.where(x[:, :1] > 0.0, self.one(x), self.other(x)).tanh()


class Routed(Branched):
    """Sends some rows through one layer and some through another."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        out = th.zeros(len(x), 4, dtype=x.dtype)
        first = x[:, 0] > 0.0
        out[first] = self.one(x[first])
        out[~first] = self.other(x[~first])
        return out.tanh()


class Normalised(nn.Module):
    """Convolution, normalisation over channels, and over features."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.over_channels = nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4)
        self.over_features = nn.LayerNorm(16)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.over_features(self.over_channels(self.convolution(x)).flatten(1)).tanh()


class Squared(nn.Module):
    """A layer of products of observations."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(3, 3, 2)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.layer(x, x).tanh()


def weight_norm(layer: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(parametrizations.weight_norm(copy.deepcopy(layer)), nn.Tanh(), nn.Flatten())


@dataclass(frozen=True)
class Odd:
    """
    A network that is more than Linear and Conv2d.

    :param build: builds it
    :param others: names of the parameters that are in no layer; None where they may be
    :param shape: of an observation
    """

    build: Callable[[], nn.Module]
    others: tuple[str, ...] | None
    shape: tuple[int, ...] = (3,)


_WEIGHT_AND_BIAS = ("layer.weight", "layer.bias")
ODD: dict[str, Odd] = {
    "weight used beside the layer": Odd(Functional, _WEIGHT_AND_BIAS),
    "layer never called": Odd(OnlyFunctional, _WEIGHT_AND_BIAS),
    "layer called by keyword": Odd(ByKeyword, None),
    "weight in the loss": Odd(Penalised, _WEIGHT_AND_BIAS),
    "rows in the second dimension": Odd(RowsLast, _WEIGHT_AND_BIAS, (4, 3)),
    "as many positions as rows tried": Odd(RowsLast, _WEIGHT_AND_BIAS, (3, 3)),
    "rows in the first dimension and the second": Odd(BothWays, _WEIGHT_AND_BIAS, (4, 3)),
    "recurrent": Odd(RowsInTheMiddle, (), (3, 3)),
    "positions folded into rows": Odd(FoldedPositions, _WEIGHT_AND_BIAS, (2, 3)),
    "table as long as the rows tried": Odd(Table, ("embedding", *_WEIGHT_AND_BIAS)),
    "image of as many channels as rows tried": Odd(ImageTable, _WEIGHT_AND_BIAS),
    "embedding": Odd(Looked, ("embedding.weight",)),
    "another kind of Linear": Odd(lambda: nn.Sequential(Scaled(3, 4), nn.Tanh()), ("0.weight", "0.bias")),
    "partly detached": Odd(PartlyDetached, ()),
    "partly without gradients": Odd(PartlyWithoutGradients, ()),
    "changed by a hook": Odd(Hooked, _WEIGHT_AND_BIAS),
    "written over": Odd(WrittenOver, ()),
    "branches": Odd(Branched, ()),
    "routes": Odd(Routed, None),
    "normalised": Odd(
        Normalised,
        ("over_channels.weight", "over_channels.bias", "over_features.weight", "over_features.bias"),
        (2, 3, 3),
    ),
    "grouped convolution": Odd(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten()), ("0.weight", "0.bias"), (2, 3, 3)
    ),
    "bilinear": Odd(Squared, ("layer.weight", "layer.bias")),
    "weight norm": Odd(
        weight_norm(nn.Linear(3, 4)),
        ("0.parametrizations.weight.original0", "0.parametrizations.weight.original1"),
    ),
    "weight norm of a convolution": Odd(
        weight_norm(nn.Conv2d(2, 2, 2)),
        ("0.parametrizations.weight.original0", "0.parametrizations.weight.original1"),
        (2, 3, 3),
    ),
    "orthogonal weight": Odd(
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 4)), nn.Tanh()),
        ("0.parametrizations.weight.original",),
    ),
}


def make_odd_problem(odd: Odd, distribution: str = "Gaussian", n: int = 7) -> LocalProblem:
    observations = make_observations(odd.shape, n)
    if odd.build in (Table, Looked):
        observations = th.eye(3)[th.arange(n) % 3]  # the first three rows are the table's
    return freeze_problem(make_network_policy(odd.build, odd.shape, distribution), observations)


def true_fisher(problem: LocalProblem) -> th.Tensor:
    policy, observations = problem.policy, problem.observations
    return curvature(policy, observations, problem.n_rows, problem.parameters, []).fisher


def updated(name: str, problem: LocalProblem, **kwargs: Any) -> Any:
    """Return a solver after an update, whatever it warned of."""
    solver = make_fisher_solver(name, kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        solver.update(problem)
    return solver


def assert_partition(problem: LocalProblem) -> None:
    p = len(problem.vector)
    blocks = problem.layers.blocks
    covered = th.cat([one.gather(th.arange(p)).flatten() for one in blocks])
    assert th.equal(covered.sort().values, th.arange(p))
    assert sum(one.size for one in blocks) == p
    assert len({one.name for one in blocks}) == len(blocks)
    starts = [int(one.gather(th.arange(p)).min()) for one in layer_blocks(blocks)]
    assert starts == sorted(starts)


# Every parameter once


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_blocks_of_every_policy_cover_every_parameter_once(distribution, policy):
    problem = make_problem(distribution, policy)
    assert_partition(problem)
    # Nothing is treated more coarsely than in its layer, or in closed form.
    assert all(one.note is None for one in dense_blocks(problem.layers.blocks))
    assert [one.name for one in dense_blocks(problem.layers.blocks)] == (
        ["log_std"] if hasattr(problem.policy, "log_std") else []
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_blocks_of_every_layer_cover_every_parameter_once(network):
    problem = make_network_problem(network)
    assert_partition(problem)
    assert [one.name for one in dense_blocks(problem.layers.blocks)] == ["log_std"]


@pytest.mark.parametrize("network", ODD)
def test_blocks_of_odd_networks_cover_every_parameter_once(network):
    problem = make_odd_problem(ODD[network])
    assert_partition(problem)
    prefix = "features_extractor.network."
    others = {one.name.removeprefix(prefix) for one in dense_blocks(problem.layers.blocks)}
    assert ODD[network].others is None or others == {*ODD[network].others, "log_std"}


def test_gathering_and_scattering_undo_each_other():
    for network in NETWORKS:
        problem = make_network_problem(network)
        vector = th.randn(len(problem.vector))
        copied = th.full_like(vector, th.nan)
        for one in problem.layers.blocks:
            matrix = one.gather(vector)
            assert matrix.shape == one.shape
            one.scatter(matrix, copied)
        assert th.equal(copied, vector)


def test_bias_is_the_last_column():
    problem = make_problem("Gaussian", "Mlp")
    layer = problem.policy.action_net
    one = next(one for one in layer_blocks(problem.layers.blocks) if one.name == "action_net")
    expected = th.cat([layer.weight, layer.bias.unsqueeze(1)], dim=1)
    assert th.equal(one.gather(problem.vector.get()), expected)


@pytest.mark.parametrize(
    ("network", "names"),
    [
        ("shared weight and bias", ["first"]),
        ("shared weight", ["first.weight", "first.bias", "second.bias"]),
        ("shared bias", ["first.weight", "second.weight", "first.bias"]),
        ("frozen weight", ["0.bias"]),
        ("frozen bias", ["0.weight"]),
        ("no bias", ["0.weight"]),
        ("frozen layer", ["0"]),
    ],
)
def test_layers_are_named_and_joined_by_what_they_share(network, names):
    found = [one.name for one in layer_blocks(make_network_problem(network).layers.blocks)]
    prefix = "features_extractor.network."
    assert sorted(found) == sorted([*(prefix + name for name in names), "action_net"])


# Never silently wrong


@pytest.mark.parametrize("distribution", ["Gaussian", "categorical"])
@pytest.mark.parametrize("network", ODD)
def test_diagonal_of_odd_networks_is_the_true_one(network, distribution):
    problem = make_odd_problem(ODD[network], distribution)
    diagonal = matrix_of(updated("diagonal", problem), len(problem.vector)).diagonal()
    th.testing.assert_close(diagonal, true_fisher(problem).diagonal(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
@pytest.mark.parametrize("network", ODD)
def test_what_is_in_no_layer_has_its_own_block(network, name):
    problem = make_odd_problem(ODD[network], "categorical")
    fisher = true_fisher(problem)
    matrix = matrix_of(updated(name, problem), len(fisher))
    for one in dense_blocks(problem.layers.blocks):
        th.testing.assert_close(matrix[one.span, one.span], fisher[one.span, one.span], rtol=1e-8, atol=1e-9)
        outside = th.ones(len(fisher), dtype=th.bool)
        outside[one.span] = False
        assert float(matrix[one.span][:, outside].abs().max()) < 1e-12


@pytest.mark.parametrize("network", ODD)
def test_sampled_fisher_of_odd_networks_is_the_true_one(network):
    problem = make_odd_problem(ODD[network], "categorical")
    rows = scores(problem.policy, problem.observations, problem.actions, problem.parameters)
    matrix = rows.T @ rows / len(rows) + 0.1 * th.eye(rows.shape[1], dtype=th.float64)
    gradient = problem.surrogate_gradient()
    x = updated("woodbury", problem).solve(problem, gradient, 0.1).natural_gradient
    th.testing.assert_close(x, th.linalg.solve(matrix, gradient), rtol=1e-8, atol=1e-10)


class Balanced(nn.Module):
    """Uses a layer's weight beside it for what the sum of all outputs does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: th.Tensor) -> th.Tensor:
        beside = functional.linear(x, self.layer.weight)
        return self.layer(x) + beside - beside.mean(dim=1, keepdim=True)


def test_outputs_that_hide_something_together_are_told_apart():
    policy = make_network_policy(Balanced, (3,))
    policy.action_net = nn.Identity()
    problem = freeze_problem(policy, make_observations((3,), 7))
    assert not layer_blocks(problem.layers.blocks)
    assert_partition(problem)


def test_layers_that_mix_rows_in_a_later_chunk_alone_are_none():
    """The rows that are tried, and the first chunk, go through one layer of two."""
    policy = make_network_policy(lambda: nn.Sequential(nn.Linear(3, 3), Routed()), (3,), "categorical")
    with th.no_grad():
        policy.features_extractor.network[0].weight.copy_(th.eye(3))
        policy.features_extractor.network[0].bias.zero_()
    observations = make_observations((3,), 7)
    observations[:, 0] = observations[:, 0].abs() * th.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0])
    whole, chunked = (freeze_problem(policy, observations, memory_budget=budget) for budget in (2**28, 1))
    assert len(whole.layers.chunks) == 1 < len(chunked.layers.chunks)
    assert [one.name for one in chunked.layers.blocks] == [one.name for one in whole.layers.blocks]
    assert [one.name for one in layer_blocks(chunked.layers.blocks)] == ["features_extractor.network.0", "action_net"]
    assert_partition(chunked)


class UsedForSome(nn.Module):
    """Uses a layer once more for some rows: by a function, or by another layer that shares its parameters."""

    def __init__(self, is_tied: bool) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(3, 4), nn.Linear(4, 4)
        self.other = nn.Linear(3, 4) if is_tied else None
        if self.other is not None:
            self.other.weight, self.other.bias = self.layer.weight, self.layer.bias

    def forward(self, x: th.Tensor) -> th.Tensor:
        out, chosen = self.last(self.layer(x).tanh()), (x[:, 0] > 0.0).nonzero().flatten()
        if len(chosen) == 0:
            return out
        more = functional.linear(x[chosen], self.layer.weight) if self.other is None else self.other(x[chosen])
        return out.index_add(0, chosen, more.tanh())


@pytest.mark.parametrize("budget", [2**28, 1])
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_layer_that_is_used_again_for_later_rows_is_none(is_tied, budget):
    policy = make_network_policy(lambda: UsedForSome(is_tied), (3,))
    observations = make_observations((3,), 9)
    observations[:, 0] = observations[:, 0].abs() * th.linspace(-1.0, 0.5, 9).sign()
    problem = freeze_problem(policy, observations, memory_budget=budget)
    names = [one.name for one in layer_blocks(problem.layers.blocks)]
    assert names == ["features_extractor.network.last", "action_net"]
    assert_partition(problem)
    diagonal = updated("diagonal", problem)
    th.testing.assert_close(matrix_of(diagonal, len(problem.vector)).diagonal(), true_fisher(problem).diagonal())


class NoiseForSome(ActorCriticPolicy):
    """σ depends on the features of some rows."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.noise_net = nn.Linear(self.mlp_extractor.latent_dim_pi, 2)

    def get_distribution(self, obs: Any) -> Any:
        hidden = self.mlp_extractor.forward_actor(obs.double())
        log_std, chosen = self.log_std.expand(len(hidden), 2), (obs[:, 0] > 0.0).nonzero().flatten()
        if len(chosen) > 0:
            log_std = log_std.index_add(0, chosen, self.noise_net(hidden[chosen]))
        return self.action_dist.proba_distribution(self.action_net(hidden), log_std)


def test_outputs_that_a_layer_reaches_for_later_rows_alone_count():
    space = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,))
    policy = NoiseForSome(*space, lambda _: 1e-3, net_arch={"pi": [4, 4], "vf": [4]}).double()
    policy.set_training_mode(False)
    observations = make_observations((3,), 9)
    observations[:, 0] = observations[:, 0].abs() * th.linspace(-1.0, 0.5, 9).sign()
    for budget in (2**28, 1):
        problem = freeze_problem(policy, observations, memory_budget=budget)
        diagonal = updated("diagonal", problem)
        th.testing.assert_close(matrix_of(diagonal, len(problem.vector)).diagonal(), true_fisher(problem).diagonal())


def test_blocks_of_no_known_kind_are_formed_within_the_chunks(monkeypatch):
    policy, taken = make_network_policy(OnlyFunctional, (3,)), []

    def counting(outputs: th.Tensor, *others: Any) -> th.Tensor:
        taken.append(len(outputs))
        return pull_all(outputs, *others)

    monkeypatch.setattr("sb3_npg.fisher.rollout_fisher.pull_all", counting)
    layers = freeze_problem(policy, make_observations((3,), 40), memory_budget=1).layers
    weight = next(one for one in dense_blocks(layers.blocks) if one.name.endswith("layer.weight"))
    taken.clear()
    layers.dense_block(weight)
    assert taken == [1] * 40


def test_large_parameter_of_no_known_kind_leaves_its_diagonal():
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 40, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(40, 2))

    problem = freeze_problem(make_network_policy(build, (4, 2, 2)), make_observations((4, 2, 2), 5))
    large = next(one for one in dense_blocks(problem.layers.blocks) if one.size > 256)
    fisher = problem.dense_fisher()
    matrix = matrix_of(updated("kfac", problem), len(fisher))
    expected = th.diag(fisher.diagonal()[large.span])
    th.testing.assert_close(matrix[large.span, large.span], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("size", "shape"), [(1, (1, 1)), (256, (1, 256)), (257, (257, 1))])
def test_parameters_of_no_known_kind_are_formed_up_to_a_size(size, shape):
    one = untreated_block("one", slice(3, 3 + size))
    assert one.shape == shape
    assert one.size == size


# Noise


@pytest.mark.parametrize("distribution", [name for name in DISTRIBUTIONS if "SDE" in name or "Gaussian" in name])
def test_scale_of_the_noise_has_a_closed_form(distribution):
    problem = make_problem(distribution, "Mlp")
    (noise,) = dense_blocks(problem.layers.blocks)
    fisher = problem.dense_fisher()[noise.span, noise.span]
    place = noise.gather(th.arange(noise.size))
    formed = block_diagonal(list(zip(place, problem.layers.dense_block(noise), strict=True)), noise.size)
    th.testing.assert_close(formed, fisher, rtol=1e-10, atol=1e-12)
    assert noise.note is None


def test_scale_of_the_noise_that_does_more_is_formed():
    """A policy of one's own that uses ``log_std`` otherwise."""
    problem = make_problem("Gaussian", "Mlp")
    policy, true = problem.policy, problem.policy._get_action_dist_from_latent

    def coupled(latent: th.Tensor) -> Any:
        policy.log_std.data.clamp_(-5.0, 5.0)
        distribution = true(latent)
        return distribution.proba_distribution(distribution.distribution.mean * policy.log_std.exp(), policy.log_std)

    policy._get_action_dist_from_latent = coupled
    problem = LocalProblem(policy, problem.observations, problem.actions, problem.advantages)
    (noise,) = dense_blocks(problem.layers.blocks)
    assert noise.note is not None
    matrix = matrix_of(updated("kfac", problem), len(problem.vector))
    fisher = true_fisher(problem)
    th.testing.assert_close(matrix[noise.span, noise.span], fisher[noise.span, noise.span], rtol=1e-8, atol=1e-9)


# What is said


@pytest.mark.parametrize("name", ["diagonal", "ekfac", "kfac"])
def test_layers_that_are_not_known_are_named_once(name):
    problem, solver = make_odd_problem(ODD["grouped convolution"]), make_fisher_solver(name)
    with pytest.warns(UserWarning, match=r"features_extractor\.network\.0\.weight.*fisher_solver='cg'") as caught:
        solver.update(problem)
    solver.update(problem)  # a warning is an error here
    (warning,) = caught
    assert "features_extractor.network.0.bias" in str(warning.message)
    assert "log_std" not in str(warning.message)


def test_layers_that_are_known_are_not_mentioned(recwarn):
    for network in NETWORKS:
        make_fisher_solver("kfac").update(make_network_problem(network))
    assert not [warning for warning in recwarn if "fisher_solver='cg'" in str(warning.message)]


def test_agent_names_what_it_does_not_know_once():
    options = {"features_extractor_class": Extractor, "features_extractor_kwargs": {"build": ODD["embedding"].build}}
    agent = make_agent("vector", fisher_solver="kfac", policy_kwargs=options)
    with pytest.warns(UserWarning, match=r"embedding\.weight") as caught:
        agent.learn(3 * agent.n_steps)
    assert len(caught) == 1
    assert agent._n_skipped_updates == 0


def test_layer_frozen_between_updates_leaves_the_blocks():
    problem = make_problem("Gaussian", "Mlp")
    before = {one.name for one in problem.layers.blocks}
    problem.policy.action_net.requires_grad_(False)
    again = LocalProblem(problem.policy, problem.observations, problem.actions, problem.advantages)
    names = {one.name for one in again.layers.blocks}
    assert names == before - {"action_net"}
    assert_partition(again)
    assert all(isinstance(one, LayerBlock) for one in again.layers.blocks if one.name != "log_std")
    index = [one.gather(th.arange(len(again.vector))) for one in again.layers.blocks]
    fisher = again.dense_fisher()
    for one, at in zip(again.layers.blocks, index, strict=True):
        diagonal = matrix_of(updated("diagonal", again), len(fisher)).diagonal()
        th.testing.assert_close(one.gather(diagonal), one.gather(fisher.diagonal()), rtol=1e-8, atol=1e-10)
        assert block(fisher, at).shape == (one.size, one.size)
