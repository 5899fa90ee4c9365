"""Bad input to a command of the zoo: one line that names the key, the file and the way out, and nothing is trained."""

import re
import shutil

import gymnasium as gym
import numpy as np
import optuna
import pytest

from sb3_npg import NPG
from sb3_npg.zoo.commands import check_folder, main
from sb3_npg.zoo.configs import check_block, hyperparams
from sb3_npg.zoo.errors import ZooError

ENV = "CartPole-v1"
BLOCK = f"{ENV}:\n  n_timesteps: 100\n  policy: MlpPolicy\n"
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(NPG, "train", lambda self: pytest.fail("training has begun"))


def complaint(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    return error[0]


@pytest.mark.parametrize("env_id", hyperparams)
def test_blocks_of_the_package_are_good_input(env_id):
    check_block(hyperparams[env_id], "npg.yml")


def test_blocks_of_the_package_share_nothing_that_the_zoo_may_change():
    assert len({id(block) for block in hyperparams.values()}) == len(hyperparams)
    nested = [value for block in hyperparams.values() for value in block.values() if isinstance(value, (dict, list))]
    assert len({id(value) for value in nested}) == len(nested)


@pytest.mark.parametrize("name", ["learning_rate", "damping", "target_kl", "step_size"])
def test_schedules_of_a_block_are_good_input(name):
    check_block({"n_timesteps": 100, "policy": "MlpPolicy", name: "lin_0.1"}, "mine.yml")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("n_step: 64", ["`n_step` is unknown", "Did you mean `n_steps`"]),
        ("cg_damping: 0.1", ["`cg_damping` is unknown", "damping", "action dimensions"]),
        ("cg_max_steps: 10", ["fisher_solver_kwargs"]),
        ("seed: 3", ["--seed"]),
        ("device: cuda", ["`device` is unknown", "--device"]),
        ("verbose: 1", ["`verbose` is unknown", "--verbose"]),
        ("tensorboard_log: runs", ["`tensorboard_log` is unknown", "--tensorboard-log"]),
        ("damping: 1e-3", ["`damping`='1e-3'", "1.0e-3 or !!float 1e-3"]),
        ("learning_rate: 1e-3", ["`learning_rate`='1e-3'", "!!float"]),
        ("fisher_solver_kwargs: {rtol: 1e-3}", ["`fisher_solver_kwargs['rtol']`='1e-3'", "!!float"]),
        ("gamma: lin_0.99", ["`gamma`='lin_0.99'", "follows no schedule", "target_kl"]),
        ("target_kl: lin_big", ["`target_kl`='lin_big'", "no number"]),
        ("rollout_buffer_class: my.Buffer", ["`rollout_buffer_class`", "FILE.py"]),
        ("callback: sb3_npg.callbacks.Stager", ["`callback`='sb3_npg.callbacks.Stager'", "whole name of a class"]),
        ("callback: [{StaggerEpisodes: {verbose: 1}}]", ["`callback`='StaggerEpisodes'", "whole name of a class"]),
        ("env_wrapper: nowhere.Wrapper", ["`env_wrapper`='nowhere.Wrapper'", "nowhere"]),
        ("vec_env_wrapper: nowhere.Wrapper", ["`vec_env_wrapper`='nowhere.Wrapper'", "nowhere"]),
        ("normalize: {norm_obs_keys: [image]}", ["norm_obs_keys"]),
        ("fisher_solver: cgg", ["`fisher_solver`='cgg'", "Choose one of"]),
        ("damping: -1", ["`damping`=-1"]),
    ],
)
def test_bad_keys_and_values(tmp_path, capsys, line, words):
    (tmp_path / "mine.yml").write_text(f"{BLOCK}  {line}\n")
    message = complaint(capsys, "train", "--env", ENV, "--conf-file", "mine.yml")
    assert all(word in message for word in [*words, "mine.yml", ENV])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{ENV}:\n  policy: MlpPolicy\n", ["`n_timesteps`"]),
        (f"{ENV}:\n  n_timesteps: 100\n", ["`policy`"]),
        (f"{ENV}: [\n", ["not YAML"]),
        ("Other-v0:\n  n_timesteps: 1\n", [ENV]),
    ],
)
def test_bad_files(tmp_path, capsys, text, words):
    (tmp_path / "mine.yml").write_text(text)
    message = complaint(capsys, "train", "--env", ENV, "--conf-file", "mine.yml")
    assert all(word in message for word in [*words, "mine.yml"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--env", "CartPol-v1"], ["CartPol-v1", "CartPole-v1", "--gym-packages"]),
        (["train", "--env", ENV, "-conf", "nowhere.yml"], ["nowhere.yml", "no such file"]),
        (["train", "--env", ENV, "-conf", "no_module"], ["no_module", "--conf-file"]),
        (["train", "--env", ENV, "-i", "nowhere.zip"], ["nowhere.zip", "no such file"]),
        (["train", "--env", ENV, "-params", "n_step:3"], ["`n_step` is unknown"]),
        (["train", "--env", ENV, "--trial-id", "0"], ["--trial-id=0"]),
        (["train", "--env", ENV, "--gym-packages", "nowhere"], ["--gym-packages nowhere", "no such module"]),
        (["enjoy", "--fold", "elsewhere", "--env", ENV], ["--folder=elsewhere holds no run of npg"]),
        (["enjoy", "--alg", "ppo", "--env", ENV], ["--folder=logs holds no run of ppo"]),
        (["enjoy", "--env", ENV], ["--folder=logs", "sb3-npg train --algo npg"]),
        (["record_video", "--env", ENV, "-f", "elsewhere"], ["--folder=elsewhere"]),
        (["trian", "--env", ENV], ["Did you mean train?"]),
        (["benchmark"], ["Known"]),
    ],
)
def test_missing_things(capsys, arguments, words):
    message = complaint(capsys, *arguments)
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    "block",
    [
        {"env_kwargs": {"level": "2"}},
        {"monitor_kwargs": {"filename": "2024"}},
        {
            "callback": {
                "stable_baselines3.common.callbacks.CheckpointCallback": {"save_freq": 9, "name_prefix": "2024"}
            }
        },
        {"env_wrapper": {"gymnasium.wrappers.RecordVideo": {"video_folder": "2024"}}},
    ],
    ids=lambda block: next(iter(block)),
)
def test_what_others_are_given_may_be_text(block):
    check_block({"n_timesteps": 100, "policy": "MlpPolicy", **block}, "mine.yml")


