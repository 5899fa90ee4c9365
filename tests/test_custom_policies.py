"""Policies that are built in a way of their own, as SB3's class allows: they act by autograd, and train like all."""

import copy
import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.utils.checkpoint import checkpoint

from sb3_npg.acting import acting
from sb3_npg.local_problem import LocalProblem
from sb3_npg.observations import examples, filled, uneven_observations, zero_observation
from sb3_npg.policy_parts import split_policy
from sb3_npg.solvers import make_fisher_solver
from tests import reference
from tests.agents import TargetEnv, make_agent, same, snapshot, train
from tests.cases import make_actions, make_observations

N = 6


class FixedNoise(ActorCriticPolicy):
    """σ is a constant, which is saved with the policy."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        log_std = self.log_std.detach() - 1.0
        del self.log_std
        self.register_buffer("log_std", log_std)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))


class NoiseNetwork(ActorCriticPolicy):
    """σ is a function of the state, and the module that computes it has the parameter's name."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        n_dimensions = self.log_std.numel()
        del self.log_std
        self.log_std = nn.Linear(self.mlp_extractor.latent_dim_pi, n_dimensions)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        return self.action_dist.proba_distribution(self.action_net(latent_pi), self.log_std(latent_pi))


class OwnNetworks(ActorCriticPolicy):
    """None of SB3's networks."""

    def _build(self, lr_schedule: Any) -> None:
        n_observations, n_dimensions = self.observation_space.shape[0], self.action_space.shape[0]
        self.pi = nn.Sequential(nn.Linear(n_observations, 5), nn.Tanh(), nn.Linear(5, n_dimensions))
        self.v = nn.Sequential(nn.Linear(n_observations, 5), nn.Tanh(), nn.Linear(5, 1))
        self.log_std = nn.Parameter(th.zeros(n_dimensions))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))

    def get_distribution(self, obs: th.Tensor) -> Any:
        return self.action_dist.proba_distribution(self.pi(obs), self.log_std)

    def predict_values(self, obs: th.Tensor) -> th.Tensor:
        return self.v(obs)

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic)
        return actions, self.v(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, Any]:
        distribution = self.get_distribution(obs)
        return self.v(obs), distribution.log_prob(actions), distribution.entropy()


every_custom_policy = pytest.mark.parametrize("policy", [FixedNoise, NoiseNetwork, OwnNetworks])


@every_custom_policy
def test_the_fisher_of_a_custom_policy_is_the_covariance_of_its_scores(policy, float64):
    space = spaces.Box(-1.0, 1.0, (3,))
    made = policy(space, spaces.Box(-1.0, 1.0, (2,)), lambda _: 1e-3, net_arch=[5]).double()
    made.set_training_mode(False)
    observations = make_observations(space, N).double()
    problem = LocalProblem(made, observations, make_actions(made, observations), th.randn(N, dtype=th.float64))
    scores = reference.score_fisher(made, observations, N, problem.parameters)
    assert reference.relative_error(problem.dense_fisher(), scores) < 1e-8


@every_custom_policy
@pytest.mark.parametrize(
    "options", [{}, {"fisher_solver": "kfac"}, {"critic_solver": "adam"}, {"fast_paths": False}], ids=str
)
def test_custom_policies_train(policy, options):
    agent = make_agent("vector", policy, **options)
    before = snapshot(agent)["policy"]
    for update in train(agent, 2):
        assert update["train/skipped_updates"] == 0
        assert 0.0 < update["train/kl"] <= 0.01
    after = agent.policy.state_dict()
    still = {name for name, tensor in after.items() if th.equal(tensor, before[name])}
    assert still == ({"log_std"} if policy is FixedNoise else set())


class OwnNoise(ActorCriticPolicy):
    """σ is what the class says at its end."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        nn.init.constant_(self.log_std, -1.7)


class Attention(BaseFeaturesExtractor):
    """Each number of the observation looks at the others."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, 4)
        self.embedding = nn.Linear(1, 4)
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.encoder(self.embedding(observations.unsqueeze(-1))).mean(dim=1)


