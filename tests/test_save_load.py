"""Files: what is saved, what a loaded agent does, and what it may be told to do otherwise."""

import copy
import io
import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO
from stable_baselines3 import PPO

from sb3_npg import NPG
from sb3_npg.solvers import FISHER_SOLVERS, FisherSolver, Problem, Solution
from sb3_npg.solvers.memory import Memory
from sb3_npg.trust_region import FixedStep, TrustRegion
from tests.agents import N_STEPS, POLICIES, make_agent, make_env, parameters, same, snapshot, train

KINDS: dict[str, dict[str, Any]] = {
    "Box": {},
    "Discrete": {},
    "MultiDiscrete": {},
    "MultiBinary": {},
    "vector": {"use_sde": True, "policy_kwargs": {"squash_output": True}},
    "Dict": {},
    "image": {},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "agent"


def saved_attributes(path: Any) -> dict[str, Any]:
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive:
        attributes: dict[str, Any] = json.loads(archive.read("data"))
    return attributes


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_agent_is_the_saved_one(kind, path):
    agent = make_agent(kind, **KINDS[kind])
    train(agent, 1)
    agent.save(path)
    loaded = NPG.load(path, device="cpu")

    assert same(snapshot(loaded), snapshot(agent))
    observations = make_env(kind, n_envs=8, seed=5).reset()
    if POLICIES.get(kind) == "CnnPolicy":
        observations = np.transpose(observations, (0, 3, 1, 2))
    assert np.array_equal(
        loaded.predict(observations, deterministic=True)[0], agent.predict(observations, deterministic=True)[0]
    )


def test_file_may_be_a_buffer_and_load_without_environment():
    agent = make_agent()
    file = io.BytesIO()
    agent.save(file)
    file.seek(0)
    loaded = NPG.load(file, device="cpu")
    assert loaded.get_env() is None
    assert same(snapshot(loaded), snapshot(agent))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_sde": True, "sde_sample_freq": 4},
        {"adaptive_damping": True, "line_search_max_iter": 0},
        {"critic_solver": "adam", "learning_rate": lambda progress: 1e-3 * progress, "target_kl": "lin_0.02"},
        {"fisher_solver": "exact", "policy_kwargs": {"net_arch": [8]}},
        {
            "critic_solver": "adam",
            "policy_kwargs": {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
        },
        {"fisher_solver": "diagonal", "fisher_solver_kwargs": {"decay": 0.9}},
        {"fisher_solver": "ekfac", "fisher_solver_kwargs": {"decay": 0.9, "inverse_interval": 3}},
        {"fisher_solver": "ekfac", "fisher_solver_kwargs": {"statistics_interval": 3, "columns": "propagated"}},
        {"fisher_solver": "kfac", "fisher_solver_kwargs": {"columns": "propagated", "largest_eigen": 8}},
        {"fisher_solver": "woodbury", "relative_damping": True},
        {"fisher_solver_kwargs": {"warm_start": True}},
        {"critic_solver_kwargs": {"fisher_solver": "kfac", "fisher_solver_kwargs": {"decay": 0.9}}},
        {"critic_solver_kwargs": {"fisher_solver_kwargs": {"max_steps": 2, "momentum": 0.5}}},
    ],
    ids=[
        "defaults",
        "gSDE",
        "adaptive damping",
        "schedules",
        "exact",
        "SGD",
        "diagonal with memory",
        "ekfac with memory",
        "ekfac, one column",
        "kfac, one column",
        "woodbury",
        "warm start",
        "critic with memory",
        "critic with momentum",
    ],
)
def test_training_goes_on_as_if_never_interrupted(options, path):
    agent = make_agent("vector", **options)
    train(agent, 2)
    agent._n_skipped_updates = 3  # as if it had met three bad rollouts
    agent.save(path)
    agent.set_env(make_env("vector", seed=7))
    loaded = NPG.load(path, make_env("vector", seed=7), device="cpu")

    figures = []
    for one in (agent, loaded):
        one.set_random_seed(11)
        one.learn(2 * N_STEPS, reset_num_timesteps=False)
        figures.append({name: figure for name, figure in one.logger.name_to_value.items() if "time/" not in name})
    assert figures[0] == figures[1]
    assert figures[0]["train/n_updates"] == 4
    assert figures[0]["train/skipped_updates"] == 3
    assert same(snapshot(agent), snapshot(loaded))
    assert agent._damping_factor == loaded._damping_factor
    assert (agent._damping_factor == 1.0) == ("adaptive_damping" not in options)
    assert agent.num_timesteps == loaded.num_timesteps == 4 * N_STEPS


