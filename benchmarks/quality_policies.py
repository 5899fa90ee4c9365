"""Policies at several ages of their training, each with the rollout that it collected."""

from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy

from benchmarks.catch import Catch, CatchExtractor
from benchmarks.environments import N_ENVS, prepare_process, training_env
from benchmarks.report import Store
from sb3_npg import NPG
from sb3_npg.local_problem import LocalProblem
from sb3_npg.rollout import normalized, read_rollout

IMAGES = "Catch"
TASKS = ("HalfCheetah-v5", "Hopper-v5", "CartPole-v1", IMAGES)
SHARED: dict[str, Any] = {"n_steps": 256, "batch_size": 128}
#: Rows of a rollout.
ROWS = N_ENVS * int(SHARED["n_steps"])
#: Updates between a policy and the earlier one that is kept with it.
LAG = 5
#: What an update needs: the policy's state, observations, actions and normalised advantages.
Update = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """
    One training run, and when to look at it.

    :param task: one of ``TASKS``
    :param seed: of environments, networks and actions
    :param ages: environment steps, ascending; the first rollout at each age is kept
    :param width: units in each of the two hidden layers of a policy that sees no images
    """

    task: str
    seed: int
    ages: tuple[int, ...]
    width: int

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        return {**asdict(self), **SHARED, "n_envs": N_ENVS, "lag": LAG, "threads": 1}

    def path(self, cache: Path, age: int) -> Path:
        """Return where the policy of an age lies."""
        return cache / f"{self.task}-{self.width}-seed{self.seed}-{age}.pt"


class Snapshots(BaseCallback):
    """
    Keeps the update that is about to be made at each age, with the one ``LAG`` updates earlier, if there was one.

    :param cache: folder to keep them in
    :param training: which ages, and under which names
    """

    def __init__(self, cache: Path, training: Training):
        super().__init__()
        self.cache = cache
        self.training = training
        self.returns: dict[int, float | None] = {}
        self._recent: deque[Update] = deque(maxlen=LAG + 1)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, NPG)
        self._recent.append(_update_ahead(self.model))
        for age in self.training.ages:
            if age not in self.returns and self.num_timesteps - ROWS >= age:
                episodes = [episode["r"] for episode in self.model.ep_info_buffer or ()]
                self.returns[age] = fmean(episodes) if episodes else None
                earlier = self._recent[0] if len(self._recent) > LAG else None
                kept = {"present": self._recent[-1], "earlier": earlier, "return": self.returns[age]}
                th.save(kept, self.training.path(self.cache, age))


def _update_ahead(model: NPG) -> Update:
    """Copy what the update after a rollout needs."""
    samples = read_rollout(model.rollout_buffer, model.action_space)
    return {
        "policy": {name: tensor.clone() for name, tensor in model.policy.state_dict().items()},
        "observations": samples.observations,
        "actions": samples.actions,
        "advantages": normalized(samples.advantages),
    }


def make_agent(task: str, seed: int, width: int) -> NPG:
    """Build a task's agent and its environments; only those without images are normalised."""
    if task == IMAGES:
        env = make_vec_env(Catch, n_envs=N_ENVS, seed=seed)
        image_kwargs = {"features_extractor_class": CatchExtractor, "net_arch": []}
        return NPG(
            "CnnPolicy",
            env,
            seed=seed,
            device="cpu",
            policy_kwargs=image_kwargs,
            critic_solver="adam",
            n_critic_updates=10,
            fisher_solver="cg",
            damping=0.1,
            **SHARED,
        )
    kwargs = {"net_arch": [width, width]}
    return NPG(
        "MlpPolicy",
        training_env(task, seed),
        seed=seed,
        device="cpu",
        policy_kwargs=kwargs,
        critic_solver="adam",
        n_critic_updates=10,
        damping=0.1,
        **SHARED,
    )


def train(store: Store, training: Training) -> None:
    """Train, keep the policies next to the store's files, and note the training returns at their ages."""
    prepare_process()
    store.folder.mkdir(parents=True, exist_ok=True)
    snapshots = Snapshots(store.folder, training)
    make_agent(training.task, training.seed, training.width).learn(training.ages[-1] + ROWS, callback=snapshots)
    store.save(training.settings(), {"returns": list(snapshots.returns.values())})


def make_problem(policy: ActorCriticPolicy, update: Update, rows: int) -> LocalProblem:
    """
    Freeze an update in float64. SB3's cast of observations to float32 is the caller's to undo.

    :param policy: of the right shape; it is given the update's parameters
    :param update: the update
    :param rows: how many of its rows to use
    """
    policy.load_state_dict(update["policy"])
    policy.double().set_training_mode(False)
    observations, actions = update["observations"][:rows], update["actions"][:rows]
    if actions.is_floating_point():
        actions = actions.double()
    return LocalProblem(policy, observations, actions, update["advantages"][:rows].double())
