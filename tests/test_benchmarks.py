"""The benchmarks run from end to end on the smallest of settings."""

import json
import math
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks import (
    bipedal_walker,
    critic_fit,
    critics,
    defaults,
    environments,
    gpu,
    held_out,
    lunar_lander,
    memory,
    minatar,
    pace,
    pong,
    report,
    returns,
    returns_report,
    reward_scale,
    solver_cost,
    solver_returns,
    speed_peers,
    speed_products,
    study,
    training,
    trpo_comparison,
    trpo_runs,
    tuning,
    tuning_report,
    update_speed,
    zoo_runs,
)
from benchmarks.atari_vector import VectorOfGymnasium
from benchmarks.gpu_trainings import at_once
from benchmarks.pace import STANDARD
from sb3_npg import NPG
from sb3_npg.networks import read_networks
from tests.agents import make_env


def test_trpo_comparison_writes_tables_and_resumes(tmp_path):
    out, results = tmp_path / "comparison.md", tmp_path / "results"
    argv = ["--envs", "Pendulum-v1", "--seeds", "0", "--steps", "2500", "--out", str(out), "--results", str(results)]
    trpo_comparison.main(argv)

    files = sorted(results.iterdir())
    runs = {run["settings"]["algorithm"]: run["figures"] for run in map(json.loads, (f.read_text() for f in files))}
    assert set(runs) == {*trpo_runs.ALGORITHMS, "random"}
    for algorithm in trpo_runs.ALGORITHMS:
        assert runs[algorithm]["steps"] == 4096
        assert len(runs[algorithm]["updates"]) == 2
        assert len(runs[algorithm]["returns"]) == environments.EVALUATION_EPISODES
        assert all(0.0 < update["kl"] <= 0.021 for update in runs[algorithm]["updates"])
        assert all(update["accepted"] == 1.0 for update in runs[algorithm]["updates"])
    document = out.read_text()
    assert "## Pendulum-v1, 4,096 steps" in document
    assert "| NPG / TRPO |" in document
    assert out.with_suffix(".png").stat().st_size > 0

    times = [file.stat().st_mtime_ns for file in files]
    trpo_comparison.main(argv)
    assert sorted(results.iterdir()) == files
    assert [file.stat().st_mtime_ns for file in files] == times
    assert out.read_text() == document


def test_advantages_of_held_out_rollouts_are_those_of_the_buffer():
    model = NPG("MlpPolicy", make_vec_env("Pendulum-v1", n_envs=3, seed=0), n_steps=150, seed=0, device="cpu")
    rollouts = held_out.collect(model, 2)  # an episode ends after 200 steps: in the second
    buffer = model.rollout_buffer
    estimates = held_out.advantages(model, rollouts[-1], buffer.gae_lambda)
    np.testing.assert_allclose(estimates, buffer.advantages, rtol=1e-4, atol=1e-4)
    whole = held_out.joined(rollouts)
    assert whole.rewards.shape == (300, 3)
    np.testing.assert_allclose(
        held_out.advantages(model, whole, buffer.gae_lambda)[150:], buffer.advantages, rtol=1e-4, atol=1e-4
    )


def test_worth_of_directions_is_kept_and_shown(tmp_path):
    store, run = report.Store(tmp_path), held_out.Run("Hopper-v5", 0, (1024, 2048), 2, 2)
    report.in_fresh_process(held_out.measure, store, run)
    figures = store.load(run.settings())
    assert figures is not None
    assert list(figures) == ["1024", "2048"]
    for judged in figures.values():
        assert set(judged) == {f"{judge:g}" for judge in held_out.JUDGES}
        for worths in judged.values():
            assert list(worths) == [held_out.name(*pair) for pair in held_out.variations()]
            assert all(len(values) == 2 and np.isfinite(values).all() for values in worths.values())

    usual = held_out.name(held_out.USUAL_DAMPING, held_out.USUAL_GAE_LAMBDA)
    figures = {"1024": {"1": {usual: [0.002, 0.004], held_out.name(1.0, 0.95): [0.004, 0.008]}}}
    row = held_out.table({"Hopper-v5": figures}, "1", [(1.0, 0.95)]).splitlines()[2]
    assert row == "| Hopper-v5 | 1,024 | 3.00 ± 1.00 | +3.00 ± 1.00 |"


