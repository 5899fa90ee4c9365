"""The benchmarks run from end to end on the smallest of settings."""

import json
import sys

import pytest
from stable_baselines3.common.env_util import make_vec_env

from benchmarks import defaults, environments, memory, report, trpo_comparison, trpo_runs


def test_trpo_comparison_writes_tables_and_resumes(tmp_path):
    out, results = tmp_path / "comparison.md", tmp_path / "results"
    argv = ["--envs", "Pendulum-v1", "--seeds", "0", "--steps", "2500", "--out", str(out), "--results", str(results)]
    trpo_comparison.main(argv)

    files = sorted(results.iterdir())
    runs = {run["settings"]["algorithm"]: run["figures"] for run in map(json.loads, (f.read_text() for f in files))}
    assert set(runs) == {"TRPO", "NPG", "random"}
    for algorithm in ("TRPO", "NPG"):
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
    if algorithm == "NPG":
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


def test_study_of_the_defaults_tells_settings_apart(tmp_path):
    store = report.Store(tmp_path)
    runs = [
        defaults.Run(task, seed, target_kl, 0.1, 2048)
        for target_kl in (0.01, 0.02)
        for task in ("CartPole-v1", "Pendulum-v1")
        for seed in (0, 1)
    ]
    for run in runs:
        store.save(run.settings(), {"return": 100.0 * run.target_kl + run.seed})
    rows = defaults.table(store, runs).splitlines()[2:]
    assert rows == ["| 0.01 | 0.1 | 2 ± 1 | 2 ± 1 | 2.0 |", "| 0.02 | 0.1 | 2 ± 1 | 2 ± 1 | 1.0 |"]


def test_run_of_the_defaults_is_kept(tmp_path):
    store, run = report.Store(tmp_path), defaults.Run("CartPole-v1", 0, 0.02, 0.1, 2048)
    report.in_fresh_process(defaults.measure, store, run)
    figures = store.load(run.settings())
    assert figures is not None
    assert 5.0 < figures["return"] <= 500.0
