"""Policies of feed-forward networks computed by hand: equal to autograd, and to nothing else."""

import copy
import random
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_npg.acting import FastForward, acting
from sb3_npg.actor import FeedForwardActor, PolicyActor
from sb3_npg.fisher import FeedForwardJacobian, dense_blocks
from sb3_npg.local_problem import LocalProblem
from sb3_npg.networks import read_critic, read_networks
from sb3_npg.policy_parts import split_policy
from tests.agents import ENVIRONMENTS, NormalizingExtractor, TargetEnv, make_agent, make_env, parameters, seeded, train
from tests.agents import POLICIES as NAMES
from tests.cases import DISTRIBUTIONS, POLICIES, make_policy, make_problem

BY_HAND = [name for name in POLICIES if name.startswith(("Mlp", "NatureCNN", "Cnn of layers", "MultiInput"))]
every_policy = pytest.mark.parametrize("policy", BY_HAND)
every_distribution = pytest.mark.parametrize(
    "distribution", [name for name in DISTRIBUTIONS if name != "gSDE learn_features"]
)
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def both_ways(*args, **kwargs) -> tuple[LocalProblem, LocalProblem]:
    """Freeze the same update twice: by hand, and through autograd."""
    by_hand, autograd = (make_problem(*args, **kwargs, fast_paths=fast) for fast in (True, False))
    assert isinstance(by_hand.actor, FeedForwardActor)
    assert isinstance(autograd.actor, PolicyActor)
    return by_hand, autograd


# One update


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("options", [{}, {"sub_sampling_factor": 2}, {"memory_budget": 1}], ids=str)
@every_policy
@every_distribution
def test_products_and_dense_fisher_are_autograds(distribution, policy, options):
    by_hand, autograd = both_ways(distribution, policy, 6, **options)
    assert [id(p) for p in by_hand.actor.parameters.tensors] != []
    for vector in th.randn(3, len(by_hand.vector), dtype=th.float64):
        product = by_hand.fisher_vector_product(vector)
        th.testing.assert_close(product, autograd.fisher_vector_product(vector), **EXACT)
    th.testing.assert_close(by_hand.dense_fisher(), autograd.dense_fisher(), **EXACT)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("ent_coef", [0.0, 0.1])
@every_policy
@every_distribution
def test_gradient_surrogate_and_kl_are_autograds(distribution, policy, ent_coef):
    by_hand, autograd = both_ways(distribution, policy, 6, ent_coef=ent_coef)
    for _ in range(2):  # at θ_old and elsewhere
        th.testing.assert_close(by_hand.surrogate_gradient(), autograd.surrogate_gradient(), **EXACT)
        assert by_hand.evaluate() == pytest.approx(autograd.evaluate(), rel=1e-10, abs=1e-14)
        step = 0.1 * th.randn(len(by_hand.vector), dtype=th.float64)
        for problem in (by_hand, autograd):
            problem.vector.set(problem.vector.get() + step)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("policy", ["Mlp", "MultiInput"])
def test_features_of_more_rows_than_are_extracted_at_once_are_all_there(policy, monkeypatch):
    monkeypatch.setattr("sb3_npg.networks._ROWS_AT_ONCE", 4)
    by_hand, autograd = both_ways("categorical", policy, 9)
    th.testing.assert_close(by_hand.surrogate_gradient(), autograd.surrogate_gradient(), **EXACT)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("memory_budget", [2**28, 1])
@pytest.mark.parametrize("distribution", ["Gaussian", "gSDE"])
def test_a_jacobian_that_is_kept_sees_the_noise_move_alone(distribution, memory_budget):
    by_hand, autograd = both_ways(distribution, "Mlp", 6, memory_budget=memory_budget)
    by_hand.surrogate_gradient()
    for problem in (by_hand, autograd):
        with th.no_grad():
            problem.policy.log_std.add_(0.3)
        problem.refresh()
    th.testing.assert_close(by_hand.surrogate_gradient(), autograd.surrogate_gradient(), **EXACT)
    vector = th.randn(len(by_hand.vector), dtype=th.float64)
    product = by_hand.fisher_vector_product(vector)
    th.testing.assert_close(product, autograd.fisher_vector_product(vector), **EXACT)
    chain = by_hand.fisher_chain()
    assert (chain is None) == (memory_budget == 1)
    if chain is not None:
        th.testing.assert_close(chain.product(vector), product, **EXACT)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("distribution", ["Gaussian", "gSDE"])
