"""
What a direction is worth on rollouts that it was not computed from, by its damping and by the λ of its advantages.

On policies of several ages, each of several rollouts gives a natural gradient x. Its worth is ĝᵀx / √(xᵀFx), the
first-order gain at a given KL, with the gradient ĝ of many further rollouts of the same policy. The gain on the rollout
that x comes from would rise as the damping falls, because x then follows that rollout's noise.

``python -m benchmarks.held_out`` measures what is missing and writes ``docs/held_out.md``. If interrupted, it resumes.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.environments import N_ENVS, prepare_process
from benchmarks.report import Store, command_line, markdown_table, measure_missing, preamble, write_document
from benchmarks.training import collect_rollout
from sb3_npg import NPG
from sb3_npg.callbacks import StaggerEpisodes
from sb3_npg.local_problem import LocalProblem
from sb3_npg.rollout import normalized
from sb3_npg.solvers import make_fisher_solver
from sb3_npg.solvers.direction import find_direction

RESULTS = Path("benchmarks/results/held_out")
TASKS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")
AGES = (50_000, 200_000, 500_000)
#: What the policies are trained with: rollouts of 1,024 rows.
TRAINING: dict[str, Any] = {"n_steps": 128, "damping": 0.1}
CLIP_OBS = 3.0
#: Rollouts that give a direction each, and those that give ĝ.
DIRECTIONS, HELD_OUT = 16, 64
GAE_LAMBDAS = (0.8, 0.9, 0.95, 0.98)
DAMPINGS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
USUAL_GAE_LAMBDA, USUAL_DAMPING = 0.95, 0.1
#: λ of the advantages behind ĝ: those of the usual estimator, and those without bias.
JUDGES = (0.95, 1.0)
#: What the tables say, in the words of those who read them.
CONCLUSIONS = """\
## What this says

- **Damping.** On young policies directions with a damping of 0.3 to 3 are worth more than with 0.1 on every task,
  whichever ĝ judges, and on three of four by more than the errors. Judged by λ = 0.95, a damping of 1 is worth two
  fifths more on Walker2d, a quarter more on Hopper and a fifth more on HalfCheetah. 0.01 is worth less than 0.1. On
  older policies no difference is more than about twice its error. On the rollout that a direction comes from, less
  damping is always worth more, by construction. Hence NPG's default λ = 0.1 d, with d the action's dimension.
- **λ of GAE.** Judged by λ = 0.95, 0.9 and 0.8 are worth more than 0.95 nearly everywhere, because they are less noisy.
  Judged by λ = 1, which is without bias, this gain remains on HalfCheetah and on two of three policies of Ant. On
  Hopper and Walker2d there is no clear gain, or a loss: less noise is paid for in bias.
- **Old policies are hard to judge.** On Ant after 200,000 steps 64 rollouts are too few for ĝ: most of the gradient of
  a rollout of 1,024 rows is noise there.
