"""
Does an agent learn alike whatever the unit of the rewards? NPG, TRPO and PPO without ``VecNormalize``.

``python -m benchmarks.reward_scale`` does the missing runs and writes ``docs/reward_scale.md``.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from statistics import fmean
from typing import Any

import gymnasium as gym
import torch as th
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from benchmarks.environments import EVALUATION_EPISODES, N_ENVS, returns_of, unseen_env
from benchmarks.report import (
    Store,
    candidates_parser,
    command_line,
    markdown_table,
    mean_and_spread,
    measure_missing,
    preamble,
    write_document,
)
from sb3_npg import NPG

#: Environment steps of each task.
TASKS = {"CartPole-v1": 30_000, "Pendulum-v1": 80_000}
#: What all rewards are multiplied by.
SCALES = (0.01, 1.0, 100.0)
SEEDS = (0, 1, 2)
#: Rollouts of 1,024 rows for NPG, and of 2,048 for the others, as their defaults have with one environment.
AGENTS: dict[str, tuple[type[OnPolicyAlgorithm], dict[str, Any]]] = {
    "NPG": (NPG, {"n_steps": 128}),
    'NPG, critic_solver="adam"': (NPG, {"n_steps": 128, "critic_solver": "adam"}),
    "TRPO": (TRPO, {"n_steps": 256}),
    "PPO": (PPO, {"n_steps": 256}),
}
#: What the table says, in the words of those who read it.
CONCLUSIONS = """\
## What this says

- **CartPole** is learnt by NPG's default with every seed in all three units; with rewards × 100 each of the others
  falls short with one seed at least.
- **Pendulum** has negative returns of some hundreds. In its own unit NPG's default learns it with every seed, with
  Adam's critic with two of three, TRPO and PPO with none. With rewards × 100 only NPG's default learns it, with every
  seed. With rewards × 0.01 all learn it, except for one seed of NPG's default: there returns are of order one, which
  is what Adam's learning rates suit.
- For those critics `VecNormalize` is what brings returns to order one.
"""


@dataclass(frozen=True)
class Run:
    """
    One training run with the algorithm's defaults.

    :param agent: key of ``AGENTS``
    :param env_id: the task
    :param scale: factor of all rewards in training
    :param seed: of environments, networks and actions
    :param steps: environment steps over all environments
    """

    agent: str
    env_id: str
    scale: float
    seed: int
    steps: int

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        fixed = {"n_envs": N_ENVS, "episodes": EVALUATION_EPISODES, "threads": 1}
        return {**asdict(self), **fixed, "arguments": AGENTS[self.agent][1]}


def measure(store: Store, run: Run) -> None:
    """Train on scaled rewards, and keep the final policy's mean return in the task's own unit."""
    th.set_num_threads(1)
    scaled = partial(gym.wrappers.TransformReward, func=lambda reward: run.scale * float(reward))
    env = make_vec_env(run.env_id, n_envs=N_ENVS, seed=run.seed, wrapper_class=scaled)
    algorithm, arguments = AGENTS[run.agent]
    agent = algorithm("MlpPolicy", env, seed=run.seed, device="cpu", **arguments).learn(run.steps)
    store.save(run.settings(), {"return": fmean(returns_of(agent, unseen_env(run.env_id, run.seed)))})


def all_runs(
    agents: Sequence[str] = tuple(AGENTS), seeds: Sequence[int] = SEEDS, steps: int | None = None
) -> list[Run]:
    """Return the runs, those of the first seed first, so that an unfinished comparison says something."""
    chosen = product(seeds, TASKS, SCALES, agents)
    return [Run(agent, task, scale, seed, steps or TASKS[task]) for seed, task, scale, agent in chosen]


def table(store: Store, runs: Sequence[Run]) -> str:
    """Write mean ± standard deviation over seeds, a column for each task and scale."""
    found = store.found(runs, lambda run: (run.agent, run.env_id, run.scale))
    columns = list(dict.fromkeys((run.env_id, run.scale) for run in runs))
    rows = [
        [agent, *(mean_and_spread([one["return"] for one in found.get((agent, *column), [])]) for column in columns)]
        for agent in dict.fromkeys(run.agent for run in runs)
    ]
    return markdown_table(["agent", *(f"{task}, rewards × {scale:g}" for task, scale in columns)], rows)


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document from what is stored."""
    arguments = candidates_parser("reward_scale", __doc__, list(AGENTS)).parse_args(argv)
    store, runs = Store(arguments.results), all_runs(arguments.candidates)
    if not arguments.report:
        measure_missing(store, runs, measure, arguments.processes)
    steps = ", ".join(f"{task} {n:,}" for task, n in TASKS.items())
    about = (
        f"Return of the final policy in the task's own unit, {EVALUATION_EPISODES} deterministic episodes, mean ± "
        f"standard deviation over seeds {list(SEEDS)}; {N_ENVS} environments, no VecNormalize, each algorithm's "
        f"defaults except for `n_steps`: 128 for NPG, 256 for TRPO and PPO; one thread. Steps: {steps}."
    )
    head = preamble("Learning in any unit of the rewards", command_line("benchmarks.reward_scale", argv))
    write_document(arguments.out, [head, CONCLUSIONS, about, table(store, runs)])


if __name__ == "__main__":
    main(sys.argv[1:])