@pytest.mark.parametrize("fisher_solver", ["cg", "exact", "kfac", "woodbury"])
@pytest.mark.filterwarnings("ignore:KFACSolver treats")
def test_attention_trains_with_every_kind_of_product(fisher_solver):
    kwargs = {"features_extractor_class": Attention, "net_arch": []}
    for update in train(make_agent("vector", fisher_solver=fisher_solver, policy_kwargs=kwargs), 2):
        assert update["train/skipped_updates"] == 0
        assert 0.0 < update["train/kl"] <= 0.01


class Distances(BaseFeaturesExtractor):
    """How far the observation is from some points, by an operation whose derivative has none."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, 4)
        self.points = nn.Parameter(th.randn(4, *observation_space.shape))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.cdist(observations, self.points)


def test_what_cannot_be_differentiated_twice_is_refused_before_training():
    with pytest.raises(ValueError, match=r"`policy`=ActorCriticPolicy computes something .*cdist"):
        make_agent("vector", policy_kwargs={"features_extractor_class": Distances})


class Complex(BaseFeaturesExtractor):
    """Multiplies by a complex matrix."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, 4)
        self.matrix = nn.Parameter(th.randn(*observation_space.shape, 4, dtype=th.cfloat))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return (observations + 0j).matmul(self.matrix).abs()


def test_complex_parameters_are_refused_by_name():
    with pytest.raises(ValueError, match=r"complex parameters that act.* as two parameters"):
        make_agent("vector", policy_kwargs={"features_extractor_class": Complex})