def test_both_algorithms_get_one_trust_region():
    env = make_vec_env("Hopper-v5")
    models = {
        name: trpo_runs.make_model(trpo_runs.Run(name, "Hopper-v5", 0, 1, 0.06, 0.3, 1), env)
        for name in trpo_runs.ALGORITHMS
    }
    npg, trpo = models["NPG"], models["TRPO"]
    assert (trpo.target_kl, trpo.cg_damping) == pytest.approx((0.02, 0.1))
    assert (npg.target_kl, npg.damping) == (0.06, 0.3)
    assert npg.fisher_solver_kwargs["max_steps"] == trpo.cg_max_steps
    for name in trpo_runs.SHARED.keys() - {"policy_kwargs"}:
        assert getattr(npg, name) == getattr(trpo, name)


@pytest.mark.parametrize("algorithm", trpo_runs.ALGORITHMS)
def test_recorder_measures_the_kl_that_the_algorithm_reports(algorithm):
    env = make_vec_env("Hopper-v5")
    model = trpo_runs.make_model(trpo_runs.Run(algorithm, "Hopper-v5", 0, 1, 0.02, 0.1, 1), env)
    recorder = trpo_runs.Recorder()
    model.learn(256, callback=recorder)
    logged = model.logger.name_to_value["train/kl_divergence_loss"]
    if algorithm != "TRPO":
        assert recorder.updates[-1]["kl"] == pytest.approx(logged, rel=1e-3)
    else:  # a mean over the three action dimensions, and the other direction of the KL
        assert recorder.updates[-1]["kl"] == pytest.approx(3 * logged, rel=0.1)


def test_comparison_refuses_discrete_actions():
    env = make_vec_env("CartPole-v1")
    with pytest.raises(ValueError, match="Box"):
        trpo_runs.make_model(trpo_runs.Run("NPG", "CartPole-v1", 0, 1, 0.02, 0.1, 1), env)


def test_store_is_keyed_by_settings_versions_and_machine(tmp_path, monkeypatch):
    store = report.Store(tmp_path)
    store.save({"seed": 0}, {"kl": 0.1})
    assert store.load({"seed": 0}) == {"kl": 0.1}
    assert store.load({"seed": 1}) is None
    monkeypatch.setattr(report, "environment", lambda: {"versions": "others", "machine": "another"})
    assert store.load({"seed": 0}) is None


@pytest.mark.skipif(sys.platform != "linux", reason="resets the peak through /proc")
def test_memory_of_train_is_measured():
    rows, side = 256, 36
    cost = report.in_fresh_process(memory.train_cost, "NPG", rows, frame_size=side, memory_limit=2**33)
    assert cost is not None
    assert cost.rollout_bytes >= rows * memory.FRAMES * side**2
    assert cost.peak_bytes > 0
    assert cost.seconds > 0.0


def test_memory_table_tells_what_does_not_fit():
    costs = {"NPG": {1024: memory.TrainCost(2**20, 3 * 2**20, 1.0)}, "TRPO": {1024: None}}
    rows = memory.table(costs).splitlines()[2:]
    assert rows == ["| NPG | 1,024 | 1 | 3 | 1.0 |", "| TRPO | 1,024 |  | does not fit |  |"]
    assert "rows it keeps" in memory.verdict(1024, costs["NPG"][1024])
    assert "does **not** keep" in memory.verdict(1024, costs["TRPO"][1024])