def test_what_the_fisher_is_made_of_has_no_graph(distribution):
    problem = make_problem(distribution, "Mlp", 8, sub_sampling_factor=2)
    chain, records = problem.fisher_chain(), next(problem.layers.records())
    assert not chain.diagonal.requires_grad
    assert not any(tensor.requires_grad for record in records for tensor in record[1:])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("memory_budget", [2**28, 1])
@pytest.mark.parametrize("columns", ["exact", "propagated", "sampled"])
@every_policy
@every_distribution
def test_layers_are_those_that_hooks_find(distribution, policy, columns, memory_budget):
    by_hand, autograd = both_ways(distribution, policy, 6, memory_budget=memory_budget)
    blocks, expected_blocks = by_hand.layers.blocks, autograd.layers.blocks
    assert list(map(asdict, blocks)) == list(map(asdict, expected_blocks))
    if columns != "propagated" or memory_budget > 1:  # chunks of another size draw other signs
        chunks = zip(by_hand.layers.records(columns, 1), autograd.layers.records(columns, 1), strict=True)
        for records, expected_records in chunks:
            for record, expected in zip(records, expected_records, strict=True):
                assert record.block.name == expected.block.name
                th.testing.assert_close(record.inputs, expected.inputs, **EXACT)
                th.testing.assert_close(record.deltas, expected.deltas, **EXACT)
    for one, other in zip(dense_blocks(blocks), dense_blocks(expected_blocks), strict=True):
        th.testing.assert_close(by_hand.layers.dense_block(one), autograd.layers.dense_block(other), **EXACT)
        th.testing.assert_close(by_hand.layers.scores(one), autograd.layers.scores(other), **EXACT)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("frozen", [None, "weight", "bias"])
def test_convolutions_are_those_that_hooks_find_however_they_count(frozen, weight_sharing):
    one = make_problem("categorical", "NatureCNN", 6)
    if frozen is not None:
        one.policy.get_parameter(f"features_extractor.cnn.0.{frozen}").requires_grad_(False)
    parts = [split_policy(one.policy, one.observations, fast_paths) for fast_paths in (True, False)]
    both = [LocalProblem(one.policy, one.observations, one.actions, one.advantages, parts=each) for each in parts]
    (by_hand,), (autograd,) = (list(problem.layers.records(weight_sharing=weight_sharing)) for problem in both)
    for record, expected in zip(by_hand, autograd, strict=True):
        assert record.block.name == expected.block.name
        th.testing.assert_close(record.inputs, expected.inputs, **EXACT)
        th.testing.assert_close(record.deltas, expected.deltas, **EXACT)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "frozen", ["log_std", "action_net.bias", "action_net.weight", "mlp_extractor.policy_net.0.weight"]
)
@pytest.mark.parametrize("distribution", ["Gaussian", "gSDE", "gSDE full_std=False"])
def test_frozen_parameters_have_no_part_either_way(distribution, frozen):
    problems = []
    for fast_paths in (True, False):
        problem = make_problem(distribution, "Mlp")
        problem.policy.get_parameter(frozen).requires_grad_(False)
        parts = split_policy(problem.policy, problem.observations, fast_paths)
        again = LocalProblem(problem.policy, problem.observations, problem.actions, problem.advantages, parts=parts)
        assert all(p is not problem.policy.get_parameter(frozen) for p in again.parameters)
        problems.append(again)
    by_hand, autograd = problems
    vector = th.randn(len(by_hand.vector), dtype=th.float64)
    th.testing.assert_close(by_hand.fisher_vector_product(vector), autograd.fisher_vector_product(vector), **EXACT)
    th.testing.assert_close(by_hand.surrogate_gradient(), autograd.surrogate_gradient(), **EXACT)
    names = [[block.name for block in problem.layers.blocks] for problem in problems]
    assert names[0] == names[1]


# What is recognised