class OnceDifferentiable(th.autograd.Function):
    """tanh, with a derivative that says that it has none."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @th.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        (y,) = ctx.saved_tensors
        return gradient * (1 - y.square())


class ThroughNumpy(OnceDifferentiable):
    """tanh, with a derivative that leaves torch without a word."""

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        (y,) = ctx.saved_tensors
        return th.from_numpy(gradient.detach().numpy() * (1 - y.square()).numpy())


class Written(th.autograd.Function):
    """tanh, with a derivative that is differentiated like anything else."""

    forward = OnceDifferentiable.forward

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        (y,) = ctx.saved_tensors
        return gradient * (1 - y.square())


def activation(function: type[th.autograd.Function]) -> type[nn.Module]:
    class Activation(nn.Module):
        def forward(self, x: th.Tensor) -> th.Tensor:
            return function.apply(x)

    return Activation


@pytest.mark.parametrize("function", [OnceDifferentiable, ThroughNumpy])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_derivatives_that_are_lost_without_an_error_are_refused(function, n_layers):
    """However little the layers before the last count at first: its weights are a hundredth of theirs."""
    kwargs = {"activation_fn": activation(function), "net_arch": [8] * n_layers}
    with pytest.raises(ValueError, match=r"cannot differentiate twice.*a part of the derivatives is lost"):
        make_agent("vector", policy_kwargs=kwargs)


def test_an_operation_whose_derivative_is_written_out_is_as_good_as_torch_s():
    updates = [
        train(make_agent("vector", policy_kwargs={"activation_fn": kind, "net_arch": [8, 8]}, fast_paths=False), 1)
        for kind in (activation(Written), nn.Tanh)
    ]
    assert updates[0][0]["train/kl"] == pytest.approx(updates[1][0]["train/kl"], rel=1e-3)


@pytest.mark.parametrize("fast_paths", [True, False])
def test_a_kink_at_zeros_is_no_loss(fast_paths, tmp_path):
    """A fresh PReLU sees zeros where a policy is tried on zeros, and there its two derivatives differ."""
    agent = make_agent("vector", policy_kwargs={"activation_fn": nn.PReLU}, fast_paths=fast_paths)
    (figures,) = train(agent, 1)
    assert figures["train/is_line_search_success"] == 1
    agent.save(tmp_path / "agent")
    assert same(snapshot(type(agent).load(tmp_path / "agent")), snapshot(agent))


@pytest.mark.parametrize(
    "space",
    [spaces.MultiBinary(4), spaces.Box(-5, 5, (3,), np.int64), spaces.Discrete(3), spaces.Box(0, 255, (3,), np.uint8)],
    ids=repr,
)
def test_a_kink_at_zeros_is_no_loss_whatever_is_observed(space):
    class Observing(gym.Wrapper):
        observation_space = space

        def reset(self, **kwargs: Any) -> Any:
            return space.sample(), super().reset(**kwargs)[1]

        def step(self, action: Any) -> Any:
            return space.sample(), *super().step(action)[1:]

    space.seed(0)
    agent = make_agent(Observing(TargetEnv()), policy_kwargs={"activation_fn": nn.PReLU})
    assert len(train(agent, 1)) == 1


class Convolutions(BaseFeaturesExtractor):
    """Two convolutions, with or without what they make kept for their derivatives."""

    def __init__(self, space: spaces.Box, is_checkpointed: bool):
        super().__init__(space, 8)
        self.is_checkpointed = is_checkpointed
        self.layers = nn.Sequential(nn.Conv2d(space.shape[0], 3, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.Tanh())
        self.last = nn.LazyLinear(8)
        self(th.zeros(1, *space.shape))

    def forward(self, images: th.Tensor) -> th.Tensor:
        if not self.is_checkpointed:
            return self.last(self.layers(images).flatten(1))
        return self.last(checkpoint(self.layers, images, use_reentrant=False).flatten(1))


@pytest.mark.parametrize("solver", ["cg", "kfac", "ekfac", "diagonal", "woodbury"])
def test_layers_that_are_computed_again_for_their_derivatives_count_once(solver):
    kwargs = {"features_extractor_class": Convolutions, "normalize_images": True}
    updates = [
        train(make_agent("image", policy_kwargs={**kwargs, **extractor}, fisher_solver=solver, fast_paths=False), 1)
        for extractor in ({"features_extractor_kwargs": {"is_checkpointed": way}} for way in (False, True))
    ]
    for name in ("train/kl", "train/natural_gradient_norm", "train/solver_residual"):
        assert updates[1][0][name] == pytest.approx(updates[0][0][name], rel=1e-3)


class Routed(BaseFeaturesExtractor):
    """A layer for each half of the space, of which an observation is seen by one."""

    def __init__(self, space: spaces.Box):
        super().__init__(space, 6)
        self.heads = nn.ModuleList(nn.Sequential(nn.BatchNorm1d(space.shape[0]), nn.Linear(3, 6)) for _ in range(2))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        chosen = (observations[:, 0] < 0.0).long()
        features = observations.new_zeros(len(observations), 6)
        for i in chosen.unique().tolist():
            features[chosen == i] = self.heads[i](observations[chosen == i])
        return features.tanh()


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("critic_solver", ["gauss_newton", "adam"])
@pytest.mark.parametrize("solver", ["cg", "kfac"])
@pytest.mark.filterwarnings("ignore:.* treats what is not in a plain")
def test_layers_that_only_some_observations_reach_are_trained(solver, critic_solver, shares):
    kwargs = {"features_extractor_class": Routed, "share_features_extractor": shares}
    agent = make_agent(policy_kwargs=kwargs, fisher_solver=solver, critic_solver=critic_solver)
    before = snapshot(agent)["policy"]
    (update,) = train(agent, 1)
    assert update["train/skipped_updates"] == 0.0
    after = agent.policy.state_dict()
    assert not any(same(before[name], after[name]) for name in before if "heads" in name and name.endswith("weight"))


def test_parts_are_those_that_the_rows_reach():
    policy = make_agent(policy_kwargs={"features_extractor_class": Routed}).policy
    rows = th.linspace(1.0, -1.0, 600).unsqueeze(1).expand(-1, 3)  # the second head at the end
    few, more = (split_policy(policy, observations) for observations in (rows[:300], rows))
    head = policy.features_extractor.heads[1]
    assert {*more.actor_parameters.tensors} - {*few.actor_parameters.tensors} == {*head.parameters()}
    assert {*more.actor_modules} - {*few.actor_modules} == {head, *head}
    assert more.critic_parameters == few.critic_parameters


class SharedExpert(nn.Module):
    """The values use an expert for every observation, the actions for some."""

    latent_dim_pi = latent_dim_vf = 4

    def __init__(self) -> None:
        super().__init__()
        self.base, self.expert = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        out, chosen = self.base(features), features[:, 0] > 0.0
        if chosen.any():
            out = out.index_add(0, chosen.nonzero().flatten(), self.expert(features[chosen]))
        return out.tanh()

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return (self.base(features) + self.expert(features)).tanh()


class SharedExpertPolicy(ActorCriticPolicy):
    """A policy around it."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = SharedExpert()