def test_study_tells_candidates_apart(tmp_path):
    store = report.Store(tmp_path)
    runs = defaults.STUDY.runs((0, 1), ("CartPole-v1", "Pendulum-v1"), ("target_kl 0.005", "target_kl 0.02"))
    for run in runs:
        store.save(run.settings(), {"return": 100.0 * run.arguments()["target_kl"] + run.seed})
    rows = study.table(store, runs, "return").splitlines()[2:]
    assert rows == ["| target_kl 0.005 | 1 ± 1 | 1 ± 1 | 2.0 |", "| target_kl 0.02 | 2 ± 1 | 2 ± 1 | 1.0 |"]


def test_study_shows_what_is_done_of_it(tmp_path):
    store = report.Store(tmp_path)
    runs = defaults.STUDY.runs((0,), ("CartPole-v1", "Pendulum-v1"), ("defaults", "target_kl 0.005", "target_kl 0.02"))
    for run, value in zip(runs[:3], (1.0, 2.0, 3.0), strict=True):
        store.save(run.settings(), {"return": value})
    rows = study.table(store, runs, "return").splitlines()[2:]
    assert rows == ["| defaults | 1 | 2 | 1.5 |", "| target_kl 0.005 | 3 | – | 1.0 |"]


def test_study_multiplies_the_default_damping():
    changed, as_it_is = defaults.STUDY.runs((0,), ("HalfCheetah-v5",), ("damping × 10", "defaults"))
    assert changed.arguments() == {"n_steps": defaults.N_STEPS, "damping": pytest.approx(10 * 0.1 * 6)}
    assert as_it_is.arguments() == {"n_steps": defaults.N_STEPS}
    assert changed.settings() != as_it_is.settings()


def test_run_of_a_study_is_kept(tmp_path):
    store = report.Store(tmp_path)
    (run,) = solver_returns.STUDY.runs((0,), ("CartPole-v1",), ("kfac",), 4096)
    report.in_fresh_process(study.measure, store, run)
    figures = store.load(run.settings())
    assert figures is not None
    assert 5.0 < figures["return"] <= 500.0
    assert (figures["updates"], figures["skipped"], len(figures["curve"])) == (2, 0, 2)
    assert 0.0 < figures["kl"] <= 0.0201
    assert 0.0 < figures["critic_milliseconds"] < 1e3 * figures["cpu_seconds"]


def test_every_update_of_a_study_is_recorded():
    recorder = training.UpdateRecorder()
    model = NPG("MlpPolicy", "CartPole-v1", n_steps=256, seed=0, device="cpu")
    model.learn(768, callback=recorder)
    assert [update["steps"] for update in recorder.updates] == [256, 512, 768]
    run = training.Training(500.0, 1.0, [{"steps": 0.0}, *recorder.updates])
    assert run.logged("train/n_updates") == [1, 2, 3]
    assert [steps for steps, _ in run.curve()] == [256, 512, 768]
    assert run.training_return() == recorder.updates[-1][training.EPISODE_RETURN]
    assert run.explained_variance() == np.median(
        [update["train/explained_variance"] for update in recorder.updates[1:]]
    )
    assert all(0.0 < update["time/solve"] < update["seconds"] for update in recorder.updates)


def test_solver_returns_count_what_the_updates_did(tmp_path):
    store = report.Store(tmp_path)
    runs = solver_returns.STUDY.runs((0, 1), ("CartPole-v1",), ("cg 15", "kfac"))
    rest = {"training_return": 1.0, "line_search_steps": 1.0, "skipped": 1, "updates": 2}
    for run, value in zip(runs, (100.0, 50.0, 102.0, 50.0), strict=True):
        store.save(run.settings(), {"return": value, "kl": value / 1e4, **rest})
    shown = solver_returns.sections(store, runs)
    assert shown[2].splitlines()[2:] == ["| cg 15 | 101 ± 1 | 1.0 |", "| kfac | 50 ± 0 | 2.0 |"]
    assert shown[6].splitlines()[2:] == ["| cg 15 | 0.0101 | 1.0 | 2 of 4 |", "| kfac | 0.0050 | 1.0 | 2 of 4 |"]


