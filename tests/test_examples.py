"""Every example runs, with few steps, and does what it says."""

import sys
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest

from examples import compare_gradients, continue_training, demo, fisher_spectrum, train_and_save
from sb3_npg.solvers import make_fisher_solver
from tests.cases import make_problem

PNG = b"\x89PNG\r\n\x1a\n"


# SB3 silences this warning of its progress bar where it imports it; pytest's own filters undo that.
@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
@pytest.mark.parametrize(("env_id", "steps"), [("CartPole-v1", 10_000), ("Pendulum-v1", 2048)])
def test_demo_learns_saves_reloads_and_draws(
    env_id: str, steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    result = demo.main(steps, env_id, folder=tmp_path)
    assert result.reloaded == result.after
    assert "the loaded model's actions are the same" in capsys.readouterr().out
    assert result.picture.read_bytes().startswith(PNG)
    assert (tmp_path / env_id / "model.zip").stat().st_size > 0
    assert (tmp_path / env_id / "vec_normalize.pkl").exists() == (env_id == "Pendulum-v1")
    if env_id == "CartPole-v1":
        assert result.after > result.before + 50


def test_demo_takes_the_policy_that_reads_the_observations():
    image = gym.spaces.Box(0, 255, (96, 96, 3), np.uint8)
    assert demo.policy_for(image) == "CnnPolicy"
    assert demo.policy_for(gym.spaces.Dict(image=image)) == "MultiInputPolicy"
    assert (
        demo.policy_for(gym.spaces.Box(-1.0, 1.0, (7, 7, 3))) == demo.policy_for(gym.spaces.Discrete(3)) == "MlpPolicy"
    )


def test_demo_names_an_unknown_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["demo", "--env", "CartPoole-v1"])
    with pytest.raises(SystemExit):
        demo.run()
    assert "--env CartPoole-v1: " in capsys.readouterr().err


def test_train_and_save(tmp_path: Path):
    loaded, episode_return = train_and_save.main(5_000, tmp_path)
    assert (tmp_path / "npg_cartpole.zip").exists()
    assert loaded.num_timesteps == 5 * 1024
    assert episode_return > 12  # untrained, the greedy policy drops the pole within ten steps or so


def test_continue_training(tmp_path: Path):
    model, first_half, second_half = continue_training.main(8_192, tmp_path)
    assert model.num_timesteps == 8_192
    assert model.damping == 0.01
    assert min(first_half, second_half) > 100  # untrained: about 10


def test_natural_gradient_does_not_depend_on_the_units_and_the_vanilla_gradient_does(tmp_path: Path):
    returns, picture = compare_gradients.main(8_192, tmp_path, n_seeds=1)
    assert picture.read_bytes().startswith(PNG)
    natural, vanilla = (
        np.array([returns[gradient, units] for units in compare_gradients.UNITS]) for gradient in ("natural", "vanilla")
    )
    np.testing.assert_allclose(natural[0, :, :5], natural[1, :, :5])
    assert np.abs(natural[0] - natural[1]).max() < np.abs(vanilla[0] - vanilla[1]).max()
    assert natural[1, 0, -1] > 1.5 * vanilla[1, 0, -1]
    assert not np.allclose(vanilla[0, :, :5], vanilla[1, :, :5])


def test_custom_solver_trains_and_is_loaded_by_its_name(
    custom_solver: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    loaded, mean_return = custom_solver.main(8_192, tmp_path)
    assert (tmp_path / "npg_nystrom.zip").exists()
    assert isinstance(loaded.fisher, custom_solver.NystromSolver)
    assert loaded.fisher.rank == 20
    assert mean_return > 100  # untrained: about 10
    residual = float(capsys.readouterr().out.split(" left ")[1].split()[0])
    assert residual < 0.05


@pytest.mark.usefixtures("float64", "custom_solver")
def test_custom_solver_of_full_rank_is_exact_and_of_low_rank_is_the_nearer_the_higher_it_is():
    problem = make_problem("Gaussian", "Mlp", 20)
    gradient = problem.surrogate_gradient()
    expected = make_fisher_solver("exact").solve(problem, gradient, 0.05).natural_gradient
    errors = []
    for rank in (1, 10, 1000):
        x = make_fisher_solver("nystrom", {"rank": rank}).solve(problem, gradient, 0.05).natural_gradient
        errors.append(float((x - expected).norm() / expected.norm()))
    assert errors[0] > errors[1] > 1e-6
    assert errors[2] < 1e-12


def test_fisher_spectrum(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spectra, picture = fisher_spectrum.main(3 * 1024, picture=tmp_path / "spectrum.png")
    assert picture.read_bytes().startswith(PNG)
    assert list(spectra) == [0, 1, 2]
    for by_layer in spectra.values():
        assert len(by_layer) == 3
        for eigenvalues, errors in by_layer.values():
            trace = eigenvalues[fisher_spectrum.EXACT].sum()
            np.testing.assert_allclose(eigenvalues["EKFAC"].sum(), trace, rtol=1e-4)
            np.testing.assert_allclose(eigenvalues["diagonal"].sum(), trace, rtol=1e-4)
            assert errors["EKFAC"] <= errors["K-FAC"] + 1e-3
            assert 0 <= errors["EKFAC"] < errors["diagonal"] < 1
    # A fresh policy is nearly uniform: what comes back to the last layer does not depend on what goes in.
    assert spectra[0]["action_net"].errors["K-FAC"] < 0.01
    fisher_spectrum.print_table(spectra)
    assert "action_net" in capsys.readouterr().out