def test_what_acts_for_the_last_row_alone_is_the_actors():
    policy = make_agent(policy=SharedExpertPolicy).policy
    observations = th.rand(600, 3) * th.tensor([-1.0, 1.0, 1.0])
    expert = {*policy.mlp_extractor.expert.parameters()}
    assert expert <= {*split_policy(policy, observations).critic_parameters}
    observations[-1, 0] = 1.0
    parts = split_policy(policy, observations)
    assert expert <= {*parts.actor_parameters.tensors}
    assert expert.isdisjoint(parts.critic_parameters)


class FlatValues(ActorCriticPolicy):
    """Returns one number for each row, without the dimension that SB3's critics have."""

    def predict_values(self, obs: Any) -> th.Tensor:
        return super().predict_values(obs).flatten()


@pytest.mark.parametrize("solver", ["cg", "exact", "kfac"])
def test_values_without_a_second_dimension_are_fitted_alike(solver):
    kwargs = {"critic_solver_kwargs": {"fisher_solver": solver}, "fast_paths": False}
    ends = []
    for policy in (ActorCriticPolicy, FlatValues):
        agent = make_agent(policy=policy, **kwargs)
        train(agent, 1)
        ends.append(snapshot(agent)["policy"])
    assert same(*ends)


class OneLogStd(ActorCriticPolicy):
    """All actions share σ."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.log_std = nn.Parameter(th.full((1,), -0.5))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore:.* treats what is not in a plain")
def test_sigma_that_all_actions_share_has_its_fisher():
    """tr(F) of one log σ for d actions is 2d."""
    env = TargetEnv()
    policy = OneLogStd(env.observation_space, env.action_space, lambda _: 1e-3, net_arch=[4]).double()
    policy.set_training_mode(False)
    observations = make_observations(env.observation_space, N)
    actions, d = make_actions(policy, observations), env.action_space.shape[0]
    problem = LocalProblem(policy, observations, actions, th.randn(N, dtype=th.float64))
    span = problem.vector.span_of(policy.log_std)
    assert problem.dense_fisher()[span, span].item() == pytest.approx(2.0 * d)
    for name in ("diagonal", "kfac"):
        solver = make_fisher_solver(name)
        solver.update(problem)
        assert solver.eigenvalues()["log_std"].item() == pytest.approx(2.0 * d)


@pytest.mark.parametrize("fisher_solver", ["cg", "exact", "woodbury"])
def test_a_policy_whose_actions_share_sigma_trains(fisher_solver):
    (update,) = train(make_agent(policy=OneLogStd, fisher_solver=fisher_solver), 1)
    assert update["train/skipped_updates"] == 0.0
    assert update["train/is_line_search_success"] == 1.0


class OneBased(BaseFeaturesExtractor):
    """Looks up what is numbered from one."""

    def __init__(self, space: spaces.Box):
        super().__init__(space, 4)
        self.table = nn.Embedding(9, 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.table(observations[:, 0].long() - 1)


@pytest.mark.parametrize("fails", [False, True])
def test_a_policy_that_knows_no_zeros_is_tried_within_the_bounds_of_its_space(fails):
    env = TargetEnv(spaces.Box(1.0, 9.0, (1,), np.float32))
    agent = make_agent(env, policy_kwargs={"features_extractor_class": OneBased})
    agent.learn(agent.n_steps)
    if fails:
        th.nn.init.constant_(agent.policy.features_extractor.table.weight[1:], th.nan)
        with th.no_grad(), acting(agent.policy):
            assert agent.policy(th.full((2, 1), 5.0))[0].isfinite().all()


def test_drawing_examples_leaves_a_space_s_own_random_numbers():
    space, other = (spaces.Box(-1.0, 1.0, (3,), np.float32, seed=seed) for seed in (1, 2))
    expected = copy.deepcopy(space).sample()
    drawn, again = (np.stack([*examples(one)]) for one in (space, other))
    assert np.array_equal(drawn, again)
    assert not drawn[0].any()
    assert drawn[1:].any(axis=1).all()
    assert np.array_equal(space.sample(), expected)


def test_parts_of_an_observation_are_filled_one_by_one():
    space = spaces.Dict({"counts": spaces.Box(1.0, 9.0, (2,), np.float32), "kind": spaces.Discrete(3)})
    seen = {"counts": th.full((3, 2), 5.0), "kind": th.full((3, 1), 2)}
    zeros, uneven = filled(seen, zero_observation(space)), uneven_observations(seen)
    assert th.equal(zeros["counts"], th.ones(3, 2))
    assert th.equal(zeros["kind"], th.zeros(3, 1, dtype=th.int64))
    assert th.equal(uneven["kind"], th.ones(3, 1, dtype=th.int64))
    assert len(uneven["counts"].unique()) == 6


class WithoutEntries(BaseFeaturesExtractor):
    """Beside a layer another one, and a parameter, of which nothing is left."""

    def __init__(self, space: spaces.Box):
        super().__init__(space, 6)
        self.layer, self.other = nn.Linear(space.shape[0], 6), nn.Linear(0, 6, bias=False)
        self.parameter = nn.Parameter(th.zeros(0, 4))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations).tanh() + self.other(observations[:, :0]) + self.parameter.sum()


@pytest.mark.parametrize("critic_solver", ["gauss_newton", "adam"])
@pytest.mark.parametrize("solver", ["cg", "kfac", "diagonal", "woodbury"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_parameters_without_entries_have_no_part(solver, critic_solver):
    kwargs = {"features_extractor_class": WithoutEntries, "share_features_extractor": False, "ortho_init": False}
    (update,) = train(make_agent(policy_kwargs=kwargs, fisher_solver=solver, critic_solver=critic_solver), 1)
    assert update["train/skipped_updates"] == 0.0
    assert update["train/kl"] > 0.0


class OtherPrecision(BaseFeaturesExtractor):
    """A layer and a scale in another type than the rest of the policy, or torch's own choice of types."""

    def __init__(self, space: spaces.Box, dtype: th.dtype, is_autocast: bool = False):
        super().__init__(space, 6)
        self.first = nn.Linear(space.shape[0], 5)
        self.dtype = th.float32 if is_autocast else dtype
        self.layer = nn.Linear(5, 6).to(self.dtype)
        self.scale = nn.Parameter(th.linspace(0.5, 1.5, 6, dtype=self.dtype))
        self.autocast = th.autocast("cpu", th.bfloat16, enabled=is_autocast)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        with self.autocast:
            return (self.layer(self.first(observations).tanh().to(self.dtype)).tanh() * self.scale).float()


