"""What the zoo's experiments do differently for NPG: find its config, check it, prune trials in numerical trouble."""

import math
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import optuna
import rl_zoo3
import torch as th
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.callbacks import BaseCallback
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # torch exports it without saying so

from sb3_npg import NPG
from sb3_npg.zoo.configs import CONFIG, check_block
from sb3_npg.zoo.errors import ZooError

#: Where the zoo looks without --conf-file. It has no file for NPG.
_ZOO_CONFIG = Path(rl_zoo3.__file__).parent / "hyperparams" / "npg.yml"
#: Packages that check hyperparameters.
_REFUSING = ("sb3_npg", "stable_baselines3", "rl_zoo3")
_Method = Callable[..., Any]


def check_experiments() -> None:
    """Let an experiment with NPG find the package's config, and refuse a bad one with one clear line."""
    _replace("read_hyperparameters", _checked_reading)
    _replace("load_trial", _checked_trial)
    _replace("setup_experiment", _with_source)


def prune_numerical_trouble() -> None:
    """Prune trials of NPG that are in numerical trouble, so that the study goes on."""
    _replace("objective", _pruning)
    _replace("hyperparameters_optimization", _watching)


def _replace(name: str, make: Callable[[_Method], _Method]) -> None:
    """Wrap one of the zoo's methods for NPG; every other algorithm still uses the original."""
    original = getattr(ExperimentManager, name)
    for_npg = make(original)

    @wraps(original)
    def method(self: ExperimentManager, *args: Any) -> Any:
        return (for_npg if self.algo == "npg" else original)(self, *args)

    setattr(ExperimentManager, name, method)


def _source(experiment: ExperimentManager) -> str:
    return f"{experiment.env_name.gym_id} in {experiment.config}"


def _checked_reading(original: _Method) -> _Method:
    def read_hyperparameters(self: ExperimentManager) -> tuple[dict[str, Any], dict[str, Any]]:
        if Path(self.config) == _ZOO_CONFIG:
            self.config = str(CONFIG)
        if self.config.endswith((".yml", ".yaml", ".py")) and not Path(self.config).is_file():
            raise ZooError(f"--conf-file={self.config}: there is no such file. Without it NPG takes its own, {CONFIG}.")
        if self.trial_id == 0:
            raise ZooError("--trial-id=0: the zoo takes 0 for none given, so it cannot load the first trial. Write the "
                           "trial's values, which -optimize printed, after -params.")  # fmt: skip
        try:
            block, saved = original(self)
        except yaml.YAMLError as error:
            raise ZooError(f"--conf-file={self.config} is not YAML: {' '.join(str(error).split())}") from error
        except (KeyError, ImportError, AttributeError) as error:
            raise ZooError(f"{_source(self)}: no hyperparameters found ({error!r}). Name a .yml or .py file, or "
                           "a module with a dictionary hyperparams, after --conf-file.") from error  # fmt: skip
        check_block(block, _source(self))
        return block, saved

    return read_hyperparameters


def _checked_trial(original: _Method) -> _Method:
    def load_trial(self: ExperimentManager, storage: str, study_name: str, trial_id: int, *args: Any) -> Any:
        try:
            return original(self, storage, study_name, trial_id, *args)
        except KeyError as error:
            raise ZooError(f"--study-name={study_name}: there is no such study in --storage={storage}.") from error
        except IndexError as error:
            raise ZooError(f"--trial-id={trial_id}: the study {study_name} has no such trial.") from error

    return load_trial


def _with_source(original: _Method) -> _Method:
    def setup_experiment(self: ExperimentManager) -> Any:
        try:
            return original(self)
        except ZooError:
            raise
        except ValueError as error:
            if not _is_complaint(error):
                raise
            raise ZooError(f"{_source(self)}: {error}") from error

    return setup_experiment


def _is_complaint(error: Exception) -> bool:
    """Tell by its traceback whether an error refuses hyperparameters, or comes from elsewhere, say an environment."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] in _REFUSING


def _pruning(original: _Method) -> _Method:
    def objective(self: ExperimentManager, trial: optuna.Trial) -> float:
        try:
            value = float(original(self, trial))
        except (ValueError, ArithmeticError, LinAlgError, th.OutOfMemoryError) as error:
            raise optuna.TrialPruned(f"{type(error).__name__}: {error}") from error
        if math.isnan(value):
            raise optuna.TrialPruned("the evaluation's mean reward is NaN")
        return value

    return objective


def _watching(original: _Method) -> _Method:
    def hyperparameters_optimization(self: ExperimentManager) -> None:
        asked = [] if self.specified_callbacks is None else self.specified_callbacks
        mine = f"{PruneSkippedUpdates.__module__}.{PruneSkippedUpdates.__name__}"
        self.specified_callbacks = [*(asked if isinstance(asked, list) else [asked]), mine]
        try:
            original(self)
        except ValueError as error:
            if "No trials are completed" not in str(error):
                raise
            raise ZooError(
                f"{_source(self)}: no trial came to its end; all were pruned or interrupted. Their messages tell why."
            ) from error

    return hyperparameters_optimization


class PruneSkippedUpdates(BaseCallback):
    """
    Ends a trial whose updates fail numerically, which NPG itself skips and survives.

    :param at_least: smallest number of skipped updates that ends a trial, if they are half of all updates
    """

    def __init__(self, at_least: int = 5):
        super().__init__()
        self.at_least = at_least

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if not isinstance(self.model, NPG):
            return
        skipped, all_updates = self.model._n_skipped_updates, self.model._n_updates
        if skipped >= max(self.at_least, all_updates / 2):
            raise optuna.TrialPruned(f"{skipped} of {all_updates} updates were skipped after numerical failures")