def trained(fast_paths: bool, environment: str = "vector", **options):
    """Build an agent, train it, and return it with what it logged."""
    agent = make_agent(environment, **options, fast_paths=fast_paths)
    return agent, train(agent, 2)


class OtherDistribution(ActorCriticPolicy):
    def get_distribution(self, obs):
        return super().get_distribution(2.0 * obs)


class OtherValues(ActorCriticPolicy):
    def predict_values(self, obs):
        return 2.0 * super().predict_values(obs)


class OtherForward(ActorCriticPolicy):
    def forward(self, obs, deterministic=False):
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, 2.0 * values, log_prob


class OtherNetwork(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        super()._build_mlp_extractor()
        self.mlp_extractor.policy_net.append(nn.LayerNorm(self.mlp_extractor.latent_dim_pi))


class WideGaussian(DiagGaussianDistribution):
    def proba_distribution(self, mean_actions, log_std):
        return super().proba_distribution(mean_actions, log_std + 1.0)


class OtherGaussian(ActorCriticPolicy):
    def _build(self, lr_schedule):
        self.action_dist = WideGaussian(self.action_dist.action_dim)
        super()._build(lr_schedule)


class RandomExtractor(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.dropout = nn.Dropout(0.5)

    def forward(self, observations):
        return self.dropout(super().forward(observations))


class AveragingExtractor(BaseFeaturesExtractor):
    """Features without parameters, and with averages of what was observed."""

    def __init__(self, observation_space):
        super().__init__(observation_space, observation_space.shape[0])
        self.averages = nn.BatchNorm1d(observation_space.shape[0], affine=False)

    def forward(self, observations):
        return self.averages(observations)


class ScalingExtractor(BaseFeaturesExtractor):
    """Features of its own kind, without parameters."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 2 * observation_space.shape[0])

    def forward(self, observations):
        return th.cat([observations, 3.0 * observations.square()], dim=1)


STRANGE = {
    "distribution": {"policy": OtherDistribution},
    "values": {"policy": OtherValues},
    "forward": {"policy": OtherForward},
    "network": {"policy": OtherNetwork},
    "Gaussian": {"policy": OtherGaussian},
    "averages in the features": {"policy_kwargs": {"features_extractor_class": AveragingExtractor}},
    "dropout in the features": {"policy_kwargs": {"features_extractor_class": RandomExtractor}},
    "softmax": {"policy_kwargs": {"activation_fn": lambda: nn.Softmax(dim=1)}},
}


@pytest.mark.parametrize("options", STRANGE.values(), ids=STRANGE)
def test_policy_of_its_own_kind_takes_the_generic_path_with_the_same_result(options):
    assert read_networks(make_agent("vector", **options).policy) is None
    one, other = (trained(fast_paths, **options)[0].policy.state_dict() for fast_paths in (True, False))
    assert all(th.equal(one[name], other[name]) for name in one)


def test_features_without_parameters_are_recognised_whatever_they_do():
    kwargs = {"policy_kwargs": {"features_extractor_class": ScalingExtractor}}
    assert read_networks(make_agent("vector", **kwargs).policy) is not None
    one, other = (trained(fast_paths, **kwargs)[0].policy.state_dict() for fast_paths in (True, False))
    for name, tensor in one.items():
        th.testing.assert_close(tensor, other[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["forward", "get_distribution", "predict_values"])
def test_method_replaced_on_the_object_takes_the_generic_path(name):
    policy = make_policy("Gaussian", "Mlp")
    assert read_networks(policy) is not None
    setattr(policy, name, partial(getattr(policy, name)))
    assert read_networks(policy) is None


@pytest.mark.parametrize("name", ["forward_actor", "forward_critic"])
def test_method_replaced_on_the_trunk_takes_the_generic_path(name):
    policy = make_policy("Gaussian", "Mlp")
    setattr(policy.mlp_extractor, name, partial(getattr(policy.mlp_extractor, name)))
    assert read_networks(policy) is None


def test_extractor_of_sb3_s_own_with_a_hook_takes_the_generic_path():
    policy = make_policy("categorical", "NatureCNN")
    assert read_networks(policy) is not None
    policy.features_extractor.register_forward_hook(lambda _module, _args, output: 2.0 * output)
    assert read_networks(policy) is None


def first_layers(policy: ActorCriticPolicy) -> tuple[nn.Linear, nn.Linear]:
    return policy.mlp_extractor.policy_net[0], policy.mlp_extractor.value_net[0]


@pytest.mark.parametrize("critic_solver", ["gauss_newton", "adam"])
def test_gradient_hooks_of_parameters_hold_what_they_mask(critic_solver):
    agent = make_agent("vector", critic_solver=critic_solver)
    for layer in first_layers(agent.policy):
        layer.weight.data[:, 0] = 0.0
        layer.weight.register_hook(lambda gradient: gradient * th.tensor([0.0, 1.0, 1.0]))
    train(agent, 2)
    for layer in first_layers(agent.policy):
        assert not bool(layer.weight[:, 0].any())
        assert bool(layer.weight[:, 1:].all())


@pytest.mark.parametrize("name", ["mlp_extractor.policy_net.0.bias", "value_net.weight", "log_std"])
@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
def test_parameter_with_a_hook_takes_the_generic_path(hook, name):
    policy = make_policy("Gaussian", "Mlp")
    handle = getattr(policy.get_parameter(name), hook)(lambda _: None)
    assert read_networks(policy) is None
    handle.remove()
    assert read_networks(policy) is not None


def test_network_that_shares_a_parameter_with_the_noise_takes_the_generic_path():
    policy = make_policy("Gaussian", "Mlp")
    policy.action_net.bias = policy.log_std
    assert read_networks(policy) is None


def test_method_of_another_policy_or_with_other_arguments_takes_the_generic_path():
    policy, teacher = (make_policy("Gaussian", "Mlp") for _ in range(2))
    policy.predict_values = teacher.predict_values
    assert read_networks(policy) is None
    del policy.predict_values
    policy.forward = partial(ActorCriticPolicy.forward, policy, deterministic=True)
    assert read_networks(policy) is None
    policy.forward = partial(ActorCriticPolicy.forward, policy)
    assert read_networks(policy) is not None


def test_noise_of_features_that_the_last_layer_does_not_see_takes_the_generic_path():
    agent = make_agent("vector", use_sde=True, policy_kwargs={"net_arch": [8]})
    n_outputs = agent.policy.action_net.out_features
    for last, is_known in (
        ([nn.Linear(8, n_outputs), nn.Tanh()], True),
        ([nn.Identity(), nn.Linear(8, n_outputs)], True),
        ([nn.Linear(8, 8), nn.Linear(8, n_outputs)], False),
        ([nn.Tanh(), nn.Linear(8, n_outputs)], False),
    ):
        agent.policy.action_net = nn.Sequential(*last)
        assert (read_networks(agent.policy) is not None) == is_known


def test_distribution_with_a_method_of_its_own_takes_the_generic_path():
    policy = make_policy("Gaussian", "Mlp")
    policy.action_dist.proba_distribution = partial(policy.action_dist.proba_distribution)
    assert read_networks(policy) is None


# Whole runs


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("fisher_solver", ["cg", "kfac", "ekfac", "diagonal", "exact", "woodbury", "identity"])
def test_training_is_the_same_with_every_solver(fisher_solver, use_sde):
    options = {"fisher_solver": fisher_solver, "use_sde": use_sde, "policy_kwargs": {"net_arch": [8]}}
    agents, figures = zip(*(trained(fast_paths, **options) for fast_paths in (True, False)), strict=True)
    for one, other in zip(*figures, strict=True):
        assert one["train/kl_divergence_loss"] == pytest.approx(other["train/kl_divergence_loss"], rel=1e-2)
        assert one["train/value_loss"] == pytest.approx(other["train/value_loss"], rel=1e-3)
    for critic in (True, False):
        one, other = (parameters(agent, critic=critic) for agent in agents)
        for name, tensor in one.items():
            th.testing.assert_close(tensor, other[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("critic_solver", ["gauss_newton", "adam"])
@pytest.mark.parametrize("fisher_solver", ["cg", "kfac", "ekfac"])
def test_training_on_images_is_the_same(fisher_solver, critic_solver, shared):
    kwargs = {"features_extractor_kwargs": {"features_dim": 16}, "share_features_extractor": shared, "net_arch": [8]}
    # With as little as images are damped by themselves, K-FAC's step on so short a rollout is cut to almost nothing.
    options = {"fisher_solver": fisher_solver, "damping": 0.2, "critic_solver": critic_solver, "policy_kwargs": kwargs}
    agents, figures = [], []
    for fast_paths in (True, False):
        env = DummyVecEnv([lambda: seeded(TargetEnv(spaces.Box(0, 255, (36, 36, 1), np.uint8)))])
        agents.append(make_agent(env, "CnnPolicy", **options, fast_paths=fast_paths))
        figures.append(train(agents[-1], 2))
    assert read_networks(agents[0].policy) is not None
    for one, other in zip(*figures, strict=True):
        assert one["train/kl_divergence_loss"] == pytest.approx(other["train/kl_divergence_loss"], rel=1e-2)
        assert one["train/value_loss"] == pytest.approx(other["train/value_loss"], rel=1e-3)
    for name, tensor in agents[0].policy.state_dict().items():
        other = agents[1].policy.state_dict()[name]
        assert float((tensor - other).norm()) < 1e-2 * float(other.norm()), name


class TwoLayers(BaseFeaturesExtractor):
    """A features extractor of layers alone."""

    def __init__(self, observation_space, features_dim=5):
        super().__init__(observation_space, features_dim)
        n_inputs = spaces.utils.flatdim(observation_space)
        self.first, self.second = (
            nn.Linear(n_inputs, 6),
            nn.Sequential(nn.ReLU(), nn.Linear(6, features_dim), nn.Tanh()),
        )

    def forward(self, observations):
        return self.second(self.first(observations))


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("environment", ["vector", "MultiBinary"])
def test_training_behind_an_extractor_of_layers_is_the_same(environment, shares):
    kwargs = {"features_extractor_class": TwoLayers, "share_features_extractor": shares, "net_arch": [8]}
    options = {"environment": environment, "policy_kwargs": kwargs}
    (by_hand, figures), (autograd, expected) = (trained(fast_paths, **options) for fast_paths in (True, False))
    networks = read_networks(by_hand.policy)
    assert networks is not None
    assert len(networks.actor.layers) == 4
    assert len(networks.critic.network.layers) == (2 if shares else 4)
    for one, other in zip(figures, expected, strict=True):
        assert one["train/kl_divergence_loss"] == pytest.approx(other["train/kl_divergence_loss"], rel=1e-2)
        assert one["train/value_loss"] == pytest.approx(other["train/value_loss"], rel=1e-3)
    for name, tensor in by_hand.policy.state_dict().items():
        other = autograd.policy.state_dict()[name]
        assert float((tensor - other).norm()) < 1e-2 * float(other.norm()), name


class Augmenting(TwoLayers):
    """Observations are scaled in training mode."""

    def forward(self, observations):
        return super().forward(2.0 * observations if self.training else observations)


class Choosing(TwoLayers):
    """Other layers are used in training mode."""

    def forward(self, observations):
        return super().forward(observations) if self.training else self.second[1:](self.first(observations))


@pytest.mark.parametrize("extractor", [Augmenting, Choosing])
def test_what_an_extractor_does_in_training_mode_alone_is_done(extractor):
    kwargs = {"features_extractor_class": extractor, "share_features_extractor": False, "net_arch": [8]}
    options = {"policy_kwargs": kwargs, "critic_solver": "adam"}
    by_hand, autograd = (trained(fast_paths, **options)[0].policy.state_dict() for fast_paths in (True, False))
    for name, tensor in by_hand.items():
        th.testing.assert_close(tensor, autograd[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("critic_solver", ["gauss_newton", "adam"])
def test_critic_on_features_of_any_kind_is_the_same(critic_solver):
    kwargs = {"features_extractor_class": NormalizingExtractor, "net_arch": [8]}
    options = {"critic_solver": critic_solver, "policy_kwargs": kwargs}
    (by_hand, figures), (autograd, expected) = (trained(fast_paths, **options) for fast_paths in (True, False))
    assert read_networks(by_hand.policy) is None
    assert read_critic(by_hand.policy) is not None
    for one, other in zip(figures, expected, strict=True):
        assert one["train/value_loss"] == pytest.approx(other["train/value_loss"], rel=1e-3)
    for name, tensor in by_hand.policy.state_dict().items():
        th.testing.assert_close(tensor, autograd.policy.state_dict()[name], rtol=1e-3, atol=1e-5)


class Detached(nn.Module):
    """Lets nothing before it learn."""

    def forward(self, inputs):
        return inputs.detach()


def test_features_that_only_the_critic_learns_from_are_not_taken_for_constants():
    kwargs = {"features_extractor_class": NormalizingExtractor, "net_arch": []}
    policy = make_agent("vector", policy_kwargs=kwargs).policy
    assert split_policy(policy, th.zeros(1, 3)).critic is not None
    policy.action_net = nn.Sequential(Detached(), policy.action_net)
    parts = split_policy(policy, th.zeros(1, 3))
    assert any(parameter is policy.features_extractor.linear.weight for parameter in parts.critic_parameters)
    assert parts.critic is None


class Policies(BaseCallback):
    """Looks at the policy in the middle of a rollout."""

    def __init__(self):
        super().__init__()
        self.forwards = []

    def _on_step(self):
        self.forwards.append(self.model.policy.forward)
        return True


OPTIONS = {
    "plain": {},
    "extractors of their own": {"policy_kwargs": {"share_features_extractor": False}},
    "images as they are": {"policy_kwargs": {"normalize_images": False}},
    "layers before the networks": {"policy_kwargs": {"features_extractor_class": TwoLayers}},
    "layers of their own": {
        "policy_kwargs": {"features_extractor_class": TwoLayers, "share_features_extractor": False}
    },
    "layers that end in none": {"policy_kwargs": {"features_extractor_class": TwoLayers, "net_arch": []}},
    "gSDE": {"use_sde": True, "sde_sample_freq": 4},
    "gSDE, squashed": {"use_sde": True, "policy_kwargs": {"squash_output": True}},
    "gSDE, one std": {"use_sde": True, "policy_kwargs": {"full_std": False, "use_expln": True}},
}
SPACES = {
    "plain": [space for space in ENVIRONMENTS if space != "image in a Dict"],
    "extractors of their own": ["image", "image, Box"],
    "images as they are": ["image"],
    **dict.fromkeys((name for name in OPTIONS if name.startswith("layers")), ("vector", "MultiBinary")),
    **dict.fromkeys((name for name in OPTIONS if name.startswith("gSDE")), ("Box", "vector", "Dict", "image, Box")),
}
RUNS = [(space, name) for name, spaces_of in SPACES.items() for space in spaces_of]


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(("space", "options"), RUNS)
def test_rollout_is_that_of_sb3s_own_loop(space, options, n_envs):

    buffers = []
    for fast_paths in (True, False):
        policies = Policies()
        env = make_env(space, n_envs)
        agent = make_agent(env, NAMES.get(space), fast_paths=fast_paths, n_critic_updates=0, **OPTIONS[options])
        agent.learn(agent.n_steps * n_envs, policies)
        assert all(isinstance(forward, FastForward) is fast_paths for forward in policies.forwards)
        assert "forward" not in vars(agent.policy)
        buffers.append(agent.rollout_buffer)
    one, other = buffers
    for name in ("actions", "values", "log_probs", "returns", "advantages", "rewards", "episode_starts"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=2e-6, err_msg=name)


def assert_acts_as_sb3(policy: ActorCriticPolicy, observations: th.Tensor) -> None:
    found = []
    for forward in (FastForward.of(policy), policy.forward):
        th.manual_seed(0)
        with th.no_grad():
            found.append(forward(observations))
    for one, other in zip(*found, strict=True):
        th.testing.assert_close(one, other)


def test_matrices_are_seen_as_vectors():
    assert_acts_as_sb3(make_agent(TargetEnv(spaces.Box(-1.0, 1.0, (2, 3), np.float32))).policy, th.randn(5, 2, 3))


@every_distribution
def test_every_distribution_acts_as_in_sb3(distribution):
    policy = make_policy(distribution, "Mlp").float()
    if policy.use_sde:
        policy.reset_noise(5)
    assert_acts_as_sb3(policy, th.randn(5, 3))


def test_outputs_that_overflow_count_as_zeros():
    policy = make_agent("vector").policy
    act, observations, actions = FastForward.of(policy), th.randn(2, *policy.observation_space.shape), []
    for bias in (0.0, np.inf):
        th.nn.init.zeros_(policy.action_net.weight)
        th.nn.init.constant_(policy.action_net.bias, bias)
        th.manual_seed(0)
        with th.no_grad():
            actions.append(act(observations)[0])
    assert th.equal(*actions)


@pytest.mark.parametrize("frozen", ["pi_features_extractor", "vf_features_extractor"])
def test_one_extractor_that_learns_and_one_that_does_not_act_as_in_sb3(frozen):
    kwargs = {"features_extractor_class": TwoLayers, "share_features_extractor": False}
    policy = make_agent("vector", policy_kwargs=kwargs).policy
    getattr(policy, frozen).requires_grad_(False)
    assert_acts_as_in_sb3(policy, FastForward.of(policy))


def test_extractor_whose_last_layer_goes_on_behind_it_leaves_acting_to_sb3():
    policy = make_agent("vector", policy_kwargs={"features_extractor_class": TwoLayers, "net_arch": [4]}).policy
    policy.features_extractor.second[2] = nn.Identity()
    assert_acts_as_in_sb3(policy, FastForward.of(policy))
    policy.mlp_extractor.policy_net.insert(0, nn.Tanh())
    assert read_networks(policy) is not None
    assert FastForward.of(policy) is None


@th.no_grad()
def assert_acts_as_in_sb3(policy: ActorCriticPolicy, forward: FastForward) -> None:
    observations = th.randn(5, *policy.observation_space.shape)
    th.manual_seed(0)
    found = forward(observations)
    th.manual_seed(0)
    for one, other in zip(found, policy(observations), strict=True):
        th.testing.assert_close(one, other)


class Stop(BaseCallback):
    def _on_step(self):
        raise KeyboardInterrupt


def test_policy_is_left_as_it_was_when_a_rollout_is_interrupted():
    agent = make_agent("vector")
    with pytest.raises(KeyboardInterrupt):
        agent.learn(agent.n_steps, Stop())
    assert "forward" not in vars(agent.policy)


class Changer(BaseCallback):
    """Changes the policy when a rollout starts."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def _on_rollout_start(self):
        self.change(self.model.policy)

    def _on_step(self):
        return True


def replace_the_head(policy):
    policy.action_net = copy.deepcopy(policy.action_net)
    th.nn.init.constant_(policy.action_net.bias, 3.0)


def wrap_forward(policy):
    forward = policy.forward

    def raised(*args):
        actions, values, log_prob = forward(*args)
        return actions, values + 100.0, log_prob

    policy.forward = raised


@pytest.mark.parametrize("change", [replace_the_head, wrap_forward])
def test_what_a_callback_changes_when_a_rollout_starts_counts_for_all_of_it(change):
    buffers = []
    for fast_paths in (True, False):
        agent = make_agent("vector", fast_paths=fast_paths, n_critic_updates=0)
        agent.learn(agent.n_steps, Changer(change))
        assert ("forward" in vars(agent.policy)) == (change is wrap_forward)
        buffers.append(agent.rollout_buffer)
    for name in ("actions", "values", "log_probs"):
        one, other = (getattr(buffer, name) for buffer in buffers)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6, err_msg=name)


class Copier(BaseCallback):
    """Keeps copies of the policy and saved agents, as checkpoints and best-model callbacks do."""

    def __init__(self, path, step):
        super().__init__()
        self.path, self.step = path, step

    def _on_rollout_start(self):
        self._copy_at(0)

    def _on_step(self):
        self._copy_at(self.n_calls)
        return True

    def _copy_at(self, step):
        if step == self.step:
            self.copied = copy.deepcopy(self.model.policy)
            self.model.save(self.path)


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("environment", ["vector", "image"])
def test_copy_made_in_the_middle_of_a_rollout_stands_by_itself(environment, step, tmp_path):
    agent = make_agent(environment)
    callback = Copier(tmp_path / "agent", step)
    agent.learn(agent.n_steps, callback)
    observations = th.as_tensor(np.stack([agent.observation_space.sample() for _ in range(4)]))
    with th.no_grad():
        before = callback.copied(observations, deterministic=True)
        for parameter in agent.policy.parameters():
            parameter.add_(1.0)
        after = callback.copied(observations, deterministic=True)
        th.manual_seed(0)
        drawn = callback.copied(observations)
        th.manual_seed(0)
        expected = ActorCriticPolicy.forward(callback.copied, observations)
    assert all(th.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(th.allclose(one, other) for one, other in zip(drawn, expected, strict=True))
    assert read_networks(callback.copied) is not None
    type(agent).load(tmp_path / "agent")


def test_observation_of_nan_ends_no_rollout_by_hand():
    agent = make_agent("vector")
    agent._setup_learn(10, None)
    agent._last_obs = np.full_like(agent._last_obs, np.nan)
    with th.no_grad(), acting(agent.policy):
        actions, values, log_prob = agent.policy(th.full((1, 3), th.nan))
    assert all(bool(th.isfinite(tensor).all()) for tensor in (actions, values, log_prob))


def test_extractor_whose_last_activation_is_the_next_network_s_first_leaves_acting_to_sb3():
    policy = make_agent("vector", policy_kwargs={"features_extractor_class": TwoLayers, "net_arch": [4]}).policy
    layers = policy.features_extractor.second
    layers[0], layers[2] = layers[2], nn.Identity()
    policy.mlp_extractor.policy_net.insert(0, layers[0])
    assert read_networks(policy) is not None
    assert FastForward.of(policy) is None


@pytest.mark.parametrize("name", ["features_extractor", "pi_features_extractor", "vf_features_extractor"])
def test_shared_extractor_of_which_one_name_is_another_s_takes_the_generic_path(name):
    policy = make_agent("vector", policy_kwargs={"features_extractor_class": TwoLayers}).policy
    assert read_networks(policy) is not None
    setattr(policy, name, TwoLayers(policy.observation_space))
    assert read_networks(policy) is None


class Skipping(TwoLayers):
    """Goes through both parts, or through the first alone, as something tells it that torch does not see."""

    skips = staticmethod(lambda: False)

    def forward(self, observations):
        return self.first(observations) if self.skips() else super().forward(observations)


@pytest.mark.parametrize(
    "skips",
    [lambda: random.random() < 0.1, lambda: np.random.rand() < 0.1, lambda: not th.is_grad_enabled()],
    ids=["Python's chance", "numpy's chance", "without gradients"],
)
def test_extractor_that_decides_anew_takes_the_generic_path_and_no_number_is_drawn(skips, monkeypatch):
    policy = make_agent("vector", policy_kwargs={"features_extractor_class": Skipping}).policy
    assert read_networks(policy) is not None
    monkeypatch.setattr(Skipping, "skips", staticmethod(skips))
    random.seed(0)
    np.random.seed(0)
    assert read_networks(policy) is None
    drawn = random.random(), np.random.rand()
    random.seed(0)
    np.random.seed(0)
    assert drawn == (random.random(), np.random.rand())


@pytest.mark.parametrize("critic_solver", ["gauss_newton", "adam"])
def test_without_fast_paths_nothing_is_computed_by_hand(critic_solver, monkeypatch):
    made = []
    linearize = FeedForwardJacobian.linearize
    monkeypatch.setattr(FeedForwardJacobian, "linearize", lambda *args: (made.append(None), linearize(*args)))
    train(make_agent("vector", critic_solver=critic_solver, fast_paths=False), 1)
    assert not made
    train(make_agent("vector", critic_solver=critic_solver), 1)
    assert made


def test_observation_of_nan_ends_no_rollout_of_a_wrapped_forward_pass():
    policy = make_agent("vector").policy
    with th.no_grad(), acting(policy):
        wrap_forward(policy)
        for _ in range(2):
            found = policy(th.full((1, 3), th.nan))
            assert all(bool(th.isfinite(tensor).all()) for tensor in found)