@pytest.mark.parametrize("solver", ["exact", "diagonal", "kfac", "ekfac"])
@pytest.mark.parametrize(
    ("precision", "rel"),
    [((th.float64,), 1e-3), ((th.bfloat16,), 0.1), ((th.float32, True), 0.1)],
    ids=["float64", "bfloat16", "autocast"],
)
@pytest.mark.filterwarnings("ignore:.* treats what is not in a plain")  # the scale
def test_layers_of_another_precision_are_solved_for(solver, precision, rel, recwarn):
    def first_update(*precision: Any) -> dict[str, float]:
        extractor = dict(zip(("dtype", "is_autocast"), precision, strict=False))
        kwargs = {
            "features_extractor_class": OtherPrecision,
            "features_extractor_kwargs": extractor,
            "ortho_init": False,
        }
        return train(make_agent("vector", policy_kwargs=kwargs, fisher_solver=solver), 1)[0]

    expected, found = first_update(th.float32), first_update(*precision)
    assert found["train/skipped_updates"] == 0.0
    for name in ("train/natural_gradient_norm", "train/kl"):
        assert found[name] == pytest.approx(expected[name], rel=rel)
    assert not any("layer.weight" in str(warning.message) for warning in recwarn)


def test_a_policy_that_detaches_its_outputs_is_refused():
    class Detached(ActorCriticPolicy):
        def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
            return self.action_dist.proba_distribution(self.action_net(latent_pi).detach(), self.log_std.detach())

    with pytest.raises(ValueError, match=r"`policy`=Detached has no parameter .* requires a gradient"):
        make_agent("vector", Detached)