@pytest.mark.parametrize("value", ["lambda progress: 0.1 * progress", "falling", "Falling()", "nn.Tanh"])
def test_what_a_saved_config_cannot_name_is_refused(tmp_path, capsys, value):
    text = f"""
from torch import nn
def falling(progress):
    return 0.1 * progress
class Falling:
    __call__ = staticmethod(falling)
hyperparams = {{"{ENV}": dict(n_timesteps=1, policy="MlpPolicy", target_kl={value}, damping=-1.0)}}
"""
    (tmp_path / "mine.py").write_text(text)
    message = complaint(capsys, "train", "--env", ENV, "--conf-file", "mine.py")
    if value in ("Falling()", "nn.Tanh"):
        assert "found again" not in message
    else:
        assert all(word in message for word in ("`target_kl`", "found again", "mine.py", "'lin_0.01'"))


def test_what_a_saved_config_cannot_name_is_found_among_arguments():
    kwargs = {"activation_fn": lambda: None}
    with pytest.raises(ZooError, match=re.escape("mine.py: `policy_kwargs['activation_fn']`=")):
        check_block({"n_timesteps": 100, "policy": "MlpPolicy", "policy_kwargs": kwargs}, "mine.py")


@pytest.mark.parametrize("run", ["npg/ALE-Pong-v5_1", "npg/ALE-Pong-v5.zip"])
def test_a_run_is_found_under_the_name_that_the_zoo_gives_it(tmp_path, run):
    with pytest.raises(ZooError, match="holds no run of npg on ALE/Pong-v5"):
        check_folder(tmp_path, "npg", "ALE/Pong-v5")
    (tmp_path / "npg").mkdir()
    (tmp_path / run).touch()
    check_folder(tmp_path, "npg", "ALE/Pong-v5")


def test_a_module_s_own_failure_to_import_is_its_own(tmp_path):
    (tmp_path / "incomplete.py").write_text("import nowhere\n")
    with pytest.raises(ModuleNotFoundError, match="'nowhere'"):
        main(["train", "--env", ENV, "--gym-packages", "incomplete"])


def test_a_study_that_is_not_there(capsys):
    optuna.create_study(storage="sqlite:///here.db", study_name="here")
    train = ["train", "--env", ENV, "--trial-id", "2", "--storage", "sqlite:///here.db", "--study-name"]
    assert "--study-name=elsewhere" in complaint(capsys, *train, "elsewhere")
    assert "--trial-id=2" in complaint(capsys, *train, "here")


def test_an_environment_s_own_error_is_its_own(monkeypatch):
    def broken(**kwargs):
        return np.zeros(3) + np.zeros(4)

    monkeypatch.setitem(gym.registry, "Broken-v0", gym.envs.registration.EnvSpec("Broken-v0", broken))
    monkeypatch.setitem(hyperparams, "Broken-v0", {"n_timesteps": 1, "policy": "MlpPolicy"})
    with pytest.raises(ValueError, match="broadcast") as raised:
        main(["train", "--env", "Broken-v0", "--conf-file", "sb3_npg.zoo.configs"])
    assert raised.traceback[-1].name == "broken"


def test_record_training_without_ffmpeg(tmp_path, capsys, monkeypatch):
    (tmp_path / "logs" / "npg" / f"{ENV}_1").mkdir(parents=True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "ffmpeg" in complaint(capsys, "record_training", "--env", ENV)
