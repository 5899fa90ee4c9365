"""On a GPU: the same mathematics in float32 as on the CPU in float64, through CuPy's kernels."""

import importlib.util

import numpy as np
import pytest
import torch as th

from sb3_npg import NPG
from sb3_npg.acting import Recorder, acting
from sb3_npg.linalg import TORCH, conjugate_gradient, make_linalg
from sb3_npg.linalg.cupy.chain_layout import ChainShape, RowLayout
from sb3_npg.local_problem import LocalProblem
from sb3_npg.solvers import make_fisher_solver
from sb3_npg.solvers.direction import find_direction
from tests.agents import make_agent, train
from tests.cases import DISTRIBUTIONS, make_policy, make_problem
from tests.linalg.chains import CHAINS, in_dtype, make_chain
from tests.test_recorded_acting import RECORDABLE, agent_of, collected
from tests.waits import waits_of

HAS_GPU = th.cuda.is_available() and importlib.util.find_spec("cupy") is not None
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device and CuPy"),
    pytest.mark.filterwarnings("ignore:NPG runs on"),
]

CUDA = th.device("cuda")
#: Relative errors of a solve, by precision; those of float32 are of systems that are not well conditioned.
TOLERANCES = {th.float32: 2e-3, th.float64: 1e-8}


@pytest.fixture(scope="module")
def linalg():
    return make_linalg("cupy", CUDA)


def distance(mine, exact) -> float:
    return float((mine.double().cpu() - exact).norm() / exact.norm())


def on_gpu(exact: LocalProblem, distribution: str, policy: str, seed: int = 0) -> LocalProblem:
    """Freeze the same update on the GPU, in float64 too."""

    def moved(tensors):
        if isinstance(tensors, dict):
            return {key: tensor.to(CUDA) for key, tensor in tensors.items()}
        return tensors.to(CUDA)

    same = make_policy(distribution, policy, seed).to(CUDA)
    if same.use_sde:
        same.reset_noise()  # leaves no matrix on the CPU
    return LocalProblem(same, moved(exact.observations), exact.actions.to(CUDA), exact.advantages.to(CUDA))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("n_rows", [37, 9001])
@pytest.mark.parametrize("kind", CHAINS)
def test_one_kernel_solves_as_the_cpu_does(kind, n_rows, dtype, linalg):
    exact = make_chain(n_rows=n_rows, **CHAINS[kind])
    chain = in_dtype(exact, dtype, "cuda")
    b = th.randn(exact.size, dtype=th.float64)
    result = linalg.conjugate_gradient(chain.product, b.to(CUDA, dtype), 6, shift=0.5, chain=lambda: chain)
    expected = conjugate_gradient(exact.product, b, 6, shift=0.5)
    assert result.steps == expected.steps
    assert distance(result.x, expected.x) < TOLERANCES[dtype]
    assert distance(result.product, expected.product) < TOLERANCES[dtype]


@pytest.mark.parametrize("kind", CHAINS)
def test_many_rows_in_registers_solve_as_the_cpu_does_and_repeat(kind, linalg):
    exact = make_chain(n_rows=40_001, **CHAINS[kind])
    chain, b = in_dtype(exact, th.float32, "cuda"), th.randn(exact.size, dtype=th.float64)
    solver, right = linalg.chains, b.float().to(CUDA)
    assert isinstance(solver.layout_of(ChainShape.of(chain), chain.n_rows), RowLayout)
    first, second = (solver.solve(chain, right, right, 0.5, 0.0, 6).vectors for _ in range(2))
    assert th.equal(first, second)
    expected = conjugate_gradient(exact.product, b, 6, shift=0.5)
    assert distance(first[0], expected.x) < TOLERANCES[th.float32]
    assert distance(first[1], expected.product) < TOLERANCES[th.float32]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_graph_kernel_and_steps_agree_and_repeat(dtype, linalg):
    exact = make_chain(n_rows=300, **CHAINS["tanh"])
    chain = in_dtype(exact, dtype, "cuda")
    b = th.randn(exact.size, dtype=dtype, device=CUDA)
    expected = conjugate_gradient(exact.product, b.double().cpu(), 6, shift=0.5).x
    eager = linalg.steps.solve(chain.product, b, b, 0.5, 0.0, 6).vectors
    for _ in range(2):
        assert th.equal(linalg.graphs.solve(chain, b, b, 0.5, 0.0, 6).vectors, eager)
    first, second = (linalg.chains.solve(chain, b, b, 0.5, 0.0, 6).vectors for _ in range(2))
    assert th.equal(first, second)
    for found in (eager[0], first[0]):
        assert distance(found, expected) < TOLERANCES[dtype]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("largest_eigen", [1024, 5, 0])