#: What a solver has learnt is part of how training goes on.
WITH_MEMORY: dict[str, dict[str, Any]] = {
    "kfac": {
        "fisher_solver": "kfac",
        "fisher_solver_kwargs": {"decay": 0.9, "statistics_interval": 2, "inverse_interval": 3},
    },
    "cg": {
        "fisher_solver": "cg",
        "fisher_solver_kwargs": {
            "momentum": 0.8,
            "preconditioner": "kfac",
            "preconditioner_kwargs": {"decay": 0.9, "inverse_interval": 2},
        },
    },
}


def test_training_goes_on_in_a_new_process_as_if_never_interrupted(tmp_path):
    agents = {name: make_agent("vector", **options) for name, options in WITH_MEMORY.items()}
    for name, agent in agents.items():
        train(agent, 4)
        agent.save(tmp_path / name)
    script = f"""
        from pathlib import Path
        import torch as th
        from sb3_npg import NPG
        from tests.agents import N_STEPS, make_env, snapshot
        th.set_num_threads(1)
        for name in {list(agents)}:
            path = Path({str(tmp_path)!r}) / name
            agent = NPG.load(path, make_env("vector", seed=7), device="cpu")
            agent.set_random_seed(11)
            agent.learn(4 * N_STEPS, reset_num_timesteps=False)
            th.save(snapshot(agent), path.with_suffix(".pt"))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=Path(__file__).parents[1])
    for name, agent in agents.items():
        agent.set_env(make_env("vector", seed=7))
        agent.set_random_seed(11)
        agent.learn(4 * N_STEPS, reset_num_timesteps=False)
        assert same(th.load(tmp_path / f"{name}.pt", weights_only=True), snapshot(agent))


@pytest.mark.parametrize("solver", WITH_MEMORY)
def test_training_would_go_on_otherwise_without_what_the_solver_learnt(solver, path):
    agent = make_agent("vector", **WITH_MEMORY[solver])
    train(agent, 4)
    agent.save(path)
    states = []
    for forgetful in (False, True):
        one = NPG.load(path, make_env("vector", seed=7), device="cpu")
        if forgetful:
            for memory in (module for module in one.fisher.modules() if isinstance(module, Memory)):
                memory.tensors.clear()
        one.set_random_seed(11)
        one.learn(N_STEPS, reset_num_timesteps=False)
        states.append(snapshot(one))
    assert not same(*states)


def test_solver_may_change_when_an_agent_is_loaded(path):
    agent = make_agent("vector", **WITH_MEMORY["kfac"])
    train(agent, 2)
    agent.save(path)
    for solver in FISHER_SOLVERS:
        loaded = NPG.load(path, make_env(), device="cpu", fisher_solver=solver, fisher_solver_kwargs=None)
        train(loaded, 1)
        assert loaded._n_skipped_updates == 0


# Overrides


def test_overrides_take_effect(path):
    make_agent().save(path)
    options = {"damping": 0.3, "n_steps": 2 * N_STEPS, "target_kl": 0.005, "line_search_max_iter": 0}
    loaded = NPG.load(path, make_env(), device="cpu", **options)
    (update,) = train(loaded, 1)
    assert update["train/damping"] == 0.3
    assert update["train/kl_predicted"] == pytest.approx(0.005, rel=1e-5)
    assert loaded.rollout_buffer.buffer_size == 2 * N_STEPS
    assert loaded.num_timesteps == 2 * N_STEPS


def test_agent_of_a_gpu_acts_without_one_and_says_what_it_needs_to_learn(path):
    agent = make_agent("vector")
    agent.backend = "cupy"
    agent.save(path)
    loaded = NPG.load(path, env=agent.get_env(), device="cpu")
    observations = agent.get_env().reset()
    assert np.array_equal(*(one.predict(observations, deterministic=True)[0] for one in (agent, loaded)))
    with pytest.raises(ValueError, match=r"`backend`='cupy' needs .* backend='torch'"):
        loaded.learn(N_STEPS)
    assert loaded.num_timesteps == 0
    NPG.load(path, env=agent.get_env(), device="cpu", backend="torch").learn(N_STEPS)


def test_overrides_change_solver_and_step_rule(path):
    make_agent(target_kl=0.01).save(path)
    loaded = NPG.load(
        path,
        make_env(),
        device="cpu",
        target_kl=None,
        step_size=0.02,
        line_search_max_iter=0,
        fisher_solver_kwargs={"max_steps": 2, "rtol": 0.0},
    )
    (update,) = train(loaded, 1)
    assert update["train/step_size"] == pytest.approx(0.02)
    assert update["train/solver_steps"] == 2
    assert isinstance(loaded._step_rule, FixedStep)
    assert isinstance(NPG.load(path, device="cpu")._step_rule, TrustRegion)


@pytest.mark.parametrize("n_envs", [1, 4])
def test_number_of_environments_may_change(n_envs, path):
    make_agent(make_env("vector", 2)).save(path)
    loaded = NPG.load(path, make_env("vector", n_envs), device="cpu")
    train(loaded, 1)
    assert loaded.num_timesteps == N_STEPS * n_envs
    assert loaded.rollout_buffer.n_envs == n_envs


def test_another_solver_for_a_saved_agent_needs_its_own_arguments(path):
    make_agent(fisher_solver="kfac", fisher_solver_kwargs={"decay": 0.5}).save(path)
    with pytest.raises(ValueError, match=r"has \['decay'\].*; None drops what a loaded agent was saved with"):
        NPG.load(path, fisher_solver="cg", device="cpu")
    loaded = NPG.load(path, make_env(), fisher_solver="cg", fisher_solver_kwargs=None, device="cpu")
    assert train(loaded, 1)[0]["train/kl"] > 0.0


def test_custom_objects_replace_what_was_saved(path):
    make_agent(critic_solver="adam").save(path)
    loaded = NPG.load(path, make_env(), device="cpu", custom_objects={"learning_rate": 0.0})
    actor, critic = parameters(loaded, critic=False), parameters(loaded, critic=True)
    (update,) = train(loaded, 1)
    assert update["train/learning_rate"] == 0.0
    assert same(parameters(loaded, critic=True), critic)
    assert not same(parameters(loaded, critic=False), actor)


@pytest.mark.parametrize("name", ["target_kl", "damping"])
def test_schedules_survive_as_what_the_user_wrote(name, path):
    agent = make_agent(**{name: "lin_0.02"})
    train(agent, 2)
    agent.save(path)
    loaded = NPG.load(path, make_env(), device="cpu")
    assert getattr(loaded, name) == "lin_0.02"
    loaded.line_search_max_iter = 0
    logged = {"target_kl": "kl_predicted"}.get(name, name)
    assert train(loaded, 4)[0][f"train/{logged}"] == pytest.approx(0.015, rel=1e-5)


# Parameters


def test_parameters_go_from_agent_to_agent(path):
    agent, from_file, from_dict = make_agent(), make_agent(seed=1), make_agent(seed=2)
    train(agent, 1)
    agent.save(path)
    from_file.set_parameters(str(path), device="cpu")
    from_dict.set_parameters(agent.get_parameters())
    assert same(snapshot(from_file), snapshot(agent))
    assert same(snapshot(from_dict), snapshot(agent))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda given: given.update(unheard_of={}), "unheard_of"),
        (lambda given: given.pop("policy"), "policy"),
        (lambda given: given.pop("policy.optimizer"), "policy.optimizer"),
    ],
    ids=["unknown object", "no policy", "no optimizer"],
)
def test_wrong_parameters_are_refused(change, named):
    given = make_agent(seed=1).get_parameters()
    change(given)
    with pytest.raises(ValueError, match=named):
        make_agent().set_parameters(given)


def test_agent_whose_solver_remembers_nothing_has_ppos_parameters(path):
    agent = make_agent(seed=1)
    ppo = PPO("MlpPolicy", make_env(), n_steps=16, batch_size=16, device="cpu")
    assert agent.get_parameters().keys() == ppo.get_parameters().keys()
    ppo.set_parameters(agent.get_parameters())
    assert same(ppo.policy.state_dict(), agent.policy.state_dict())
    agent.save(path)
    assert same(PPO.load(path, device="cpu").policy.state_dict(), agent.policy.state_dict())


@pytest.mark.parametrize(
    ("solver", "kwargs", "remembers"),
    [
        ("cg", {}, False),
        ("cg", {"warm_start": True}, True),
        ("cg", {"momentum": 0.5}, True),
        ("cg", {"preconditioner": "kfac"}, False),
        ("cg", {"preconditioner": "kfac", "preconditioner_kwargs": {"decay": 0.5}}, True),
        ("kfac", {}, False),
        ("kfac", {"inverse_interval": 2}, True),
        ("ekfac", {"columns": "propagated"}, True),
        ("diagonal", {"statistics_interval": 2}, True),
        ("exact", {}, False),
        ("woodbury", {}, False),
        ("identity", {}, False),
    ],
)
def test_what_updates_depend_on_is_among_the_parameters_and_nothing_else(solver, kwargs, remembers, path):
    agent, plain = make_agent(fisher_solver=solver, fisher_solver_kwargs=kwargs), make_agent()
    assert ("fisher" in agent.get_parameters()) == remembers
    agent.set_parameters(plain.get_parameters())
    plain.set_parameters(agent.get_parameters())
    agent.save(path)
    NPG.load(path, device="cpu", fisher_solver="cg", fisher_solver_kwargs=None)


def test_parameters_go_to_ppo():
    parameters = make_agent(seed=1, fisher_solver_kwargs={"warm_start": True}).get_parameters()
    del parameters["fisher"]
    ppo = PPO("MlpPolicy", make_env(), n_steps=16, batch_size=16, device="cpu")
    ppo.set_parameters(parameters)
    assert same(ppo.policy.state_dict(), parameters["policy"])


def test_what_was_learnt_of_one_policy_is_not_used_for_another():
    settings = {"fisher_solver_kwargs": {"momentum": 0.9}}
    trained, fresh = make_agent(**settings), make_agent(**settings)
    train(trained, 2)
    parameters = make_agent(seed=1).get_parameters()  # of a solver that remembers nothing
    for agent in (trained, fresh):
        agent.set_parameters(parameters)
    assert same(trained.fisher.state_dict(), fresh.fisher.state_dict())


def test_adapted_damping_is_given_up_with_the_adaptation(path):
    agent = make_agent(damping=0.5, adaptive_damping=True)
    agent._damping_factor = 1000.0
    agent.save(path)
    loaded = NPG.load(path, make_env(), device="cpu", adaptive_damping=False)
    agent.adaptive_damping = False
    for one in (agent, loaded):
        assert train(one, 1)[0]["train/damping"] == 0.5


def test_ppo_goes_on_with_an_agent_that_npg_has_saved(path):
    agent = make_agent("vector")
    agent.save(path)
    ppo = PPO.load(path, env=agent.get_env(), device="cpu")
    ppo.learn(N_STEPS)
    before, after = agent.policy.state_dict(), ppo.policy.state_dict()
    assert all(not th.equal(before[name], after[name]) for name in ("action_net.weight", "value_net.weight"))


def test_part_of_the_parameters_may_be_set():
    agent, other = make_agent(), make_agent(seed=1)
    optimizer = agent.get_parameters()["policy.optimizer"]
    agent.set_parameters({"policy": other.get_parameters()["policy"]}, exact_match=False)
    assert same(agent.policy.state_dict(), other.policy.state_dict())
    assert same(agent.get_parameters()["policy.optimizer"], optimizer)


class CountingSolver(FisherSolver):
    """Has learnt something: how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", th.zeros(()))

    def solve(self, problem: Problem, gradient: th.Tensor, damping: float) -> Solution:
        self.count += 1
        return Solution(gradient.clone(), {})


