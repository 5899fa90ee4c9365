"""Long runs, dead units, saturated policies and failing decompositions: never an exception, a NaN or a leak."""

import functools
import gc
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_npg import NPG
from sb3_npg.fisher import DenseBlock, LayerRecord, dense_blocks
from sb3_npg.local_problem import LocalProblem
from sb3_npg.numerics import NumericalFailure
from sb3_npg.solvers import FISHER_SOLVERS, make_fisher_solver
from sb3_npg.solvers.direction import find_direction
from tests.agents import Snapshots, TargetEnv, make_agent, parameters, same, seeded, train

NAN = float("nan")
#: The solvers that look at layers, and how.
LAYERED: dict[str, tuple[str, dict[str, Any]]] = {
    "diagonal": ("diagonal", {}),
    "kfac": ("kfac", {}),
    "kfac, Cholesky": ("kfac", {"largest_eigen": 0}),
    "ekfac": ("ekfac", {}),
    "woodbury": ("woodbury", {}),
    "cg, kfac": ("cg", {"preconditioner": "kfac"}),
}
each_layered = pytest.mark.parametrize("name", LAYERED)


def make_problem(action_space: gym.Space[Any], seed: int = 0, kind: str = "", n_hidden: int = 2) -> LocalProblem:
    """Freeze an update in float32 of a ReLU network in some state of disrepair."""
    th.manual_seed(seed)
    observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    policy = ActorCriticPolicy(
        observation_space,
        action_space,
        lambda _: 1e-3,
        net_arch=[4] * n_hidden,
        activation_fn=nn.ReLU,
        ortho_init=False,
    )
    policy.set_training_mode(False)
    observations = th.rand(8, 3) * 2.0 - 1.0
    with th.no_grad():
        if kind == "dead units":
            policy.mlp_extractor.policy_net[0].bias.copy_(th.tensor([-10.0, -10.0, 1.0, -10.0]))
        if kind == "dead layer":
            policy.mlp_extractor.policy_net[-2].bias.fill_(-10.0)
        if kind == "constant observations":
            observations = th.full_like(observations, 0.3)
        if kind == "observations of zero":
            observations = th.zeros_like(observations)
        if kind.startswith("saturated"):
            size = float(kind.split()[1])
            policy.action_net.bias.copy_(th.linspace(-size, size, len(policy.action_net.bias)))
        actions = policy.get_distribution(observations).sample()
    return LocalProblem(policy, observations, actions, th.randn(8))


KINDS = (
    "",
    "dead units",
    "dead layer",
    "constant observations",
    "observations of zero",
    "saturated 5",
    "saturated 1e4",
)
SPACES = {"Discrete": spaces.Discrete(3), "Box": spaces.Box(-1.0, 1.0, (2,), np.float32)}


def held_bytes(module: nn.Module) -> int:
    """Return the bytes of every tensor that a module's attributes hold, however deep."""
    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, th.Tensor):
            seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            for one in value.values():
                visit(one)
        elif isinstance(value, (list, tuple)):
            for one in value:
                visit(one)

    for one in module.modules():
        visit(vars(one))
    return sum(seen.values())


def n_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(one), th.Tensor) for one in gc.get_objects())


class Recorded:
    """A policy update that was looked at once: thousands of solves need no network."""

    scale = 1.0

    def __init__(self, problem: LocalProblem):
        self.blocks, self.n_rows = problem.layers.blocks, problem.layers.n_rows
        self.fisher, self.gradient = problem.dense_fisher(), problem.surrogate_gradient()
        self.kept = list(problem.layers.records())
        self.formed = {block: problem.layers.dense_block(block) for block in dense_blocks(self.blocks)}

    @property
    def layers(self) -> "Recorded":
        return self

    def fisher_vector_product(self, vector: th.Tensor) -> th.Tensor:
        return self.fisher @ vector

    def records(self, *_args: object) -> list[list[LayerRecord]]:
        return self.kept

    def dense_block(self, block: DenseBlock) -> th.Tensor:
        return self.formed[block]