def test_noise_that_the_class_has_chosen_is_left_alone():
    assert make_agent("vector", OwnNoise).policy.log_std.tolist() == pytest.approx([-1.7, -1.7])


def test_noise_that_is_no_parameter_is_left_alone():
    assert make_agent("vector", FixedNoise).policy.log_std.tolist() == [-1.0, -1.0]


class OneImpossibleAction(ActorCriticPolicy):
    """Never takes the second action."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        impossible = th.arange(self.action_space.n) == 1
        return self.action_dist.proba_distribution(self.action_net(latent_pi).masked_fill(impossible, -th.inf))


@pytest.mark.parametrize("solver", ["cg", "kfac", "ekfac", "woodbury", "exact", "diagonal"])
@pytest.mark.parametrize("ent_coef", [0.0, 0.01])
def test_a_policy_learns_beside_an_impossible_action(ent_coef, solver):
    agent = make_agent("Discrete", OneImpossibleAction, fisher_solver=solver, ent_coef=ent_coef)
    before = agent.policy.action_net.weight.detach().clone()
    updates = train(agent, 3)
    assert updates[-1]["train/skipped_updates"] == 0
    assert all(update["train/kl"] > 0.0 for update in updates)
    moved = agent.policy.action_net.weight.detach() - before
    assert (moved[0] != 0.0).any()
    assert moved[1].abs().max() < 1e-6 * moved.abs().max() + 1e-7


class DetachedValues(ActorCriticPolicy):
    """Its values have no graph."""

    @th.no_grad()
    def predict_values(self, obs: th.Tensor) -> th.Tensor:
        return super().predict_values(obs)


def test_a_critic_that_nothing_will_move_is_told():
    with pytest.warns(UserWarning, match="`policy`=DetachedValues has no trained parameter that its values depend on"):
        make_agent("vector", DetachedValues)


class ImpossibleMask(ActorCriticPolicy):
    """Allows no action at all."""

    def get_distribution(self, obs: th.Tensor) -> Any:
        logits = self.action_net(self.mlp_extractor.forward_actor(self.extract_features(obs)))
        return self.action_dist.proba_distribution(logits.masked_fill(obs >= 0.0, -th.inf))


@pytest.mark.parametrize("validates", [True, False])  # torch.compile switches it off
def test_a_policy_that_knows_nothing_it_may_observe_is_refused(validates, monkeypatch):
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", validates)
    with pytest.raises(ValueError, match="`policy`=ImpossibleMask has no action distribution"):
        make_agent("Discrete", ImpossibleMask)


class UnknownAtZeros(BaseFeaturesExtractor):
    """Features that an observation of zeros does not have."""

    def __init__(self, space: spaces.Space[Any], of: Callable[[th.Tensor], th.Tensor]):
        super().__init__(space, 4)
        self.of, self.layer = of, nn.Linear(space.shape[0], 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(self.of(observations))


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize(
    "of", [lambda o: o / o.norm(dim=1, keepdim=True), lambda o: o.abs().log()], ids=["direction", "logarithm"]
)
def test_a_policy_that_knows_no_zeros_trains_and_acts_on_a_nan(of, validates, monkeypatch):
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", validates)
    kwargs = {"features_extractor_class": UnknownAtZeros, "features_extractor_kwargs": {"of": of}}
    agent = make_agent("vector", policy_kwargs=kwargs)
    updates = train(agent, 2)
    assert updates[-1]["train/skipped_updates"] == 0
    with acting(agent.policy):
        actions, values, log_prob = agent.policy(th.full((3, agent.observation_space.shape[0]), math.nan))
    assert actions.isfinite().all()
    assert values.isfinite().all()
    assert log_prob.isfinite().all()


class Demanding(ActorCriticPolicy):
    """Takes nothing but zeros."""

    error: type[Exception] = ValueError

    def extract_features(self, obs: th.Tensor, *others: Any) -> Any:
        if not th.equal(obs, th.zeros_like(obs)):
            raise self.error("observations must be zeros")
        return super().extract_features(obs, *others)


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError])
def test_errors_of_a_policy_s_own_are_not_taken_for_a_nan_in_rollouts(kind):
    agent = make_agent("vector", type("Strict", (Demanding,), {"error": kind}))
    with pytest.raises(kind, match="observations must be zeros"):
        train(agent, 1)


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_errors_of_a_policy_s_own_are_not_taken_for_a_nan_in_updates(kind):
    agent = make_agent("vector", NoiseNetwork)
    noise = agent.policy.log_std
    start = noise.weight.detach().clone()

    def fail(module: nn.Module, inputs: Any) -> None:
        if not th.equal(noise.weight, start):  # the line search tries a step
            raise kind("once too often")

    noise.register_forward_pre_hook(fail)
    before = snapshot(agent)
    with pytest.raises(kind, match="once too often"):
        train(agent, 1)
    assert same(snapshot(agent), before)


class Doubled(th.autograd.Function):
    """x, with a derivative whose own derivative is twice what it should be."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return DoubledGradient.apply(gradient)