def test_what_a_solver_has_learnt_is_saved(monkeypatch, path):
    monkeypatch.setitem(FISHER_SOLVERS, "counting", CountingSolver)
    agent = make_agent(fisher_solver="counting")
    train(agent, 3)
    agent.save(path)
    loaded = NPG.load(path, make_env(), device="cpu")
    assert float(loaded.fisher.count) == 3.0
    train(loaded, 1)
    assert float(loaded.fisher.count) == 4.0
    assert "count" in loaded.get_parameters()["fisher"]


# What a file holds


def assert_small(path: Any) -> None:
    assert path.with_suffix(".zip").stat().st_size < 500_000
    attributes = saved_attributes(path)
    assert not attributes.keys() & {"rollout_buffer", "fisher", "policy", "_damping_schedule", "_step_rule", "env"}
    # Lists of a hundred episodes' figures are the largest.
    assert all(len(json.dumps(value)) < 50_000 for value in attributes.values())


def test_file_holds_no_rollout(path):
    agent = make_agent(n_steps=100_000, policy_kwargs={"net_arch": [64, 64]})
    assert agent.rollout_buffer.observations.nbytes > 1_000_000
    agent.save(path)
    assert_small(path)


def test_file_holds_no_curvature(path):
    agent = make_agent(fisher_solver="exact", policy_kwargs={"net_arch": [20, 20]})
    train(agent, 1)
    assert agent.fisher._fisher.nbytes > 500_000
    agent.save(path)
    assert_small(path)


