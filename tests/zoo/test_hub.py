"""The zoo's exchange with the hub works against a stand-in for the hub: no network."""

import zipfile

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError

import sb3_npg.zoo
from sb3_npg.zoo.commands import main

ENV = "CartPole-v1"
pytestmark = pytest.mark.filterwarnings("default")


def test_the_metadata_of_a_model_card_is_a_dictionary():
    from huggingface_sb3.push_to_hub import generate_metadata

    card = generate_metadata("NPG", ENV, 1.0, 0.5)
    assert card["library_name"] == "stable-baselines3"
    assert sb3_npg.zoo is not None


def test_a_model_without_normalisation_is_downloaded(tmp_path, monkeypatch):
    stored = tmp_path / "hub"
    stored.mkdir()
    for name in (f"npg-{ENV}.zip", "config.yml", "args.yml", "env_kwargs.yml"):
        (stored / name).write_text("")
    with zipfile.ZipFile(stored / "train_eval_metrics.zip", "w") as metrics:
        metrics.writestr("0.monitor.csv", "")

    def download(repo_id, filename, **_):
        if not (stored / filename).is_file():
            raise EntryNotFoundError(f"{filename} is not in {repo_id}")
        return str(stored / filename)

    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    assert main(["load_from_hub", "--env", ENV, "-f", "logs", "-orga", "someone"]) == 0
    assert (tmp_path / "logs" / "npg" / f"{ENV}_1" / f"{ENV}.zip").is_file()
