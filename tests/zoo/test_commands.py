"""Every command of the zoo runs with NPG in an empty folder, as a user would call it."""

import os
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import pytest
import yaml
from matplotlib import pyplot as plt

from sb3_npg import NPG
from sb3_npg.zoo.commands import COMMANDS, complete, main
from sb3_npg.zoo.configs import CONFIG
from sb3_npg.zoo.repairs import own_subprocesses

ENV = "CartPole-v1"
#: Updates small enough for a test.
SMALL = ["-params", "n_steps:32", "batch_size:32", "n_envs:2"]
#: The zoo and what it imports warn of their own affairs.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.filterwarnings("error::RuntimeWarning:sb3_npg")]


def call(*arguments: str) -> None:
    assert main(list(arguments)) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder in which two agents were trained."""
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        more = ["--seed", "0", "--eval-freq", "128", "--save-freq", "128", "--eval-episodes", "2"]
        for _ in range(2):
            call("train", "--algo", "npg", "--env", ENV, "-n", "256", *more, *SMALL)
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "logs" / "npg").glob(f"{ENV}_*"))


def test_train_takes_the_package_s_config_and_saves_the_agent(here):
    run = runs(here)[0]
    model = NPG.load(run / f"{ENV}.zip", device="cpu")
    assert model.n_steps == 32  # -params
    assert model.gae_lambda == yaml.safe_load(CONFIG.read_text())[ENV]["gae_lambda"] != 0.95
    assert model.num_timesteps == 256
    assert (run / "evaluations.npz").is_file()


@pytest.mark.parametrize("which", [[], ["--load-best"], ["--load-last-checkpoint"], ["--load-checkpoint", "128"]])
def test_enjoy_reads_a_local_run(here, capsys, which):
    call("enjoy", "--algo", "npg", "--env", ENV, "-n", "60", "--no-render", "--exp-id", "1", *which)
    assert "logs/npg/CartPole-v1_1" in capsys.readouterr().out


def test_npg_and_the_local_folder_are_the_defaults(here, capsys):
    call("enjoy", "--env", ENV, "-n", "10", "--no-render", "--exp-id", "1")  # without --algo and --folder
    assert "logs/npg/CartPole-v1_1" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--algo", "--alg"])
def test_other_algorithms_are_left_alone(here, capsys, option):
    call("train", option, "ppo", "--env", ENV, "-n", "64", "--eval-freq", "-1", *SMALL)
    assert "hyperparams/ppo.yml" in capsys.readouterr().out


def test_resume(here):
    trained_agent = runs(here)[0] / f"{ENV}.zip"
    call("train", "--env", ENV, "-i", str(trained_agent), "-n", "64", "--eval-freq", "-1", *SMALL)
    before, after = (NPG.load(path / f"{ENV}.zip", device="cpu") for path in (runs(here)[0], runs(here)[-1]))
    assert after._n_updates == before._n_updates + 1


def test_record_video(here):
    call("record_video", "--env", ENV, "-n", "20", "--no-render", "--exp-id", "1")
    assert [path.suffix for path in (runs(here)[0] / "videos").iterdir()] == [".mp4"]


def test_record_training_joins_a_video_of_every_agent_on_the_way(here, tmp_path, monkeypatch):
    (tmp_path / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    call("record_training", "--env", ENV, "-n", "20", "--exp-id", "2")

    videos = {path.name: path.stat().st_size for path in (runs(here)[1] / "videos").iterdir()}
    agents = {name.split("-npg-")[0]: size for name, size in videos.items() if "-npg-" in name}
    assert set(agents) == {"checkpoint-128", "checkpoint-256", "best-model", "final-model"}
    assert videos["training.mp4"] > max(agents.values())


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("plot_train", ["-a", "npg", "-e", ENV, "-f", "logs", "-w", "2"]),
        ("all_plots", ["-a", "npg", "-e", ENV, "-f", "logs", "--no-display", "-o", "scores"]),
        ("plot_from_file", ["-i", "scores.pkl", "-l", "NPG", "--no-million"]),
    ],
)
def test_plots(here, command, arguments):
    if command == "plot_from_file":
        call("all_plots", "-a", "npg", "-e", ENV, "-f", "logs", "--no-display", "-o", "scores")
    plt.close("all")
    call(command, *arguments)
    assert plt.get_fignums()


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_optimize_and_load_a_trial(tmp_path, monkeypatch, pruner, capsys):
    monkeypatch.chdir(tmp_path)
    study = ["--storage", "study.log", "--study-name", "a"]
    search = ["-optimize", "--n-trials", "2", "--n-jobs", "2", "--no-optim-plots", "--eval-episodes", "1"]
    call("train", "--env", ENV, "-n", "128", *search, "--pruner", pruner, "--n-startup-trials", "1", *study)
    assert "Best trial:" in capsys.readouterr().out
    call("train", "--env", ENV, "-n", "32", "--eval-freq", "-1", *study, "--trial-id", "1")
    assert "Loading from Optuna study" in capsys.readouterr().out


def test_stock_commands_know_npg_by_one_line_in_custom_envs(tmp_path):
    """In a process of its own, since this one has it registered."""
    (tmp_path / "custom_envs.py").write_text("import sb3_npg.zoo\n")
    arguments = ["--algo", "npg", "--env", ENV, "-n", "64", "--eval-freq", "-1", *SMALL]
    done = subprocess.run([sys.executable, "-m", "rl_zoo3.train", *arguments], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (runs(tmp_path)[0] / f"{ENV}.zip").is_file()


def test_the_installed_command_knows_the_folder_that_it_is_called_in(tmp_path):
    for module, name in (("custom_envs", "Mine-v0"), ("my_envs", "Other-v0")):
        entry = f"import gymnasium as gym\ngym.register({name!r}, 'gymnasium.envs.classic_control:CartPoleEnv')\n"
        (tmp_path / f"{module}.py").write_text(entry)
    (tmp_path / "mine.py").write_text(
        "block = {'n_timesteps': 32, 'policy': 'MlpPolicy'}\nhyperparams = {'Mine-v0': block, 'Other-v0': block}\n"
    )
    script = Path(sys.executable).with_name("sb3-npg")
    for arguments in (["Mine-v0"], ["Other-v0", "--gym-packages", "my_envs"]):
        more = ["--conf-file", "mine", "--eval-freq", "-1", *SMALL]
        done = subprocess.run([script, "train", "--env", *arguments, *more], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("command", "option"), [*((command, "--help") for command in COMMANDS), ("enjoy", "-h")])
def test_help(command, option, capsys):
    before = sys.argv
    with pytest.raises(SystemExit) as ended:
        main([command, option])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out
    assert sys.argv is before


@pytest.mark.parametrize(
    "command", ["train", "enjoy", "record_video", "record_training", "load_from_hub", "push_to_hub"]
)
def test_algorithm_is_npg_unless_it_is_said(command):
    assert complete(command, ["--env", ENV])[:2] == ["--algo", "npg"]
    assert "npg" not in complete(command, ["--algo", "ppo"])


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_usage_lists_the_commands(capsys, arguments):
    assert main(arguments) == 0
    usage = capsys.readouterr().out
    assert all(command in usage for command in COMMANDS)


def test_commands_that_call_others_call_them_with_npg(monkeypatch):
    called = []
    monkeypatch.setattr(subprocess, "call", lambda command: called.append(command) or 0)
    with own_subprocesses():
        subprocess.call(["python", "-m", "rl_zoo3.record_video", "--algo", "npg"])
        others = [["ls"], ["python", "-m", "pip", "list"]]
        for command in others:
            subprocess.call(command)
    after = ["python", "-m", "rl_zoo3.record_video"]
    subprocess.call(after)
    assert called == [[sys.executable, "-m", "sb3_npg.zoo", "record_video", "--algo", "npg"], *others, after]
