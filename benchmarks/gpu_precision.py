"""What TF32 in the solves does to the returns of whole trainings on a GPU."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch as th
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.environments import N_ENVS, returns_of, unseen_env
from benchmarks.gpu_timing import Row, Setting
from benchmarks.gpu_trainings import at_once
from sb3_npg import NPG

TASK, STEPS = "Pendulum-v1", 100_000
SEEDS = (0, 1, 2)
#: As in zoo_configs/npg.yml.
ARGUMENTS: dict[str, Any] = {"n_steps": 128, "target_kl": 0.02, "gamma": 0.9, "use_sde": True, "sde_sample_freq": 4}
#: torch's names for the precision of products.
PRECISIONS = {"float32": "highest", "TF32": "high"}


def returns(setting: Setting, starting: Callable[[str], None], without: dict[str, str]) -> list[Row]:
    """Train with each precision and seed, all at once, and return a row for each precision."""
    jobs = {name: [(name, seed, setting) for seed in SEEDS] for name in PRECISIONS}
    outcomes = at_once(_final, jobs, starting, without)
    return [
        {"name": name, **({"failed": failed} if failed else {"returns": found})}
        for name, (found, failed) in ((name, outcomes[name]) for name in PRECISIONS)
    ]


def _final(precision: str, seed: int, setting: Setting) -> float:
    """Train, and return the mean return of the final policy's deterministic episodes."""
    th.set_num_threads(1)
    th.set_float32_matmul_precision(PRECISIONS[precision])
    agent = NPG("MlpPolicy", make_vec_env(TASK, N_ENVS, seed=seed), seed=seed, device=setting.device, **ARGUMENTS)
    agent.learn(setting.size(STEPS, N_ENVS * ARGUMENTS["n_steps"]))
    return fmean(returns_of(agent, unseen_env(TASK, seed)))
