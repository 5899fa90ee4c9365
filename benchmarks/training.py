"""A training run of NPG for a study, what it logs and returns at the end; a rollout without training."""

import time
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.environments import evaluation_env, prepare_process, returns_of, training_env
from sb3_npg import NPG

EPISODE_RETURN = "rollout/ep_rew_mean"


@dataclass(frozen=True)
class Training:
    """
    A finished run.

    :param final: mean return of the final policy, deterministic, on unseen episodes
    :param cpu_seconds: of the processor, evaluation left out
    :param updates: what each update logged, with its "steps", its "seconds" and, once an episode has ended, the mean
        return of the last episodes as ``EPISODE_RETURN``
    """

    final: float
    cpu_seconds: float
    updates: list[dict[str, float]]

    def logged(self, key: str) -> list[float]:
        """Return a figure of the updates that have it."""
        return [update[key] for update in self.updates if key in update]

    def curve(self) -> list[tuple[int, float]]:
        """Return steps and mean return of the last episodes."""
        return [(int(update["steps"]), update[EPISODE_RETURN]) for update in self.updates if EPISODE_RETURN in update]

    def training_return(self) -> float:
        """Return the mean return while training, over the last tenth of the rollouts."""
        returns = self.logged(EPISODE_RETURN)
        return fmean(returns[-len(returns) // 10 :])

    def explained_variance(self) -> float:
        """Return what the critic explained of rollouts that it had not seen, median of the second half."""
        explained = self.logged("train/explained_variance")
        return median(explained[len(explained) // 2 :])


class UpdateRecorder(BaseCallback):
    """Collects what each update logs and the seconds that it takes, before the next rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[dict[str, float]] = []
        self._start = 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._start = time.perf_counter()

    def _on_rollout_start(self) -> None:
        if "train/n_updates" not in self.logger.name_to_value:
            return  # nothing has been trained yet
        update = {"steps": float(self.num_timesteps), "seconds": time.perf_counter() - self._start}
        update.update({key: float(value) for key, value in self.logger.name_to_value.items()})
        episodes = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        if episodes:
            update[EPISODE_RETURN] = fmean(episodes)
        self.updates.append(update)

    def _on_training_end(self) -> None:
        self._on_rollout_start()


def train(env_id: str, seed: int, steps: int, **arguments: Any) -> Training:
    """
    Train on one thread and normalised environments, then evaluate the final policy.

    :param env_id: the task
    :param seed: of environments, networks and actions
    :param steps: environment steps over all environments
    :param arguments: of NPG; ``gamma`` is that of the reward's normalisation too
    """
    prepare_process()
    env = training_env(env_id, seed, arguments.get("gamma", 0.99))
    model = NPG("MlpPolicy", env, seed=seed, device="cpu", **arguments)
    recorder = UpdateRecorder()
    start = time.process_time()
    model.learn(steps, callback=recorder)
    cpu_seconds = time.process_time() - start
    returns = returns_of(model, evaluation_env(env_id, seed, env))
    return Training(fmean(returns), cpu_seconds, recorder.updates)


def collect_rollout(model: NPG) -> None:
    """Fill the agent's rollout buffer from where its environments are, without training on it."""
    _, callback = model._setup_learn(0, reset_num_timesteps=False)
    if model.env is None:
        raise ValueError("the agent has no environment")
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