@pytest.mark.parametrize("distribution", ["Gaussian", "gSDE", "categorical"])
def test_recorded_kfac_sees_each_rollout_and_does_not_wait(distribution, largest_eigen, linalg):
    mine, other = (make_fisher_solver("kfac", {"largest_eigen": largest_eigen}).to(CUDA) for _ in range(2))
    for solver in (mine, other):
        solver.use(linalg)
    for seed in (0, 1, 2):
        exact = make_problem(distribution, "Mlp", 40, seed=seed)
        reference = make_fisher_solver("kfac", {"largest_eigen": largest_eigen})
        reference.update(exact)
        problem = on_gpu(exact, distribution, "Mlp", seed)
        gradient = exact.surrogate_gradient()
        moved = gradient.to(CUDA)
        if seed:  # the first update records
            th.cuda.set_sync_debug_mode("error")
        try:
            mine.update(problem)
            found = [mine.solve(problem, moved, damping).natural_gradient for damping in (1.0, 0.1)]
        finally:
            th.cuda.set_sync_debug_mode("default")
        assert mine._factored is not None
        other.update(on_gpu(make_problem(distribution, "Mlp", 40, seed=9), distribution, "Mlp", 9))
        for x, damping in zip([*found, mine.solve(problem, moved, 0.1).natural_gradient], (1.0, 0.1, 0.1), strict=True):
            assert distance(x, reference.solve(exact, gradient, damping).natural_gradient) < 1e-7
        for name, values in reference.eigenvalues().items():
            th.testing.assert_close(mine.eigenvalues()[name].cpu(), values, rtol=1e-6, atol=1e-8)


def test_a_solve_does_not_wait_for_the_device(linalg):
    chain = in_dtype(make_chain(n_rows=300, **CHAINS["tanh"]), th.float32, "cuda")
    b = th.randn(chain.size, device=CUDA)
    ways = (
        lambda: linalg.chains.solve(chain, b, b, 0.5, 0.0, 6),
        lambda: linalg.graphs.solve(chain, b, b, 0.5, 0.0, 6),
        lambda: linalg.steps.solve(chain.product, b, b, 0.5, 0.0, 6),
    )
    for way in ways:
        way()  # compiles
    th.cuda.set_sync_debug_mode("error")
    try:
        found = [way().vectors[0] for way in ways]
    finally:
        th.cuda.set_sync_debug_mode("default")
    assert all(bool(x.isfinite().all()) for x in found)


