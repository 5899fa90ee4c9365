"""
The study behind LunarLander's hyperparameters in the zoo: which ones land on every seed, and stay with it.

``python -m benchmarks.lunar_lander`` does the runs that are missing and writes ``docs/lunar_lander.md``. If
interrupted, it resumes. The runs are trained as ``python -m benchmarks.returns`` does, on seeds that it does not use.
"""

import sys
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from benchmarks.zoo_study import Candidates, Stage, ZooStudy

TASK = "LunarLander-v3"

#: Long rollouts and a δ that falls to 0; observations and rewards as they are.
BASE: dict[str, Any] = {
    "n_envs": 8,
    "policy": "MlpPolicy",
    "n_steps": 1024,
    "target_kl": "lin_0.02",
    "gae_lambda": 0.98,
    "gamma": 0.999,
}
_SEEDS = (3, 4, 5)
_NORMALIZED: dict[str, Any] = {"normalize": True}
_ADAM: dict[str, Any] = {"critic_solver": "adam", "n_critic_updates": 20, "batch_size": 128}
CANDIDATES: Candidates = {
    "nothing": ({}, _SEEDS),
    "normalised": (_NORMALIZED, _SEEDS),
    "rewards normalised": ({"normalize": {"norm_obs": False}}, _SEEDS),
    "normalised, rollouts of 4,096": ({**_NORMALIZED, "n_steps": 512}, _SEEDS),
    "normalised, Adam 20 × 128": ({**_NORMALIZED, **_ADAM}, _SEEDS),
    "normalised, δ falling from 0.05": ({**_NORMALIZED, "target_kl": "lin_0.05"}, _SEEDS),
}
STUDY = ZooStudy("lunar_lander", TASK, BASE, [Stage(1_000_000, CANDIDATES)], shown=(200_000, 600_000))
#: What the tables say, in the words of those who read them.
CONCLUSIONS = """\
## What this says
"""


def score() -> tuple[float, str]:
    """Return the return at which gymnasium calls the task solved, and what it is."""
    threshold = gym.spec(TASK).reward_threshold
    if threshold is None:
        raise ValueError(f"{TASK} has no reward_threshold in gymnasium's registry")
    return threshold, f"{threshold:.0f} is where gymnasium calls the task solved."


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document."""
    STUDY.main(argv, __doc__, CONCLUSIONS, score)


if __name__ == "__main__":
    main(sys.argv[1:])