def test_solver_cost_measures_every_solver_and_its_peer(tmp_path):
    size = solver_cost.Size(8, 64)
    seconds = solver_cost.seconds_at(size, 1)
    assert set(seconds) == {solver_cost.PEER, *solver_cost.SOLVERS}
    assert all(value > 0.0 for value in seconds.values())
    assert report.in_fresh_process(solver_cost.peak_mib, "kfac", size) >= 0.0
    assert solver_cost.names_at(solver_cost.Size(256, 2048)) == [name for name in seconds if name != "exact"]

    store, (networks, rollouts) = report.Store(tmp_path), solver_cost.sizes()
    for wanted in (*networks, *rollouts):
        store.save(wanted.settings(), {"seconds": seconds, "mib": seconds, "parameters": 10 * wanted.width})
    assert "| TRPO's cg 15 |" in "".join(solver_cost.sections(store))
    solver_cost.draw(store, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").stat().st_size > 0


def test_cost_is_compared_with_a_peer_that_solves_the_same_system():
    problem = solver_cost.make_problem(solver_cost.Size(8, 64))
    gradient = problem.surrogate_gradient()
    exact, peer = (solver_cost.solve(name, problem, gradient) for name in ("exact", solver_cost.PEER))
    assert float((exact - peer).norm() / exact.norm()) < 1e-2
    th.testing.assert_close(solver_cost.solve("cg 15", problem, gradient), exact, rtol=0.05, atol=0.05)


def test_scale_of_rewards_is_a_column(tmp_path):
    store = report.Store(tmp_path)
    runs = reward_scale.all_runs(("NPG",), (0,), 2048)
    report.in_fresh_process(reward_scale.measure, store, runs[0])
    figures = store.load(runs[0].settings())
    assert figures is not None
    assert 5.0 < figures["return"] <= 500.0  # in the task's own unit, though trained on rewards × 0.01
    for run in runs:
        store.save(run.settings(), {"return": 100.0 * run.scale})
    header, _, row = reward_scale.table(store, runs).splitlines()
    assert header.startswith("| agent | CartPole-v1, rewards × 0.01 | CartPole-v1, rewards × 1 |")
    assert row == "| NPG | 1 | 100 | 10000 | 1 | 100 | 10000 |"


def test_critics_are_shown_side_by_side(tmp_path):
    store = report.Store(tmp_path)
    adam, gauss_newton = list(critics.CRITICS)[:2]
    runs = critics.STUDY.runs((0, 1), ("Hopper-v5",), (adam, gauss_newton))
    rest = dict.fromkeys(("training_return", "explained_variance", "cpu_seconds", "critic_milliseconds"), 0.5)
    for run, value in zip(runs, (50.0, 100.0, 50.0, 102.0), strict=True):
        store.save(run.settings(), {"return": value, **rest})
    assert critics.sections(store, runs)[2].splitlines()[2:] == [
        f"| {adam} | 50 ± 0 |",
        f"| {gauss_newton} | 101 ± 1 |",
    ]


def test_critics_are_fitted_to_one_rollout_and_judged_on_the_next(tmp_path):
    store, run = report.Store(tmp_path), critic_fit.Run("Hopper-v5", steps=2048)
    report.in_fresh_process(critic_fit.measure, store, run)
    figures = store.load(run.settings())
    assert figures is not None
    assert set(figures) == {"before", *(fit.name() for fit in critic_fit.FITS)}
    # Each copy starts from the same critic, and a fit explains more of its own rollout.
    assert all(figures[fit.name()][0] > figures["before"][0] for fit in critic_fit.FITS)
    assert "| before |" in critic_fit.sections(store, [run])[1]


def test_update_speed_measures_in_turn_and_writes_its_document(tmp_path):
    out, results = tmp_path / "performance.md", tmp_path / "results"
    argv = ["--quick", "--rounds", "1", "--out", str(out), "--results", str(results)]
    update_speed.main(argv)
    document = out.read_text()
    rows = [line.split(" | ") for line in document.splitlines() if line.startswith("| ")]
    measured = {cells[0].removeprefix("| ") for cells in rows}
    assert {"NPG, CG 10", "contrib TRPO, CG 10", "by hand"} <= measured
    assert out.with_suffix(".png").stat().st_size > 0
    times = [file.stat().st_mtime_ns for file in sorted(results.iterdir())]
    update_speed.main(argv)
    assert [file.stat().st_mtime_ns for file in sorted(results.iterdir())] == times


@pytest.mark.parametrize("peer", [speed_peers.CG, speed_peers.TRPO], ids=lambda peer: peer.name)
def test_parts_of_an_update_add_up(peer):
    worker = speed_peers.Worker(peer, speed_peers.Size(env_id="vectors", rows=128))
    try:
        seconds = worker.iterate()
    finally:
        worker.quit()
    parts = sum(seconds[part] for part in ("gradient", "solve", "line search", "critic"))
    assert 0.3 * seconds["train"] < parts <= seconds["train"] * 1.01
    assert 0.0 < seconds["simulator"] < seconds["rollout"]
    assert seconds["peak bytes"] > 2**20


def test_algorithm_that_cannot_be_built_is_named():
    with pytest.raises(RuntimeError, match="strange"):
        speed_peers.Worker(speed_peers.Peer("strange", "Strange"), speed_peers.Size(rows=128))


def test_products_of_the_speed_comparison_are_of_one_fisher():
    runs = speed_products.products(8, 16)
    by_hand, autograd, trpo = (run() for run in runs.values())
    th.testing.assert_close(by_hand, autograd, rtol=1e-3, atol=1e-5)
    assert len(trpo) == len(by_hand)


def test_all_groups_of_the_speed_comparison_have_settings_of_their_own():
    settings = [json.dumps(group.settings(), sort_keys=True) for group in update_speed.groups()]
    assert len(set(settings)) == len(settings)


@pytest.mark.filterwarnings("default")
def test_returns_writes_its_document_and_the_table_of_the_readme(tmp_path, monkeypatch):
    out, readme, results = tmp_path / "docs" / "results.md", tmp_path / "README.md", tmp_path / "results"
    readme.write_text("before\n{}\n{}\nafter\n".format(*returns_report.README_MARKS))
    argv = ["--out", str(out), "--readme", str(readme), "--results", str(results), "--steps", "2000"]
    monkeypatch.setattr(returns, "SEEDS", (0,))
    monkeypatch.setattr(returns, "TASKS", {"CartPole-v1": 100_000, "Hopper-v5": 1_000_000})
    returns.main([*argv, "--tasks", "CartPole-v1"])
    files = sorted(results.iterdir())
    runs = {run["settings"]["algo"]: run["figures"] for run in (json.loads(file.read_text()) for file in files)}
    assert set(runs) == {"npg", "trpo", "ppo"}
    for figures in runs.values():
        assert len(figures["returns"]) == environments.EVALUATION_EPISODES
        assert [point["steps"] for point in figures["curve"]] == sorted(point["steps"] for point in figures["curve"])
        assert 0.0 < figures["curve"][-1]["seconds"] <= figures["seconds"]
    document = out.read_text()
    assert "| CartPole-v1 |" in document
    assert all((out.parent / f"results_{over}.png").stat().st_size > 0 for over in ("steps", "seconds"))
    assert readme.read_text().startswith("before")
    assert readme.read_text().rstrip().endswith("after")
    assert "| CartPole-v1 |" in readme.read_text()
    assert "| Hopper-v5 | – | – | – |" in document
    assert "| Hopper-v5 |" not in readme.read_text()

    times = [file.stat().st_mtime_ns for file in files]
    returns.main([*argv, "--report"])
    assert [file.stat().st_mtime_ns for file in sorted(results.iterdir())] == times
    assert out.read_text() == document


def returns_of(*values: float) -> list[dict[str, object]]:
    points = [{"steps": 100 * i, "seconds": float(i), "pace": STANDARD} for i in range(1, 21)]
    curve = [{**point, "returns": [0.2 * point["steps"]]} for point in points]
    return [{"returns": [value], "seconds": 20.0, "curve": curve} for value in values]


def test_returns_aggregates_are_of_scaled_scores():
    low, high = returns_report.SCALE["CartPole-v1"]
    found = {("npg", "CartPole-v1"): returns_of(low, high, (low + high) / 2)}
    assert returns_report.scores(found, ["CartPole-v1"], "npg").ravel() == pytest.approx([0.0, 1.0, 0.5])
    assert returns_report.aggregates(returns_report.scores(found, ["CartPole-v1"], "npg")) == pytest.approx([0.5] * 3)


def test_returns_time_to_a_score_is_of_the_first_evaluation_that_reaches_it():
    found = {("npg", "CartPole-v1"): returns_of(400.0), ("trpo", "CartPole-v1"): returns_of(190.0)}
    assert returns_report.first_reaching(found["npg", "CartPole-v1"][0], 190.0) == (1000, pytest.approx(10.0))
    assert returns_report.first_reaching(found["npg", "CartPole-v1"][0], 401.0) is None
    assert "10 s, 1k (1 of 1)" in returns_report.to_score_table(found, ["CartPole-v1"], ["npg", "trpo"])


def test_seconds_on_a_slow_machine_count_less():
    curve = [{"seconds": 1.0, "pace": STANDARD}, {"seconds": 5.0, "pace": 2 * STANDARD}]
    assert returns_report.standard_seconds({"curve": curve}) == pytest.approx([1.0, 3.0])


def test_pace_draws_no_random_numbers():
    before = th.get_rng_state(), np.random.get_state()[1].copy()
    assert pace.pace() > 0.0
    assert th.equal(before[0], th.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_returns_take_version_4_of_the_zoo_for_version_5():
    blocks = {algo: returns.Run(algo, "Hopper-v5", 0, 1000).block() for algo in returns.ALGORITHMS}
    assert blocks["ppo"]["gamma"] == 0.999
    assert blocks["trpo"]["cg_max_steps"] == 25
    assert blocks["npg"]["n_timesteps"] == 1000


def test_tasks_that_npg_runs_alone_take_the_steps_of_their_blocks():
    assert {task: zoo_runs.zoo_block("npg", task)["n_timesteps"] for task in returns.MORE_TASKS} == returns.MORE_TASKS


def test_one_set_of_hyperparameters_serves_mujoco():
    tasks = [task for task in returns.TASKS if task.endswith("-v5")]
    blocks = [returns.Run("npg", task, 0, 1000).block() for task in tasks]
    assert len(tasks) == 5
    assert all({**block, "gamma": None} == {**blocks[0], "gamma": None} for block in blocks)
    assert {task: block["gamma"] for task, block in zip(tasks, blocks, strict=True) if "gamma" in block} in (
        {"Swimmer-v5": 0.9999},
        {**dict.fromkeys(tasks, blocks[0].get("gamma")), "Swimmer-v5": 0.9999},
    )


def test_tuning_shows_the_mean_over_seeds_and_how_many_there_are(tmp_path):
    store = report.Store(tmp_path, any_machine=True)
    runs = tuning.final_runs(seeds=(0, 1), tasks=("Hopper-v5",), finalists=list(tuning.FINALISTS)[:1])
    for run, returns_of_seed in zip(runs, ([100.0, 300.0], [400.0]), strict=True):
        store.save(run.settings(), {"returns": returns_of_seed, "seconds": 10.0 * (1 + run.seed), "curve": []})

    text = tuning_report.final_sections(store, tuning.final_runs())

    returns_row, seconds_row = (table.splitlines()[2] for table in text[1::2])
    assert returns_row == f"| {runs[0].candidate} | – | – | – | 300 ± 141 (2) | – | – |"
    assert seconds_row == f"| {runs[0].candidate} | – | – | – | 15 ± 7 (2) | – | – |"


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Swimmer-v5"])
def test_the_set_of_hyperparameters_of_the_zoo_is_a_finalist(env_id):
    chosen = returns.Run("npg", env_id, 0, returns.TASKS[env_id]).settings()
    assert chosen in [run.settings() for run in tuning.final_runs(seeds=(0,), tasks=(env_id,))]


def test_the_zoos_bipedal_walker_is_a_finalist_of_its_study():
    chosen = returns.Run("npg", bipedal_walker.TASK, 0, returns.TASKS[bipedal_walker.TASK]).settings()
    study = bipedal_walker.STUDY
    assert chosen in [run.settings() for run in study.runs(study.stages[-1])]


def test_the_zoos_lunar_lander_is_a_candidate_of_its_study():
    chosen = returns.Run("npg", lunar_lander.TASK, 0, returns.TASKS[lunar_lander.TASK]).block()
    study = lunar_lander.STUDY
    assert chosen in [run.block() for run in study.runs(study.stages[-1])]


def test_the_zoos_atari_is_a_candidate_of_its_study():
    block = yaml.safe_load(Path("zoo_configs/npg.yml").read_text(encoding="utf-8"))["atari"]
    assert {name: block[name] for name in pong.ZOO} == pong.ZOO
    assert (block["n_envs"], block["policy"]) == (pong.N_ENVS, "CnnPolicy")
    assert {one.name: one.settings for one in pong.CANDIDATES}["as in zoo_configs"] == pong.ZOO


def test_what_becomes_of_a_policy_on_images_is_told():
    model = NPG("CnnPolicy", make_env("image"), n_steps=8, batch_size=8, seed=0, device="cpu")
    training.collect_rollout(model)
    figures = pong.policy_figures(model)
    assert 0.0 < figures["spread"] < 0.1
    assert 0.0 < figures["entropy"] <= np.log(model.action_space.n) + 1e-6
    alive = figures["alive"]
    with th.no_grad():
        model.policy.features_extractor.linear[0].bias.fill_(-1e3)
    dead = pong.policy_figures(model)
    assert dead["alive"] < alive
    assert dead["spread"] == 0.0


def test_minatars_network_is_computed_by_hand():
    space = spaces.Box(0.0, 1.0, (4, 10, 10), np.float32)
    kwargs = {"features_extractor_class": minatar.MinAtarCNN, "normalize_images": False}
    policy = ActorCriticCnnPolicy(space, spaces.Discrete(3), lambda _: 1e-3, **kwargs)
    assert read_networks(policy) is not None


def test_minatars_table_means_over_the_seeds_that_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr(minatar, "SEEDS", (0, 1))
    store = report.Store(tmp_path, any_machine=True)
    first, other = minatar.CANDIDATES[:2]
    for seed, value in zip(minatar.SEEDS, (1.0, 3.0), strict=True):
        store.save(minatar.Run(first, "breakout", seed).settings(), {"returns": [0.0, value]})
    store.save(minatar.Run(other, "asterix", 0).settings(), {"returns": [5.0]})
    rows = minatar.table(store, [first, other], minatar.final).splitlines()
    assert rows[2:] == [f"| {first.name} | – | 2.0 ± 1.4 | – | – | – |", f"| {other.name} | 5.0 | – | – | – | – |"]


def test_pongs_tables_show_how_far_each_candidate_went():
    looks = [{"steps": 100_000, "return": -20.5}, {"steps": 200_000, "return": -20.25}]
    rows = pong.table([("one", looks), ("other", looks[:1])], "return", 2).splitlines()
    assert rows[0] == "| candidate | 100,000 | 200,000 |"
    assert rows[2:] == ["| one | -20.50 | -20.25 |", "| other | -20.50 | – |"]


def test_bipedal_walkers_table_counts_the_seeds_that_reach_the_score_and_means_over_the_steps_shown(tmp_path):
    store = report.Store(tmp_path, any_machine=True)
    study = bipedal_walker.STUDY
    runs = study.runs(study.stages[0])[:3]
    steps = (100_000, 200_000, 300_000, 400_000, 500_000)
    for run, returns_of_seed in zip(runs[:2], ((0, 10, 20, 30, 0), (0, 40, 60, 80, 0)), strict=True):
        points = zip(steps, returns_of_seed, strict=True)
        curve = [{"steps": at, "seconds": at / 1e4, "pace": STANDARD, "returns": [value]} for at, value in points]
        store.save(run.settings(), {"returns": [returns_of_seed[3]], "seconds": 1.0, "curve": curve})

    row = study.table(store, runs, score=50.0).splitlines()[2]

    assert row == f"| {runs[0].candidate} | 3, 4 | 300k (1 of 2) | 40 ± 28 | 30, 80 |"


def test_gpu_benchmark_measures_keeps_and_tells_what_failed(tmp_path):
    folder, quick = (
        tmp_path / "kept",
        ["--device", "cpu", "--quick", "--seconds", "0.1", "--out", str(tmp_path / "kept")],
    )
    for case in ("rate", "cg-64-2048", "eigen"):
        gpu.main([*quick, "--only", case])
    stored = gpu.load(folder / "cpu.json")
    assert list(stored) == ["rate", "cg-64-2048", "eigen"]  # each call keeps what those before measured
    times = {row["name"]: row["seconds"] for row in stored["cg-64-2048"]["rows"]}
    assert set(times) == {"CG 10, torch", "sb3-contrib TRPO's CG 10"}  # CuPy is not here
    assert all(0.0 < low <= middle <= high for low, middle, high in times.values())
    errors = {row["name"]: row["difference"] for row in stored["eigen"]["rows"] if "difference" in row}
    assert max(errors["one batch, torch"], errors["side by side, torch"]) < 1e-12
    assert 1e-12 < errors["one by one in float32, torch"] < 1e-4
    stored["rate"]["rows"] = [{"name": "torch", "failed": "RuntimeError: out of memory"}]
    gpu.save(folder / "cpu.json", stored)
    document = tmp_path / "gpu.md"
    gpu.main(["--out", str(folder), "--report", str(document)])
    text = document.read_text(encoding="utf-8")
    assert "out of memory" in text
    assert "sb3-contrib TRPO's CG 10" in text


def test_document_of_the_gpu_benchmark_is_made_of_what_is_stored(tmp_path):
    document = tmp_path / "gpu.md"
    gpu.report(gpu.RESULTS, document, "python -m benchmarks.gpu --report")
    assert document.read_text(encoding="utf-8") == gpu.DOCUMENT.read_text(encoding="utf-8")


def test_vector_of_gymnasium_steps_as_sb3s_own():
    name, n_envs = "CartPole-v1", 3
    kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP}
    ours = VectorOfGymnasium(gym.make_vec(name, n_envs, vectorization_mode="sync", vector_kwargs=kwargs), seed=7)
    theirs = DummyVecEnv([lambda: gym.make(name) for _ in range(n_envs)])
    theirs.seed(7)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    random, n_ended = np.random.default_rng(0), 0
    for _ in range(60):
        actions = random.integers(0, 2, n_envs)
        (*mine, mine_infos), (*other, other_infos) = ours.step(actions), theirs.step(actions)
        for one, two in zip(mine, other, strict=True):
            np.testing.assert_array_equal(one, two)
        for done, one, two in zip(mine[2], mine_infos, other_infos, strict=True):
            n_ended += done
            assert ("terminal_observation" in one) == done
            if done:
                np.testing.assert_array_equal(one["terminal_observation"], two["terminal_observation"])
                assert one["TimeLimit.truncated"] == two["TimeLimit.truncated"]
    assert n_ended > n_envs


def test_trainings_at_once_give_what_they_found_or_why_not():
    jobs = {"good": [(4.0,), (9.0,)], "bad": [(1.0,), (-1.0,)], "lost": [(1.0,)]}
    outcomes = at_once(math.sqrt, jobs, lambda _: None, {"lost": "by an earlier run"})
    assert outcomes["good"] == ([2.0, 3.0], "")
    assert outcomes["bad"].failed.startswith("ValueError: ")
    assert outcomes["lost"] == ([], "by an earlier run")