@pytest.mark.parametrize("solver", ["cg", "diagonal", "ekfac", "kfac", "woodbury"])
def test_file_holds_no_curvature_that_is_measured_anew(solver, path):
    agent = make_agent(fisher_solver=solver, policy_kwargs={"net_arch": [100, 100]})
    agent.save(path)
    size = path.with_suffix(".zip").stat().st_size
    train(agent, 1)
    agent.save(path)
    # Adam's moments are twice the parameters.
    n_parameters = sum(parameter.numel() for parameter in agent.policy.parameters())
    assert path.with_suffix(".zip").stat().st_size < size + 2 * 4 * n_parameters + 20_000


def test_hyperparameters_are_in_the_file_under_their_names(path):
    make_agent(damping=0.3, adaptive_damping=True, fisher_solver_kwargs={"max_steps": 7}).save(path)
    attributes = saved_attributes(path)
    assert attributes["damping"] == 0.3
    assert attributes["adaptive_damping"] is True
    assert attributes["fisher_solver"] == "cg"
    assert attributes["fisher_solver_kwargs"]["max_steps"] == 7
    assert attributes["target_kl"] is None


def test_attributes_may_be_left_out_or_added(path):
    agent = make_agent(damping=0.3)
    train(agent, 1)
    agent.save(path, exclude=["damping"])
    assert "damping" not in saved_attributes(path)
    assert NPG.load(path, device="cpu").damping is None
    agent.save(path, include=["rollout_buffer"])
    assert "rollout_buffer" in saved_attributes(path)


