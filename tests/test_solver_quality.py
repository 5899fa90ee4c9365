"""What the quality of a direction is, the policies that it is measured on, and the benchmark from end to end."""

from dataclasses import replace

import numpy as np
import pytest
import torch as th
from gymnasium.utils.env_checker import check_env

from benchmarks import quality_policies, report, solver_quality
from benchmarks.catch import Catch
from benchmarks.quality_measure import MAIN, VARIANTS, DenseProblem, qualities, scores
from sb3_npg.solvers import make_fisher_solver
from sb3_npg.solvers.direction import find_direction
from tests.cases import in_float64, make_problem


@pytest.fixture
def problem(monkeypatch):
    in_float64(monkeypatch.setattr)
    return make_problem("Gaussian", "Mlp")


def test_quality_on_a_known_fisher():
    fisher, gradient = th.diag(th.tensor([1.0, 4.0])), th.ones(2)
    found = qualities({"exact": th.tensor([1 / 2, 1 / 5]), "identity": gradient}, gradient, fisher, damping=1.0)
    assert found["exact"] == pytest.approx((1.0, 1.0))
    assert found["identity"] == pytest.approx(((2 / 5**0.5) / (0.7 / 0.41**0.5), (2 / 7**0.5) / 0.7**0.5))


def test_quality_does_not_depend_on_a_directions_length():
    th.manual_seed(0)
    root, gradient, x = th.randn(3, 3), th.randn(3), th.randn(3)
    found = qualities({"exact": gradient, "x": x, "3x": 3.0 * x, "-x": -x}, gradient, root @ root.T, 0.1)
    assert found["3x"] == pytest.approx(found["x"], rel=1e-5)
    assert found["-x"] == pytest.approx([-value for value in found["x"]], rel=1e-5)


def test_dense_problem_multiplies_as_the_policy_does(problem):
    dense = DenseProblem(problem.dense_fisher(), problem.layers)
    vector = th.randn(len(problem.vector), dtype=th.float64)
    for _ in range(2):  # the second is remembered
        product = dense.fisher_vector_product(vector)
        th.testing.assert_close(product, problem.fisher_vector_product(vector))
        product.zero_()


@pytest.mark.parametrize("relative", [False, True])
def test_scores_are_those_of_the_solvers(problem, relative):
    gradient, fisher, damping = problem.surrogate_gradient(), problem.dense_fisher(), 0.1
    dense = DenseProblem(fisher, problem.layers)
    found = {score.solver: score for score in scores(dense, gradient, problem, (damping,), relative)}

    assert set(found) == {"exact", *(column for family in (*MAIN, *VARIANTS) for column in family.columns)}
    assert found["exact"].quality == found["exact"].damped_quality == 1.0
    assert all(score.damped_quality <= 1.0 + 1e-9 for score in found.values())
    # Its factors come from the same rollout here, so they are not stale.
    assert found["stale 3"].quality == pytest.approx(found["kfac-cg 3"].quality)
    directions = {
        name: find_direction(make_fisher_solver(name), problem, gradient, damping, relative).natural_gradient
        for name in ("exact", "identity", "kfac", "woodbury")
    }
    for name, (quality, _) in qualities(directions, gradient, fisher, damping).items():
        assert found[name].quality == pytest.approx(quality)


def test_scores_leave_out_what_needs_an_earlier_rollout(problem):
    dense = DenseProblem(problem.dense_fisher(), problem.layers)
    found = {score.solver for score in scores(dense, problem.surrogate_gradient(), None, (0.1,), False)}
    assert "sampled 3" in found
    assert not found & {"stale 3", "averaged 3"}


def test_catch_is_a_gymnasium_environment():
    check_env(Catch(), skip_render_check=True)


@pytest.mark.parametrize("follows", [True, False])
def test_catch_rewards_who_is_below_the_ball(follows):
    env = Catch()
    rewards = []
    for seed in range(20):
        image, _ = env.reset(seed=seed)
        done = False
        while not done:
            ball, paddle = int(image[0, :-1].max(axis=0).argmax()), int(np.flatnonzero(image[0, -1]).mean())
            image, reward, done, _, _ = env.step(np.int64(1 + np.sign(ball - paddle) if follows else 1))
        assert reward == (1.0 if follows or abs(ball - paddle) <= 1 else -1.0)
        rewards.append(reward)
    assert set(rewards) == ({1.0} if follows else {1.0, -1.0})


def test_catch_policy_has_a_fisher_that_can_be_formed(monkeypatch):
    agent = quality_policies.make_agent(quality_policies.IMAGES, 0, 64)
    in_float64(monkeypatch.setattr)
    update = {
        "policy": agent.policy.state_dict(),
        "observations": th.as_tensor(agent.env.reset()),
        "actions": th.zeros(8, dtype=th.long),
        "advantages": th.randn(8),
    }
    problem = quality_policies.make_problem(agent.policy, update, rows=4)
    assert (problem.n_rows, len(problem.vector)) == (4, 5_987)
    assert problem.surrogate_gradient().dtype == th.float64


def test_verdicts_list_each_miss(tmp_path):
    store = report.Store(tmp_path)
    runs = solver_quality.all_runs(tasks=["CartPole-v1"], seeds=[0, 1], ages=[500])
    columns = ["exact", *(column for family in (*MAIN, *VARIANTS) for column in family.columns)]
    for run in runs:
        figures = []
        for damping in run.dampings:
            quality = dict.fromkeys(columns, 0.95) | {"kfac-cg 3": 0.9 if damping == 1e-3 else 0.97}
            figures += [
                {"relative": False, "damping": damping, "solver": column, "quality": q, "damped_quality": q - 0.01}
                for column, q in quality.items()
            ]
        store.save(run.settings(), {"return": 1.0, "parameters": 10, "scores": figures})

    few, enough, metrics = solver_quality.verdicts(store, runs)
    assert "in 2 of 3 cases by the mean over seeds, in 4 of 6 by single policies" in few
    assert few.endswith("\n- miss: CartPole-v1, 500 steps, λ = 0.001: 0.9000 against 0.9500")
    assert "λ = 0.01: yes, 0.9500, worst seed 0.9500" in enough
    assert "by 0.010 on average" in metrics
    assert solver_quality.collect(store, [replace(runs[0], rows=7)]) == {}


def test_worst_seed_is_told_where_it_is_far_below():
    case = solver_quality.Case(False, "CartPole-v1", 0, 0.1)
    of_case = {column: [0.9, 1.0] for family in MAIN for column in family.columns} | {"kfac": [0.5, 1.0]}
    row = solver_quality.table({case: of_case}, False, MAIN).splitlines()[2]
    assert "| 0.750 (0.500) | 0.950 |" in row


def test_benchmark_writes_tables_and_resumes(tmp_path):
    argv = ["--quick", "--ages", "1", "--width", "4", "--rows", "64"]
    argv += ["--out", f"{tmp_path}/quality.md", "--results", f"{tmp_path}/results", "--cache", f"{tmp_path}/cache"]
    solver_quality.main(argv)
    document = (tmp_path / "quality.md").read_text()
    assert document.count("| CartPole-v1 | 1 | 0.01 |") == 4
    assert (tmp_path / "quality.png").stat().st_size > 0
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".pt"]

    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    solver_quality.main(argv)
    assert (tmp_path / "quality.md").read_text() == document
    assert not list((tmp_path / "cache").iterdir())
