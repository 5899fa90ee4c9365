"""
What a critic learns from one rollout, and how much of it holds on the next.

A policy is trained, then collects two rollouts. Each critic solver fits a copy of the critic to the first; the
explained variance of both rollouts tells what it learnt of the task and what of the rollout's noise.
``python -m benchmarks.critic_fit`` measures what is missing and prints the table; ``python -m benchmarks.critics`` puts
it into ``docs/critics.md``.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.environments import N_ENVS, prepare_process, training_env
from benchmarks.report import Store, markdown_table, measure_missing
from benchmarks.training import collect_rollout
from sb3_npg import NPG
from sb3_npg.critic import make_critic_solver
from sb3_npg.policy_parts import split_policy
from sb3_npg.rollout import Samples, read_rollout

RESULTS = Path("benchmarks/results/critic_fit")
TASKS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5", "Ant-v5")
STEPS = 100_000


@dataclass(frozen=True)
class Fit:
    """
    A way to fit the critic.

    :param solver: a value of ``critic_solver``
    :param n_updates: epochs or steps
    :param damping: of Gauss–Newton, in mean eigenvalues
    """

    solver: str
    n_updates: int
    damping: float | None = None

    def name(self) -> str:
        """Return what the tables call it."""
        if self.damping is None:
            return f"Adam, {self.n_updates} epochs of 64"
        return f"Gauss–Newton, damping {self.damping:g}, {self.n_updates} step{'s' if self.n_updates > 1 else ''}"


FITS = (
    *(Fit("adam", n) for n in (1, 3, 10, 30)),
    *(Fit("gauss_newton", n, damping) for damping in (0.1, 1.0, 10.0, 100.0) for n in (1, 5)),
)


@dataclass(frozen=True)
class Run:
    """
    A task, and the policy on it.

    :param env_id: the task
    :param seed: of its training
    :param steps: of its training
    """

    env_id: str
    seed: int = 0
    steps: int = STEPS

    def settings(self) -> dict[str, Any]:
        """Return all that the figures depend on."""
        return {**asdict(self), "n_envs": N_ENVS, "fits": [asdict(fit) for fit in FITS]}


def measure(store: Store, run: Run) -> None:
    """Train, collect two rollouts, fit copies of the critic to the first, and keep what they explain of both."""
    prepare_process()
    env = training_env(run.env_id, run.seed)
    model = NPG("MlpPolicy", env, n_steps=256, damping=0.1, seed=run.seed, device="cpu")
    model.learn(run.steps)
    env.training = False  # both rollouts are scaled alike
    rollouts = [collected(model) for _ in range(2)]
    start = copy.deepcopy(model.policy.state_dict())
    optimizer = copy.deepcopy(model.policy.optimizer.state_dict())
    figures: dict[str, Any] = {"before": explained(model, rollouts)}
    for fit in FITS:
        kwargs = None if fit.damping is None else {"damping": fit.damping}
        parts = split_policy(model.policy, rollouts[0].observations)
        make_critic_solver(fit.solver, kwargs, gamma=0.99).fit(model.policy, parts, rollouts[0], fit.n_updates, 64)
        figures[fit.name()] = explained(model, rollouts)
        model.policy.load_state_dict(start)
        model.policy.optimizer.load_state_dict(copy.deepcopy(optimizer))
    store.save(run.settings(), figures)


def collected(model: NPG) -> Samples:
    """Collect a rollout without training on it."""
    collect_rollout(model)
    model.policy.set_training_mode(False)
    return read_rollout(model.rollout_buffer, model.action_space)


@th.no_grad()
def explained(model: NPG, rollouts: Sequence[Samples]) -> list[float]:
    """Return how much of each rollout's returns the critic explains."""
    figures = []
    for rollout in rollouts:
        error = rollout.returns - model.policy.predict_values(rollout.observations).flatten()
        figures.append(1.0 - float(error.var() / rollout.returns.var()))
    return figures


def sections(store: Store, runs: Sequence[Run]) -> list[str]:
    """Write the table from what is stored."""
    found = {run.env_id: figures for run in runs if (figures := store.load(run.settings())) is not None}
    if not found:
        return []
    names = ["before", *(fit.name() for fit in FITS)]
    rows = [[name, *(f"{of[name][0]:.3f} / {of[name][1]:.3f}" for of in found.values())] for name in names]
    about = (
        f"Policies after {runs[0].steps:,} steps, seed {runs[0].seed}. Explained variance of the returns of the "
        "rollout that the critic was fitted to / of the next rollout by the same policy."
    )
    return [about, markdown_table(["critic fitted by", *found], rows)]


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.critic_fit", description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    runs = [Run(task, steps=arguments.steps) for task in arguments.tasks]
    store = Store(arguments.results)
    measure_missing(store, runs, measure, arguments.processes)
    print("\n\n".join(sections(store, runs)))


if __name__ == "__main__":
    main(sys.argv[1:])
