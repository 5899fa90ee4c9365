"""
The study behind the one set of hyperparameters for MuJoCo: candidates compared on the same tasks and seeds.

``python -m benchmarks.tuning`` does the runs that are missing and writes ``docs/tuning.md``. If interrupted, it
resumes. ``--candidates``, ``--finalists``, ``--tasks`` and ``--seeds`` restrict the runs. Finalists are trained as
``python -m benchmarks.returns`` does.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.environments import EVALUATION_EPISODES, N_ENVS
from benchmarks.report import Store, command_line, measure_missing, write_document
from benchmarks.training import train
from benchmarks.tuning_report import CONCLUSIONS, SEEDS, TASKS, final_sections, sections
from benchmarks.zoo_runs import ZooRun
from benchmarks.zoo_runs import measure as measure_final

RESULTS = Path("benchmarks/results/tuning")
DOCUMENT = Path("docs/tuning.md")
#: Steps of the short runs of many candidates, and of the long runs of the finalists.
STEPS, FINAL_STEPS = 500_000, 1_000_000

#: What a candidate does not say. Rollouts of 1,024 rows; log σ is the policy's ``log_std_init``.
BASE: dict[str, Any] = {
    "n_steps": 128,
    "target_kl": 0.02,
    "damping": 0.1,
    "fisher_solver_kwargs": {"max_steps": 15},
    "critic_solver": "gauss_newton",
    "gae_lambda": 0.95,
    "policy_kwargs": {"log_std_init": 0.0},
}


def log_std(value: float) -> dict[str, Any]:
    """Return the argument that makes log σ begin there."""
    return {"policy_kwargs": {"log_std_init": value}}


_ADAM: dict[str, Any] = {"critic_solver": "adam", "n_critic_updates": 10, "batch_size": 128}
_ADAM_20: dict[str, Any] = {"critic_solver": "adam", "n_critic_updates": 20, "batch_size": 64}
_ADAM_20_128: dict[str, Any] = {**_ADAM, "n_critic_updates": 20}
_ROWS_2048: dict[str, Any] = {"n_steps": 256}
_HARD_FIT: dict[str, Any] = {
    "n_critic_updates": 4,
    "critic_solver_kwargs": {"damping": 0.1, "fisher_solver_kwargs": {"max_steps": 20}},
}
_PRECONDITIONED: dict[str, Any] = {"fisher_solver_kwargs": {"max_steps": 5, "preconditioner": "kfac"}}
#: Arguments of NPG by the name that the tables show.
CANDIDATES: dict[str, dict[str, Any]] = {
    "log σ 0": {},
    "log σ 0, δ 0.05": {"target_kl": 0.05},
    "log σ 0, Adam": _ADAM,
    "log σ −1": log_std(-1.0),
    "log σ −1, Adam": {**_ADAM, **log_std(-1.0)},
    "log σ −1, δ 0.05": {**log_std(-1.0), "target_kl": 0.05},
    "log σ −1, δ 0.05, Adam": {**_ADAM, **log_std(-1.0), "target_kl": 0.05},
    "log σ −2, δ 0.05": {**log_std(-2.0), "target_kl": 0.05},
    "log σ −1.5": log_std(-1.5),
    "log σ −1, δ 0.01": {**log_std(-1.0), "target_kl": 0.01},
    "log σ −1, δ 0.01, Adam": {**_ADAM, **log_std(-1.0), "target_kl": 0.01},
    "log σ −1, δ 0.01, Adam 20 × 64": {**_ADAM_20, **log_std(-1.0), "target_kl": 0.01},
    "log σ −1, δ 0.01, hard fit": {**_HARD_FIT, **log_std(-1.0), "target_kl": 0.01},
    "log σ −1, δ 0.01, λ of GAE 0.98": {**log_std(-1.0), "target_kl": 0.01, "gae_lambda": 0.98},
    "log σ −1, δ 0.02, rollouts of 2,048": {**log_std(-1.0), **_ROWS_2048},
    "log σ −1, δ 0.1, rollouts of 2,048": {**log_std(-1.0), "target_kl": 0.1, **_ROWS_2048},
    "log σ −1.5, δ 0.01": {**log_std(-1.5), "target_kl": 0.01},
    "log σ −1, δ 0.04, rollouts of 2,048": {**log_std(-1.0), "target_kl": 0.04, **_ROWS_2048},
    "log σ −0.5, δ 0.02, rollouts of 2,048": {**_ROWS_2048, **log_std(-0.5)},
    "log σ −0.5, δ 0.02, rollouts of 2,048, hard fit": {**_ROWS_2048, **_HARD_FIT, **log_std(-0.5)},
    "log σ −0.5, δ 0.02, rollouts of 2,048, Adam 20 × 128": {**_ROWS_2048, **_ADAM_20_128, **log_std(-0.5)},
    "log σ −0.5, δ 0.02, rollouts of 2,048, Adam": {**_ROWS_2048, **_ADAM, **log_std(-0.5)},
    "log σ −0.75, δ 0.02, rollouts of 2,048, Adam 20 × 128": {**_ROWS_2048, **_ADAM_20_128, **log_std(-0.75)},
    "log σ −0.75, δ 0.02, rollouts of 2,048, Adam": {**_ROWS_2048, **_ADAM, **log_std(-0.75)},
    "log σ −1, δ 0.02, rollouts of 2,048, Adam": {**_ROWS_2048, **_ADAM, **log_std(-1.0)},
    "log σ −1, CG 5 + K-FAC": {**log_std(-1.0), **_PRECONDITIONED},
}


def _clipped(at: float) -> dict[str, Any]:
    """Return the setting that clips normalised observations."""
    return {"normalize": {"clip_obs": at}}


#: Action dimensions d of the tasks.
DIMENSIONS = {"HalfCheetah-v5": 6, "Ant-v5": 8, "Walker2d-v5": 6, "Hopper-v5": 3, "Swimmer-v5": 2, "Humanoid-v5": 17}
#: λ of GAE 0.95, said where NPG's own is another. Like the value of any argument, a function of d; None leaves it out.
_USUAL_LAMBDA: dict[str, Any] = {"gae_lambda": lambda d: None if 3 < d <= 6 else 0.95}
_SET: dict[str, Any] = {"n_steps": 128, "target_kl": 0.01, "damping": 0.1, **_USUAL_LAMBDA}
_CLIPPED: dict[str, Any] = {**_SET, **_clipped(3.0)}
#: The zoo's: with NPG's own noise, damping and λ of GAE.
_ZOO: dict[str, Any] = {
    "n_steps": 128,
    "target_kl": 0.01,
    **_clipped(3.0),
    "callback": "sb3_npg.callbacks.StaggerEpisodes",
}
_DAMPED: dict[str, Any] = {**_ZOO, **_USUAL_LAMBDA}
#: With NPG's own noise. What differs from it says its noise, so that NPG's may change.
_STAGGERED: dict[str, Any] = {**_DAMPED, "damping": 0.1}
_TWO_OVER_D: dict[str, Any] = {"log σ": lambda d: min(0.0, math.log(2.0 / d))}
_SAME: dict[str, Any] = {**_STAGGERED, **_TWO_OVER_D}
_NORM_ONE: dict[str, Any] = {**_SET, "log σ": lambda d: -0.5 * math.log(d)}
_16_ENVIRONMENTS: dict[str, Any] = {"n_envs": 16, "n_steps": 64}
#: Those of the long runs, in the zoo's grammar, in full, so that a change of ``zoo_configs/npg.yml`` affects none.
FINALISTS: dict[str, dict[str, Any]] = {
    "log σ −1, δ 0.01": {**_SET, **log_std(-1.0)},
    "log σ −0.75, δ 0.02, rollouts of 2,048, Adam": {
        **_ROWS_2048,
        **_ADAM,
        "damping": 0.1,
        **_USUAL_LAMBDA,
        **log_std(-0.75),
    },
    "log σ log (2/d), δ 0.01, observations to ±3, staggered": _STAGGERED,
    "the same, in step": {**_CLIPPED, **_TWO_OVER_D},
    "the same, δ 0.02, rollouts of 2,048": {**_SAME, **_ROWS_2048, "target_kl": 0.02},
    "the same, λ of GAE 0.9": {**_SAME, "gae_lambda": 0.9},
    "the same, λ of F 0.1 d": _DAMPED,
    "the same, λ of F 0.1 d, λ of GAE by d": _ZOO,
    "the same, λ of F 0.1 d, λ of GAE by d, δ 0.03": {**_ZOO, "target_kl": 0.03},
    "the same, λ of F 0.1 d, λ of GAE by d, δ 0.06": {**_ZOO, "target_kl": 0.06},
    "the same, λ of F 0.1 d, γ 0.9925": {**_DAMPED, "gamma": 0.9925},
    "the same, λ of F 0.1 d, γ 0.9925, λ of GAE 1 − d/120": {
        **_DAMPED,
        "gamma": 0.9925,
        "gae_lambda": lambda d: round(1.0 - d / 120, 4),
    },
    "the same, λ of F 0.1 d, γ 0.9925, λ of GAE 1 − d/80": {
        **_DAMPED,
        "gamma": 0.9925,
        "gae_lambda": lambda d: round(1.0 - d / 80, 4),
    },
    "the same, λ of F 0.1 d, γ 0.9925, λ of GAE 0.9": {**_DAMPED, "gamma": 0.9925, "gae_lambda": 0.9},
    "the same, λ of F 0.1 d, γ 0.9925, entropy 0.003": {**_DAMPED, "gamma": 0.9925, "ent_coef": 0.003},
    "the same, λ of F 0.1 d, γ 0.9925, entropy 0.005": {**_DAMPED, "gamma": 0.9925, "ent_coef": 0.005},
    "the same, λ of F 0.1 d, γ 0.9925, entropy 0.01": {**_DAMPED, "gamma": 0.9925, "ent_coef": 0.01},
    "the same, λ of F 0.1 d, γ 0.9925, 16 environments": {**_DAMPED, **_16_ENVIRONMENTS, "gamma": 0.9925},
    "the same, λ of F 0.1 d, γ 0.995": {**_DAMPED, "gamma": 0.995},
    "the same, λ of F 0.1 d, γ 0.995, λ of GAE 0.9": {**_DAMPED, "gamma": 0.995, "gae_lambda": 0.9},
    "the same, λ of F 0.1 d, 16 environments": {**_DAMPED, **_16_ENVIRONMENTS},
    "the same, λ of F 1": {**_SAME, "damping": 1.0},
    "the same, λ of F 1, λ of GAE 0.9": {**_SAME, "damping": 1.0, "gae_lambda": 0.9},
    "the same, δ falling from 0.015": {**_SAME, "target_kl": "lin_0.015"},
    "the same, λ of GAE 0.93, δ falling from 0.02": {**_SAME, "gae_lambda": 0.93, "target_kl": "lin_0.02"},
    "log σ −½ log (d + 2), δ 0.01, observations to ±3": {**_CLIPPED, "log σ": lambda d: -0.5 * math.log(d + 2)},
    "log σ −½ log d, δ 0.01": _NORM_ONE,
    "log σ −½ log d, δ 0.01, observations to ±3": {**_NORM_ONE, **_clipped(3.0)},
    "log σ −½ log d, δ 0.01, observations to ±2": {**_NORM_ONE, **_clipped(2.0)},
    "log σ −½ log d, δ 0.005": {**_NORM_ONE, "target_kl": 0.005},
    "log σ −½ log d, δ 0.01, λ of GAE 0.9": {**_NORM_ONE, "gae_lambda": 0.9},
    "log σ −½ log d, δ 0.01, λ of GAE 0.92": {**_NORM_ONE, "gae_lambda": 0.92},
    "log σ −½ log d, δ 0.01, one step of the critic": {**_NORM_ONE, "n_critic_updates": 1},
    "log σ −0.75, δ 0.01": {**_SET, **log_std(-0.75)},
    "log σ −0.75, δ 0.01, λ of GAE 0.9": {**_SET, **log_std(-0.75), "gae_lambda": 0.9},
    "log σ −0.75, δ 0.01, λ of GAE 0.92": {**_SET, **log_std(-0.75), "gae_lambda": 0.92},
}


def _gamma(env_id: str) -> dict[str, float]:
    """Return Swimmer's discount, the one exception."""
    return {"gamma": 0.9999} if env_id.startswith("Swimmer") else {}