"""


@dataclass(frozen=True)
class Run:
    """
    One policy, looked at while it trains.

    :param env_id: the task
    :param seed: of its training
    :param ages: environment steps, ascending
    :param directions: rollouts that give a direction each
    :param held_out: rollouts that give ĝ
    """

    env_id: str
    seed: int = 0
    ages: tuple[int, ...] = AGES
    directions: int = DIRECTIONS
    held_out: int = HELD_OUT

    def settings(self) -> dict[str, Any]:
        """Return all that the figures depend on."""
        variations = {"dampings": DAMPINGS, "gae_lambdas": GAE_LAMBDAS, "judges": JUDGES}
        return {**asdict(self), **TRAINING, "clip_obs": CLIP_OBS, "n_envs": N_ENVS, **variations}


class Rollout(NamedTuple):
    """
    What one rollout has seen, shape (steps, environments) each, and the values after its end.

    :param observations: shape (steps, environments, features)
    :param actions: shape (steps, environments, actions)
    :param rewards: with the value of the last state added where a time limit ended the episode
    :param values: V of the states
    :param starts: 1 where an episode begins
    :param last_values: V of the states that follow, shape (environments,)
    :param last_starts: 1 where those begin an episode, shape (environments,)
    """

    observations: np.ndarray[Any, Any]
    actions: np.ndarray[Any, Any]
    rewards: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]
    starts: np.ndarray[Any, Any]
    last_values: np.ndarray[Any, Any]
    last_starts: np.ndarray[Any, Any]


def collect(model: NPG, n_rollouts: int) -> list[Rollout]:
    """Collect rollouts that follow one another, without training on them."""
    buffer, rollouts = model.rollout_buffer, []
    for _ in range(n_rollouts):
        collect_rollout(model)
        seen = (buffer.observations, buffer.actions, buffer.rewards, buffer.values, buffer.episode_starts)
        starts = np.asarray(model._last_episode_starts, dtype=np.float32)
        last_values = model.policy.predict_values(th.as_tensor(model._last_obs)).detach().flatten().numpy()
        rollouts.append(Rollout._make([*(array.copy() for array in seen), last_values, starts]))
    return rollouts


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """Return rollouts that follow one another as a single one."""
    arrays = (np.concatenate(arrays) for arrays in zip(*(rollout[:5] for rollout in rollouts), strict=True))
    return Rollout._make([*arrays, *rollouts[-1][5:]])


def advantages(model: NPG, rollout: Rollout, gae_lambda: float) -> np.ndarray[Any, Any]:
    """Return the generalised advantage estimates, shape (steps, environments)."""
    n_steps, n_envs = rollout.rewards.shape
    buffer = RolloutBuffer(n_steps, model.observation_space, model.action_space, "cpu", gae_lambda, model.gamma, n_envs)
    buffer.rewards, buffer.values, buffer.episode_starts = rollout.rewards, rollout.values, rollout.starts
    buffer.compute_returns_and_advantage(th.as_tensor(rollout.last_values), rollout.last_starts)
    return buffer.advantages


def problem(model: NPG, rollout: Rollout, gae_lambda: float) -> LocalProblem:
    """Freeze the update that a rollout gives, its advantages normalised as NPG does."""
    estimates = th.as_tensor(advantages(model, rollout, gae_lambda)).flatten().float()
    observations, actions = (
        th.as_tensor(array).flatten(end_dim=1).float() for array in (rollout.observations, rollout.actions)
    )
    return LocalProblem(model.policy, observations, actions, normalized(estimates))


def variations() -> list[tuple[float, float]]:
    """Return the pairs of damping and λ of GAE: each varied with the other at its usual value."""
    pairs = [(damping, USUAL_GAE_LAMBDA) for damping in DAMPINGS]
    pairs += [(damping, gae_lambda) for damping in (USUAL_DAMPING, 1.0) for gae_lambda in GAE_LAMBDAS]
    return list(dict.fromkeys(pairs))


def name(damping: float, gae_lambda: float) -> str:
    """Return the key of a variation."""
    return f"{damping:g}, {gae_lambda:g}"


def worths(model: NPG, run: Run) -> dict[str, dict[str, list[float]]]:
    """
    Return the worth of each rollout's direction.

    :param model: the agent, whose environments are frozen
    :param run: how many rollouts to take
    :return: by the judge's λ, then by variation: a figure for each rollout
    """
    rollouts = collect(model, run.directions + run.held_out)
    model.policy.set_training_mode(False)
    held_out = joined(rollouts[run.directions :])
    judges = {f"{judge:g}": problem(model, held_out, judge).surrogate_gradient() for judge in JUDGES}
    found: dict[str, dict[str, list[float]]] = {judge: {name(*pair): [] for pair in variations()} for judge in judges}
    solver = make_fisher_solver("cg")
    for rollout, gae_lambda in product(rollouts[: run.directions], GAE_LAMBDAS):
        update = problem(model, rollout, gae_lambda)
        gradient = update.surrogate_gradient()
        for damping in (one for one, other in variations() if other == gae_lambda):
            direction = find_direction(solver, update, gradient, damping)
            for judge, truth in judges.items():
                gain = float((truth @ direction.natural_gradient).detach())
                found[judge][name(damping, gae_lambda)].append(gain / direction.curvature**0.5)
    return found


def measure(store: Store, run: Run) -> None:
    """Train, stop at each age, and keep what directions are worth there."""
    prepare_process()
    env = VecNormalize(make_vec_env(run.env_id, n_envs=N_ENVS, seed=run.seed), clip_obs=CLIP_OBS)
    model = NPG("MlpPolicy", env, seed=run.seed, device="cpu", **TRAINING)
    figures = {}
    for age in run.ages:
        model.learn(age - model.num_timesteps, reset_num_timesteps=False, callback=StaggerEpisodes())
        steps = model.num_timesteps
        env.training = False
        figures[str(age)] = worths(model, run)
        env.training = True
        model.num_timesteps = steps
    store.save(run.settings(), figures)


def _thousandths(values: Sequence[float], sign: str = "") -> str:
    """Return mean ± standard error over rollouts."""
    return f"{1e3 * fmean(values):{sign}.2f} ± {1e3 * stdev(values) / len(values) ** 0.5:.2f}"


def table(found: dict[str, dict[str, Any]], judge: str, pairs: Sequence[tuple[float, float]]) -> str:
    """
    Return what variations are worth more or less than the usual one.

    :param found: figures by task
    :param judge: λ behind ĝ
    :param pairs: damping and λ of GAE of each column
    """
    rows = []
    for task, ages in found.items():
        for age, figures in ages.items():
            usual = figures[judge][name(USUAL_DAMPING, USUAL_GAE_LAMBDA)]
            others = [figures[judge][name(*pair)] for pair in pairs]
            gains = [[value - base for value, base in zip(values, usual, strict=True)] for values in others]
            rows.append([task, f"{int(age):,}", _thousandths(usual), *(_thousandths(gain, "+") for gain in gains)])
    titles = [f"λ of F {damping:g}, of GAE {gae_lambda:g}" for damping, gae_lambda in pairs]
    return markdown_table(["task", "steps", "usual", *titles], rows)


def document(found: dict[str, dict[str, Any]], run: Run) -> list[str]:
    """Return the sections of the document."""
    about = (
        f"Policies trained by NPG with {TRAINING}, {N_ENVS} environments, observations clipped at {CLIP_OBS:g} "
        f"standard deviations, seed {run.seed}. Each of {run.directions} rollouts of "
        f"{N_ENVS * TRAINING['n_steps']:,} rows gives a direction x, by 15 steps of conjugate gradient; "
        f"{run.held_out} further rollouts give the gradient ĝ. x is worth ĝᵀx / √(xᵀFx), the first-order gain at a "
        f"given KL. *usual*: its worth with damping {USUAL_DAMPING:g} and λ of GAE {USUAL_GAE_LAMBDA:g}; the other "
        "columns: the difference from that. All in thousandths; ± is the standard error over rollouts, for the one ĝ "
        "that judges all."
    )
    by_damping = [(damping, USUAL_GAE_LAMBDA) for damping in DAMPINGS if damping != USUAL_DAMPING]
    by_lambda = [(USUAL_DAMPING, one) for one in GAE_LAMBDAS if one != USUAL_GAE_LAMBDA] + [(1.0, 0.9)]
    sections = [CONCLUSIONS, about]
    for judge in JUDGES:
        key = f"{judge:g}"
        sections += [
            f"## Judged by ĝ of λ = {key}",
            "### By damping",
            table(found, key, by_damping),
            "### By λ of GAE",
            table(found, key, by_lambda),
        ]
    return sections


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.held_out", description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--ages", type=int, nargs="+", default=list(AGES))
    parser.add_argument("--directions", type=int, default=DIRECTIONS)
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path("docs/held_out.md"))
    arguments = parser.parse_args(argv)
    ages = tuple(arguments.ages)
    runs = [Run(task, 0, ages, arguments.directions, arguments.held_out) for task in arguments.tasks]
    store = Store(arguments.results)
    measure_missing(store, runs, measure, arguments.processes)
    found = {run.env_id: figures for run in runs if (figures := store.load(run.settings())) is not None}
    head = preamble("What a direction is worth on unseen rollouts", command_line("benchmarks.held_out", argv))
    write_document(arguments.out, [head, *document(found, runs[0])])


if __name__ == "__main__":
    main(sys.argv[1:])