def test_works_on_torchs_stream_and_leaves_cupys_state_alone(linalg):
    cupy = pytest.importorskip("cupy")
    chain = in_dtype(make_chain(n_rows=300, **CHAINS["tanh"]), th.float32, "cuda")
    b = th.randn(chain.size, device=CUDA)
    expected = linalg.chains.solve(chain, b, b, 0.5, 0.0, 6).vectors
    before = cupy.cuda.get_current_stream(), cupy.cuda.get_allocator()
    stream = th.cuda.Stream()
    th.cuda.synchronize()
    with th.cuda.stream(stream):
        moved = b + 0.0
        found = linalg.chains.solve(chain, moved, moved, 0.5, 0.0, 6).vectors
    stream.synchronize()
    assert th.equal(found, expected)
    assert (cupy.cuda.get_current_stream(), cupy.cuda.get_allocator()) == before


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("solver", ["cg", "kfac", "ekfac", "diagonal", "exact"])
@pytest.mark.parametrize("policy", ["Mlp", "Mlp, ReLU, discrete observation", "Cnn", "NatureCNN", "MultiInput"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_natural_gradients_are_those_of_the_cpu(distribution, policy, solver, linalg):
    exact = make_problem(distribution, policy, 40)
    # Ten steps of conjugate gradient multiply a rounding of 1e-13 to 1e-4 for some of these, four leave it as it is.
    options = {"max_steps": 4} if solver == "cg" else {}
    expected = find_direction(make_fisher_solver(solver, options), exact, exact.surrogate_gradient(), 1.0)
    problem = on_gpu(exact, distribution, policy)
    mine = make_fisher_solver(solver, options).to(CUDA)
    mine.use(linalg)
    found = find_direction(mine, problem, problem.surrogate_gradient(), 1.0)
    assert distance(found.natural_gradient, expected.natural_gradient) < 1e-5
    assert found.curvature == pytest.approx(expected.curvature, rel=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("options", [{"preconditioner": "kfac"}, {"warm_start": True}, {"momentum": 0.5}], ids=str)
@pytest.mark.parametrize("relative", [False, True])
def test_conjugate_gradient_with_all_its_options(relative, options, linalg):
    exact = make_problem("Gaussian", "Mlp", 40)
    problem = on_gpu(exact, "Gaussian", "Mlp")
    reference, mine = make_fisher_solver("cg", options), make_fisher_solver("cg", options).to(CUDA)
    mine.use(linalg)
    for _ in range(2):
        expected = find_direction(reference, exact, exact.surrogate_gradient(), 1.0, relative)
        found = find_direction(mine, problem, problem.surrogate_gradient(), 1.0, relative)
        assert distance(found.natural_gradient, expected.natural_gradient) < 1e-5


@pytest.mark.parametrize("solver", ["cg", "kfac", "ekfac"])
def test_training_with_cupy_is_training_with_torch(solver):
    agents = []
    for backend in ("cupy", "torch"):
        agents.append(make_agent(fisher_solver=solver, device="cuda", backend=backend))  # seeds, too
        assert agents[-1].fisher.linalg.name == backend
        train(agents[-1], 1)
    for mine, theirs in zip(*(agent.policy.parameters() for agent in agents), strict=True):
        th.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solver", ["cg", "kfac"])
def test_a_policy_step_waits_once_and_once_more_for_each_step_that_was_too_long(solver):
    agent = make_agent(device="cuda", backend="cupy", fisher_solver=solver, n_critic_updates=0)
    waits = waits_of(agent)
    assert waits["go"] == agent.logger.name_to_value["train/line_search_steps"] - 1
    del waits["go"]
    assert waits == {"_usable": 1}


def test_parameters_that_were_replaced_are_no_concern(tmp_path):
    agent = make_agent(device="cuda", backend="cupy")
    train(agent, 1)
    agent.save(tmp_path / "agent")
    for reloaded in (NPG.load(tmp_path / "agent", env=agent.get_env(), device="cuda"), agent):
        reloaded.set_parameters(agent.get_parameters(), device="cuda")
        train(reloaded, 1)
        assert all(bool(tensor.isfinite().all()) for tensor in reloaded.policy.parameters())


def test_an_agent_of_the_gpu_loads_on_the_cpu(tmp_path):
    agent = make_agent(device="cuda", backend="auto", fisher_solver="kfac", fisher_solver_kwargs={"decay": 0.5})
    assert agent.fisher.linalg.name == "cupy"
    train(agent, 1)
    agent.save(tmp_path / "agent")
    loaded = NPG.load(tmp_path / "agent", env=agent.get_env(), device="cpu")
    assert loaded.fisher.linalg is TORCH
    for mine, saved in zip(loaded.policy.parameters(), agent.policy.parameters(), strict=True):
        assert th.equal(mine, saved.cpu())
    train(loaded, 1)


@pytest.mark.parametrize(("saver", "taker"), [("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize("way", ["path", "dict"])
@pytest.mark.parametrize("critic_solver", ["gauss_newton", "adam"])
def test_what_a_solver_has_learnt_follows_the_agent_that_takes_it(critic_solver, saver, taker, way, tmp_path):
    kwargs = {"fisher_solver": "kfac", "fisher_solver_kwargs": {"decay": 0.5}, "critic_solver": critic_solver}
    saved, mine = (make_agent(device=device, **kwargs) for device in (saver, taker))
    train(saved, 1)
    saved.save(tmp_path / "agent")
    mine.set_parameters(tmp_path / "agent" if way == "path" else saved.get_parameters())
    assert {tensor.device.type for tensor in mine.fisher.memory.tensors.values()} == {taker}
    train(mine, 1)


@pytest.mark.parametrize("case", RECORDABLE)
def test_steps_that_are_replayed_are_those_that_are_not(case):
    recorded, plain = (agent_of(case, device="cuda") for _ in range(2))
    recorded._recorder = Recorder.on(CUDA)
    for agent in (recorded, plain):
        th.manual_seed(0)
        agent.learn(agent.n_steps)
    for one, other in zip(*map(collected, (recorded, plain)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    recording = recorded._recorder._recording
    assert recording is not None
    recorded.learn(2 * recorded.n_steps)
    assert recorded._recorder._recording is recording
    observations = recording.observations
    with th.no_grad(), acting(recorded.policy, recorder=recorded._recorder):
        values = recorded.policy(observations.clone())[1]
        assert th.allclose(values, recorded.policy.predict_values(observations), rtol=1e-3, atol=1e-4)
        th.cuda.set_sync_debug_mode("error")
        try:
            recorded.policy(observations)
        finally:
            th.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("solver", ["cg", "kfac"])
def test_each_of_several_devices_gets_what_the_first_gets(solver):
    if th.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    agents = [make_agent(fisher_solver=solver, device=f"cuda:{index}") for index in (0, 1)]
    for agent in agents:  # graphs are recorded on one device after the other
        train(agent, 3)
    for one, other in zip(*(agent.policy.parameters() for agent in agents), strict=True):
        th.testing.assert_close(other.cpu(), one.cpu(), rtol=1e-2, atol=1e-3)


def test_an_agent_on_the_device_that_is_current_solves_there():
    if th.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    first = make_agent(device="cuda")
    with th.cuda.device(1):
        second = make_agent(device="cuda")
        train(second, 1)
    train(first, 1)
    assert first.fisher.linalg is not second.fisher.linalg