@dataclass(frozen=True)
class Run:
    """
    One short training run.

    :param env_id: the task
    :param seed: of environments, networks and actions
    :param candidate: key of ``CANDIDATES``
    """

    env_id: str
    seed: int
    candidate: str

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of NPG."""
        return {**BASE, "gamma": 0.99, **_gamma(self.env_id), **CANDIDATES[self.candidate]}

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        arguments = {"n_envs": N_ENVS, "episodes": EVALUATION_EPISODES, "arguments": self.arguments()}
        return {"env_id": self.env_id, "seed": self.seed, "steps": STEPS, **arguments}


@dataclass(frozen=True)
class FinalRun(ZooRun):
    """
    One run of a finalist, a million steps long.

    :param candidate: key of ``FINALISTS``
    """

    candidate: str

    def block(self) -> dict[str, Any]:
        """Return the hyperparameters, in the zoo's grammar."""
        common = {"normalize": True, "n_envs": N_ENVS, "n_timesteps": FINAL_STEPS, "policy": "MlpPolicy"}
        d = DIMENSIONS[self.env_id]
        settings = {name: value(d) if callable(value) else value for name, value in FINALISTS[self.candidate].items()}
        settings = {name: value for name, value in settings.items() if value is not None}
        noise = log_std(settings.pop("log σ")) if "log σ" in settings else {}
        return {**common, **settings, **_gamma(self.env_id), **noise}