@pytest.mark.parametrize(("name", "space"), [("kfac", "Discrete"), ("ekfac", "Box")])
def test_two_thousand_updates_leave_no_nan_and_hold_no_more_than_a_few(name, space):
    problems = [Recorded(make_problem(SPACES[space], seed, kind, 1)) for seed, kind in enumerate(KINDS)]
    solver = make_fisher_solver(name, {"decay": 0.9, "statistics_interval": 2, "inverse_interval": 3})
    found = [0] * len(problems)
    held = []
    for i in range(2000):
        which = i % len(problems)
        try:
            direction = find_direction(solver, problems[which], problems[which].gradient, 1e-3)
        except NumericalFailure:
            pass
        else:
            found[which] += 1
            assert bool(th.isfinite(direction.natural_gradient).all())
            assert direction.damping == 1e-3
        if i % 252 == 251:  # a multiple of all intervals and of the number of problems
            held.append((held_bytes(solver), n_tensors(), len(solver.memory.tensors), len(solver.memory.weights)))
            assert all(bool(th.isfinite(tensor).all()) for tensor in solver.memory.tensors.values())
    assert len(set(held)) == 1
    # Only where one action has all the probability does nothing lead anywhere.
    assert min(found[:-1]) >= 2000 // len(problems)
    assert found[-1] in (0, 2000 // len(problems))


@functools.cache
def known_problem(space: str, kind: str) -> LocalProblem:
    return make_problem(SPACES[space], 0, kind)


@pytest.mark.parametrize("damping", [1e-3, 0.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", SPACES)
@each_layered
def test_direction_is_found_whatever_is_dead(name, space, kind, damping):
    """Without damping factors are singular: more of it helps."""
    problem = known_problem(space, kind)
    registered, kwargs = LAYERED[name]
    gradient = problem.surrogate_gradient()
    if not gradient.any():
        assert kind == "saturated 1e4"
        return
    for relative in (False, True):
        direction = find_direction(make_fisher_solver(registered, kwargs), problem, gradient, damping, relative)
        assert bool(th.isfinite(direction.natural_gradient).all())
        assert direction.slope > 0.0
        assert direction.curvature > 0.0


def test_more_damping_is_what_helps_singular_factors():
    problem = make_problem(SPACES["Discrete"], 0, "dead units")
    solver = make_fisher_solver("kfac", {"largest_eigen": 0})
    direction = find_direction(solver, problem, problem.surrogate_gradient(), 0.0)
    assert direction.damping == pytest.approx(1e-4)


# Statistics that are not finite


class Faulty:
    """A policy update whose layers send values that are no numbers."""

    def __init__(self, problem: LocalProblem, where: str, value: float):
        self.problem, self.where, self.value = problem, where, value

    def __getattr__(self, name: str) -> Any:
        return getattr(self.problem, name)

    @property
    def layers(self) -> "Faulty":
        return Faulty(self.problem.layers, self.where, self.value)  # type: ignore[arg-type]

    def records(self, *args):
        for records in self.problem.records(*args):
            bad = [LayerRecord(block, inputs.clone(), deltas.clone()) for block, inputs, deltas in records]
            if self.where == "inputs":
                bad[-1].inputs[0, 0, 0] = self.value
            if self.where == "deltas":
                bad[-1].deltas[0, 0, 0, 0] = self.value
            yield bad

    def dense_block(self, block):
        formed = self.problem.dense_block(block)
        return formed * self.value if self.where == "noise" else formed


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize("where", ["inputs", "deltas", "noise"])
@pytest.mark.parametrize("name", ["diagonal", "kfac", "ekfac"])
def test_statistics_that_are_not_finite_leave_the_averages_as_they_were(name, where, value):
    problems = [make_problem(SPACES["Box"], seed) for seed in range(3)]
    gradients = [problem.surrogate_gradient() for problem in problems]
    solver, twin = (make_fisher_solver(name, {"decay": 0.9}) for _ in range(2))
    for one in (solver, twin):
        one.update(problems[0])
    before = solver.memory.get_extra_state()
    with pytest.raises(NumericalFailure):
        find_direction(solver, Faulty(problems[1], where, value), gradients[1], 0.1)
    assert same(solver.memory.get_extra_state(), before)
    answers = [find_direction(one, problems[2], gradients[2], 0.1).natural_gradient for one in (solver, twin)]
    assert th.equal(*answers)


@pytest.mark.parametrize("where", ["inputs", "deltas", "noise"])
@each_layered
def test_statistics_that_are_not_finite_from_the_start_are_a_numerical_failure(name, where):
    problem = make_problem(SPACES["Box"])
    registered, kwargs = LAYERED[name]
    if (registered, where) == ("woodbury", "noise"):
        return  # has no statistic of the noise's scale but its scores
    solver, gradient = make_fisher_solver(registered, kwargs), problem.surrogate_gradient()
    with pytest.raises(NumericalFailure):
        find_direction(solver, Faulty(problem, where, NAN), gradient, 0.1)
    expected = find_direction(make_fisher_solver(registered, kwargs), problem, gradient, 0.1).natural_gradient
    assert th.equal(find_direction(solver, problem, gradient, 0.1).natural_gradient, expected)


# Decompositions that fail


def raising(_matrix: th.Tensor) -> Any:
    raise th.linalg.LinAlgError("the iteration did not converge")


def returning_nan(matrix: th.Tensor) -> Any:
    return matrix.diagonal(dim1=-2, dim2=-1) * NAN, matrix * NAN


class FailsAt:
    """An eigendecomposition that fails at some of its calls, from a number on, for as long as it is told."""

    def __init__(self, how: Any):
        self.how, self.true, self.failing, self.from_call, self.calls = how, th.linalg.eigh, False, 0, 0

    def __call__(self, matrix: th.Tensor) -> Any:
        self.calls += 1
        return self.how(matrix) if self.failing and self.calls > self.from_call else self.true(matrix)


each_failure = pytest.mark.parametrize("how", [raising, returning_nan], ids=["raises", "returns NaN"])


@each_failure
@pytest.mark.parametrize("inverse_interval", [1, 3])
@pytest.mark.parametrize("name", ["kfac", "ekfac", "cg, kfac"])
def test_update_without_a_decomposition_is_skipped_and_the_next_one_trains(name, inverse_interval, how, monkeypatch):
    registered, kwargs = LAYERED[name]
    options = {"inverse_interval": inverse_interval}
    kwargs = {**kwargs, "preconditioner_kwargs": options} if registered == "cg" else {**kwargs, **options}
    sizes = {"n_steps": 16, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}}
    agent = make_agent("vector", fisher_solver=registered, fisher_solver_kwargs=kwargs, **sizes)
    eigh = FailsAt(how)
    monkeypatch.setattr(th.linalg, "eigh", eigh)

    class Failing(Snapshots):
        """Fails at every decomposition of the update that the fourth rollout leads to."""

        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            eigh.failing = len(self.before) == 4

    states = Failing()
    with pytest.warns(RuntimeWarning, match="the curvature cannot be measured: an eigendecomposition") as caught:
        agent.learn(6 * agent.n_steps, states)
    assert len(caught) == 1
    # The critic trains on; of what acts, nothing has moved.
    acting = [
        [same(_acting(before), _acting(after)) for before, after in zip(states.before, states.after, strict=True)]
    ]
    assert acting == [[False, False, False, True, False, False]]
    assert [update["train/skipped_updates"] for update in states.updates] == [0, 0, 0, 1, 1, 1]
    assert all(bool(th.isfinite(tensor).all()) for tensor in agent.policy.state_dict().values())


def _acting(state: dict[str, Any]) -> dict[str, th.Tensor]:
    return {name: tensor for name, tensor in state["policy"].items() if "value_net" not in name}


@each_failure
@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_decomposition_that_fails_half_way_leaves_nothing_that_does_not_fit_together(name, how, monkeypatch):
    """The second layer's fails, the first's is new already: no solution may be made of both."""
    problems = [make_problem(SPACES["Discrete"], seed) for seed in range(3)]
    gradients = [problem.surrogate_gradient() for problem in problems]
    solver, eigh = make_fisher_solver(name), FailsAt(how)
    solver.update(problems[0])
    monkeypatch.setattr(th.linalg, "eigh", eigh)
    eigh.failing, eigh.from_call = True, 2
    with pytest.raises(NumericalFailure):
        find_direction(solver, problems[1], gradients[1], 0.1)
    eigh.failing = False
    fresh = make_fisher_solver(name)
    answers = [find_direction(one, problems[2], gradients[2], 0.1).natural_gradient for one in (solver, fresh)]
    assert th.equal(*answers)


# Agents


@each_layered
def test_agent_with_dead_units_and_a_constant_observation_keeps_going(name):
    registered, kwargs = LAYERED[name]
    env = seeded(ConstantObservation(TargetEnv()))
    agent = make_agent(
        env,
        n_steps=16,
        batch_size=16,
        fisher_solver=registered,
        fisher_solver_kwargs=kwargs,
        relative_damping="kfac" in name,
        policy_kwargs={"net_arch": [6, 6], "activation_fn": nn.ReLU},
    )
    with th.no_grad():
        agent.policy.mlp_extractor.policy_net[0].bias[:4] = -10.0
    actor = parameters(agent, critic=False)
    agent.learn(8 * 16)
    assert agent._n_skipped_updates == 0
    assert not same(parameters(agent, critic=False), actor)
    assert all(bool(th.isfinite(tensor).all()) for tensor in agent.policy.state_dict().values())


class ConstantObservation(gym.ObservationWrapper[Any, Any, Any]):
    """Shows always the same."""

    def observation(self, observation: Any) -> Any:
        return np.full_like(observation, 0.25)


@pytest.mark.filterwarnings("ignore:NPG skipped an update")
@pytest.mark.parametrize(("space", "logit", "trains"), [("Discrete", 1e30, False), ("MultiBinary", 30.0, True)])
@each_layered
def test_saturated_agent_keeps_going(name, space, logit, trains):
    registered, kwargs = LAYERED[name]
    agent = make_agent(space, n_steps=16, batch_size=16, fisher_solver=registered, fisher_solver_kwargs=kwargs)
    with th.no_grad():
        agent.policy.action_net.bias.copy_(th.linspace(-logit, logit, len(agent.policy.action_net.bias)))
    assert_keeps_going(agent, trains)


@pytest.mark.filterwarnings("ignore:NPG skipped an update")
@pytest.mark.parametrize(
    ("log_std", "use_sde", "trains"), [(-60.0, False, False), (-30.0, True, True), (30.0, False, True)]
)
@each_layered
def test_agent_of_extreme_spread_keeps_going(name, log_std, use_sde, trains):
    registered, kwargs = LAYERED[name]
    agent = make_agent(
        n_steps=16,
        batch_size=16,
        use_sde=use_sde,
        fisher_solver=registered,
        fisher_solver_kwargs=kwargs,
        policy_kwargs={"log_std_init": log_std, "net_arch": [8]},
    )
    assert_keeps_going(agent, trains)


def assert_keeps_going(agent: NPG, trains: bool) -> None:
    """The policy trains, or every step of it is skipped, as it has no gradient or its Fisher overflows."""
    before = parameters(agent, critic=False)
    agent.learn(3 * agent.n_steps)
    assert agent._n_skipped_updates == (0 if trains else 3)
    assert same(parameters(agent, critic=False), before) != trains
    assert all(bool(th.isfinite(tensor).all()) for tensor in agent.policy.state_dict().values())


@pytest.mark.parametrize("name", FISHER_SOLVERS)
def test_agent_trains_with_relative_damping(name):
    options = {"fisher_solver": name, "policy_kwargs": {"net_arch": [6]}}
    (update,) = train(make_agent(relative_damping=True, damping=0.3, **options), 1)
    assert update["train/damping"] == 0.3
    assert update["train/skipped_updates"] == 0
    assert update["train/is_line_search_success"] == 1.0


def test_every_solver_that_sees_layers_is_tried():
    assert {registered for registered, _ in LAYERED.values()} == set(FISHER_SOLVERS) - {"exact", "identity"}
