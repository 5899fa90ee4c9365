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
_FEWER: dict[str, Any] = {"critic_solver_kwargs": {"min_gain": 0.3}}
CANDIDATES: Candidates = {
    "nothing": ({}, _SEEDS),
    "the critic's steps must gain 0.3": (_FEWER, _SEEDS),
    "normalised": (_NORMALIZED, _SEEDS),
    "normalised, the critic's steps must gain 0.3": ({**_NORMALIZED, **_FEWER}, _SEEDS),
}
STUDY = ZooStudy("lunar_lander", TASK, BASE, [Stage(1_000_000, CANDIDATES)], shown=(200_000, 600_000))
#: What the tables say, in the words of those who read them.
CONCLUSIONS = """\
## What this says

- **Observations and rewards normalised**: every seed lands at the end, whatever the critic's steps. As they are, one
  seed or all are still falling now and then. The zoo normalises.
- **The critic's steps.** At γ = 0.999 the default takes further steps while they promise 0.03 of what was gained, a
  tenth of what it asks for at γ = 0.99, where a single step mostly does. Asking for 0.3 here, too, costs returns unless
  they are normalised, as a long horizon has no delay to spare.

The seeds are not those of [results.md](results.md).
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