def test_agent_of_another_device_loads_on_the_cpu(monkeypatch, path):
    agent = make_agent()
    train(agent, 1)
    with monkeypatch.context() as patch:
        # Each tensor in a file carries the name of its device.
        patch.setattr(th.serialization, "location_tag", lambda storage: "cuda:0")
        agent.save(path)
    monkeypatch.setattr(th.cuda, "is_available", lambda: False)
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive:
        weights = io.BytesIO(archive.read("policy.pth"))
    with pytest.raises(RuntimeError, match="CUDA"):
        th.load(weights, weights_only=True)

    for device in ("cpu", "auto"):
        assert same(snapshot(NPG.load(path, device=device)), snapshot(agent))


def test_agent_loads_and_trains_without_cupy(path):
    make_agent("Box").save(path)
    script = f"""
        import sys
        sys.modules["cupy"] = None  # any import of it fails now
        from stable_baselines3.common.envs import IdentityEnvBox
        from sb3_npg import NPG
        agent = NPG.load({str(path)!r}, IdentityEnvBox(), device="cpu")
        agent.learn({N_STEPS})
        print("updates:", agent._n_updates)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "updates: 1\n"


@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_a_policy_that_another_algorithm_has_trained_goes_on(algorithm, path):
    other = algorithm("MlpPolicy", make_env(), n_steps=N_STEPS, batch_size=N_STEPS, seed=1, device="cpu")
    other.learn(N_STEPS)
    other.save(path)
    agent = make_agent()
    train(agent, 1)
    agent.set_parameters(path)
    assert same(agent.policy.state_dict(), other.policy.state_dict())
    (update,) = train(agent, 1)
    assert update["train/skipped_updates"] == 0
    assert not same(agent.policy.state_dict(), other.policy.state_dict())


def test_parameters_that_do_not_match_are_still_refused():
    agent = make_agent()
    with pytest.raises(ValueError, match="do not match"):
        agent.set_parameters({"policy": agent.policy.state_dict()})
    with pytest.raises(ValueError, match="unheard of"):
        agent.set_parameters({**agent.get_parameters(), "unheard of": {}})


@pytest.mark.parametrize("n_updates", [0, 1])
@pytest.mark.parametrize("fast_paths", [True, False])
def test_a_copy_goes_on_by_itself(fast_paths, n_updates):
    agent = make_agent(fast_paths=fast_paths)
    train(agent, n_updates)
    before = snapshot(agent)
    assert same(copy.deepcopy(agent.policy).state_dict(), agent.policy.state_dict())
    copied = copy.deepcopy(agent)
    train(copied, n_updates + 1)
    assert same(snapshot(agent), before)
    assert not same(snapshot(copied), before)