class DoubledGradient(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return 2.0 * gradient


def test_derivatives_that_count_twice_are_refused():
    kwargs = {"activation_fn": activation(Doubled), "net_arch": [8]}
    with pytest.raises(ValueError, match="cannot differentiate twice"):
        make_agent("vector", policy_kwargs=kwargs)


class Remembering(BaseFeaturesExtractor):
    """Holds on to the features that it made last."""

    def __init__(self, observation_space: gym.Space[Any]):
        super().__init__(observation_space, 4)
        self.linear = nn.Linear(3, 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.latest = self.linear(observations).tanh()
        return self.latest


def test_a_policy_that_holds_on_to_what_it_computed_can_be_copied_once_it_is_made():
    policy = make_agent("vector", policy_kwargs={"features_extractor_class": Remembering}).policy
    assert same(copy.deepcopy(policy).state_dict(), policy.state_dict())


class OtherLogStd(ActorCriticPolicy):
    """Has a parameter of that name which is no noise."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.log_std = nn.Parameter(th.zeros(3))


def test_parameter_that_is_called_like_the_noise_of_a_gaussian_is_left_alone():
    assert not make_agent("Discrete", OtherLogStd).policy.log_std.any()


@pytest.mark.usefixtures("float64")
def test_chunks_of_rows_that_do_not_reach_every_layer_change_nothing():
    env = TargetEnv()
    policy = ActorCriticPolicy(
        env.observation_space, env.action_space, lambda _: 1e-3, features_extractor_class=Routed, net_arch=[]
    ).double()
    policy.set_training_mode(False)
    observations = make_observations(env.observation_space, N)
    assert 0 < int((observations[:, 0] < 0.0).sum()) < N
    actions, advantages = make_actions(policy, observations), th.randn(N, dtype=th.float64)
    whole, chunked = (
        LocalProblem(policy, observations, actions, advantages, memory_budget=budget) for budget in (2**28, 1)
    )
    fisher, vector = whole.dense_fisher(), th.randn(len(whole.vector), dtype=th.float64)
    for problem in (whole, chunked):
        th.testing.assert_close(problem.fisher_vector_product(vector), fisher @ vector, rtol=1e-10, atol=1e-12)
        th.testing.assert_close(problem.dense_fisher(), fisher, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("solver", ["diagonal", "ekfac", "kfac", "woodbury"])
@pytest.mark.filterwarnings("ignore:.* treats what is not in a plain")
def test_layers_that_whole_chunks_do_not_reach_change_nothing(solver):
    """The first rows reach one head, and whole chunks after them the other alone."""
    env = TargetEnv()
    policy = ActorCriticPolicy(
        env.observation_space, env.action_space, lambda _: 1e-3, features_extractor_class=Routed, net_arch=[]
    ).double()
    policy.set_training_mode(False)
    observations = make_observations(env.observation_space, 2 * N)
    observations[:, 0] = observations[:, 0].abs() * th.ones(2 * N).index_fill(0, th.arange(N, 2 * N), -1.0)
    actions, advantages = make_actions(policy, observations), th.randn(2 * N, dtype=th.float64)
    found = []
    for budget in (2**28, 1):
        problem = LocalProblem(policy, observations, actions, advantages, memory_budget=budget)
        curvature = make_fisher_solver(solver)
        curvature.update(problem)
        found.append(curvature.solve(problem, problem.surrogate_gradient(), 0.1).natural_gradient)
    th.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


class KeyBias(BaseFeaturesExtractor):
    """Attention among the observed numbers. The keys' bias moves all scores of a query alike, and so nothing."""

    def __init__(self, space: spaces.Box):
        super().__init__(space, 8)
        self.positions, self.each = nn.Parameter(th.randn(*space.shape, 8)), nn.Linear(1, 8)
        self.queries, self.keys, self.values = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        seen = self.each(observations.unsqueeze(-1)) + self.positions
        weights = (self.queries(seen) @ self.keys(seen).mT).softmax(dim=-1)
        return (weights @ self.values(seen)).mean(dim=1)


class Dueling(ActorCriticPolicy):
    """Adds a number to all logits, which moves nothing."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        return self.action_dist.proba_distribution(self.action_net(latent_pi) + self.shift(latent_pi))

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.shift = nn.Linear(self.mlp_extractor.latent_dim_pi, 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("policy", "actions", "kwargs"),
    [
        ("MlpPolicy", spaces.Box(-1.0, 1.0, (2,), np.float32), {"features_extractor_class": KeyBias}),
        (Dueling, spaces.Discrete(18), {}),
    ],
    ids=["attention", "dueling"],
)
def test_parameters_whose_derivatives_are_rounding_are_no_loss(policy, actions, kwargs, seed):
    agent = make_agent(TargetEnv(action_space=actions), policy, policy_kwargs=kwargs, seed=seed)
    (update,) = train(agent, 1)
    assert update["train/is_line_search_success"] == 1.0