def measure(store: Store, run: Run) -> None:
    """Train, evaluate, and keep the figures."""
    training = train(run.env_id, run.seed, STEPS, **run.arguments())
    curve = training.curve()
    figures = {
        "return": training.final,
        "training_return": training.training_return(),
        "explained_variance": training.explained_variance(),
        "cpu_seconds": training.cpu_seconds,
        "curve": [(steps, round(value, 1)) for steps, value in curve[:: max(1, len(curve) // 50)]],
    }
    store.save(run.settings(), figures)


def all_runs(
    seeds: Sequence[int] = SEEDS, tasks: Sequence[str] = TASKS, candidates: Sequence[str] = tuple(CANDIDATES)
) -> list[Run]:
    """Return the short runs, those of the first seed first."""
    return [Run(task, seed, candidate) for seed, task, candidate in product(seeds, tasks, candidates)]


def final_runs(
    seeds: Sequence[int] = SEEDS, tasks: Sequence[str] = TASKS, finalists: Sequence[str] = tuple(FINALISTS)
) -> list[FinalRun]:
    """Return the long runs, those of the first seed first."""
    return [FinalRun("npg", task, seed, finalist) for seed, task, finalist in product(seeds, tasks, finalists)]


def write(store: Store) -> None:
    """Write the document from what is stored."""
    about = (
        f"Mean ± standard deviation over seeds {list(SEEDS)}, with the number of seeds in brackets if fewer; {N_ENVS} "
        "environments, VecNormalize, MLP of 64 × 64, one thread, γ = 0.99, for Swimmer 0.9999. At "
        f"{STEPS:,} steps a candidate lists only what differs from {BASE}. Candidates that fell behind on the first "
        "seeds were not run on all. Seconds are not scaled to one pace of the machine: only those of the same hour "
        "compare."
    )
    head = [
        "# One set of hyperparameters for MuJoCo",
        f"Written by `{command_line('benchmarks.tuning', [])}`.",
        "\n".join(sorted(store.environments())),
    ]
    candidates = list(CANDIDATES)
    short = sorted(all_runs(), key=lambda run: candidates.index(run.candidate))
    tables = [
        f"## {FINAL_STEPS:,} steps",
        *final_sections(store, final_runs()),
        f"## {STEPS:,} steps",
        *sections(store, short),
    ]
    write_document(DOCUMENT, [*head, CONCLUSIONS, about, *tables])


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=__doc__)
    parser.add_argument("--candidates", nargs="*", default=list(CANDIDATES), choices=list(CANDIDATES))
    parser.add_argument("--finalists", nargs="*", default=list(FINALISTS), choices=list(FINALISTS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument("--report", action="store_true", help="only write what is stored")
    arguments = parser.parse_args(argv)
    store = Store(RESULTS, any_machine=True)
    if not arguments.report:
        seeds, tasks, processes = arguments.seeds, arguments.tasks, arguments.processes
        measure_missing(store, all_runs(seeds, tasks, arguments.candidates), measure, processes)
        measure_missing(store, final_runs(seeds, tasks, arguments.finalists), measure_final, processes)
    write(store)


if __name__ == "__main__":
    main(sys.argv[1:])
