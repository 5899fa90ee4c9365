"""
NPG beside sb3-contrib's TRPO: the same trust region, the same critic, the same environments.

SB3's ``kl_divergence`` of a Box action has one value per action dimension, and TRPO takes the mean over
rows *and* dimensions. For d action dimensions ``TRPO(target_kl=δ/d, cg_damping=λ/d)`` therefore has the
trust region of ``NPG(target_kl=δ, damping=λ)``.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import mujoco  # type: ignore[import-untyped]
import numpy as np
import torch as th
from gymnasium import spaces
from rich.progress import track
from sb3_contrib import TRPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from benchmarks.report import (
    Store,
    command_line,
    in_fresh_process,
    markdown_table,
    preamble,
    write_document,
)
from sb3_npg import NPG

N_ENVS = 8
CG_STEPS = 15
EVALUATION_EPISODES = 20
#: Episodes are drawn from environments that training does not see.
EVALUATION_SEED = 10_000
#: What both algorithms are given, under the same names.
SHARED: dict[str, Any] = {
    "learning_rate": 1e-3,
    "n_steps": 256,
    "batch_size": 128,
    "n_critic_updates": 10,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "line_search_shrinking_factor": 0.8,
    "line_search_max_iter": 10,
    "policy_kwargs": {"net_arch": [64, 64]},
}
RANDOM = "random"
ALGORITHMS = ("TRPO", "NPG")
Figures = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """
    One run.

    :param algorithm: "TRPO", "NPG" or "random", actions drawn from the action space
    :param env_id: an environment with a Box action space
    :param seed: of the environments, the networks and the actions
    :param steps: environment steps to train for, over all environments; rounded up to whole rollouts
    :param target_kl: δ in nats, mean over states and sum over action dimensions
    :param damping: λ, added to the Fisher of that KL
    :param processes: runs that share the machine
    """

    algorithm: str
    env_id: str
    seed: int
    steps: int
    target_kl: float
    damping: float
    processes: int

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        fixed = {"n_envs": N_ENVS, "cg_steps": CG_STEPS, "episodes": EVALUATION_EPISODES, "threads": 1, **SHARED}
        return {**asdict(self), **fixed}


class Recorder(BaseCallback):
    """Measures each update from outside the algorithm, which is what makes two algorithms comparable."""

    def __init__(self) -> None:
        super().__init__()
        self.curve: list[tuple[int, float]] = []
        self.updates: list[dict[str, float]] = []
        self.collect_seconds = 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps > 0:
            self._conclude_update()
        self._start = time.perf_counter()

    def _on_rollout_end(self) -> None:
        self.collect_seconds += time.perf_counter() - self._start
        episodes = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        if episodes:
            self.curve.append((self.num_timesteps, fmean(episodes)))
        assert isinstance(self.model, OnPolicyAlgorithm)
        rows = self.model.rollout_buffer.observations.reshape(-1, *self.model.rollout_buffer.obs_shape)
        self._observations = th.as_tensor(rows)
        self._old = self._policy_of_rollout()
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def _on_training_end(self) -> None:
        self._conclude_update()

    def _conclude_update(self) -> None:
        """Note what train() took and did, as soon as it is over."""
        seconds, cpu_seconds = time.perf_counter() - self._start, time.process_time() - self._cpu_start
        kl = th.distributions.kl_divergence(self._old, self._policy_of_rollout()).sum(dim=1).mean()
        logged = self.logger.name_to_value
        self.updates.append(
            {
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "kl": float(kl),
                "accepted": float(logged["train/is_line_search_success"]),
                "explained_variance": float(logged["train/explained_variance"]),
            }
        )

    @th.no_grad()
    def _policy_of_rollout(self) -> th.distributions.Distribution:
        """Return the present policy on the rollout's observations."""
        assert isinstance(self.model.policy, ActorCriticPolicy)
        distribution = self.model.policy.get_distribution(self._observations).distribution
        assert isinstance(distribution, th.distributions.Distribution)
        return distribution


class RandomAgent(PolicyPredictor):
    """
    Draws actions from the action space.

    :param env: the environments to act in
    """

    def __init__(self, env: VecEnv):
        self.env = env

    def predict(
        self,
        observation: np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]],
        state: tuple[np.ndarray[Any, Any], ...] | None = None,
        episode_start: np.ndarray[Any, Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray[Any, Any], tuple[np.ndarray[Any, Any], ...] | None]:
        """Return one random action for each environment."""
        return np.stack([self.env.action_space.sample() for _ in range(self.env.num_envs)]), state


def make_model(run: Run, env: VecEnv) -> OnPolicyAlgorithm:
    """Build the run's agent: two parametrisations of one trust region."""
    if not isinstance(env.action_space, spaces.Box):
        raise ValueError(f"`{run.env_id}` has the action space {env.action_space}; the comparison is for Box spaces.")
    shared = {**SHARED, "seed": run.seed, "device": "cpu"}
    if run.algorithm == "NPG":
        solver = {"max_steps": CG_STEPS, "rtol": 0.0}
        return NPG(
            "MlpPolicy", env, target_kl=run.target_kl, damping=run.damping, fisher_solver_kwargs=solver, **shared
        )
    d = int(np.prod(env.action_space.shape))
    return TRPO(
        "MlpPolicy",
        env,
        target_kl=run.target_kl / d,
        cg_damping=run.damping / d,
        cg_max_steps=CG_STEPS,
        **shared,
    )


def returns_of(agent: PolicyPredictor, env: VecEnv) -> list[float]:
    """Return the undiscounted, unnormalised returns of deterministic episodes."""
    returns, _ = evaluate_policy(
        agent, env, n_eval_episodes=EVALUATION_EPISODES, deterministic=True, return_episode_rewards=True
    )
    assert isinstance(returns, list)
    return [float(value) for value in returns]


def evaluation_env(run: Run, env: VecNormalize) -> VecNormalize:
    """Return environments with the statistics of the training environments, frozen, and the reward as it is."""
    fresh = make_vec_env(run.env_id, n_envs=N_ENVS, seed=EVALUATION_SEED + run.seed)
    evaluation = VecNormalize(fresh, training=False, norm_reward=False)
    sync_envs_normalization(env, evaluation)
    return evaluation


def train(run: Run) -> Figures:
    """Train and evaluate one agent."""
    env = VecNormalize(make_vec_env(run.env_id, n_envs=N_ENVS, seed=run.seed), gamma=SHARED["gamma"])
    model = make_model(run, env)
    recorder = Recorder()
    start = time.perf_counter()
    model.learn(run.steps, callback=recorder)
    wall_seconds = time.perf_counter() - start
    return {
        "returns": returns_of(model, evaluation_env(run, env)),
        "curve": recorder.curve,
        "updates": recorder.updates,
        "wall_seconds": wall_seconds,
        "collect_seconds": recorder.collect_seconds,
        "steps": model.num_timesteps,
    }


def warn_of_mujoco(message: str) -> None:
    """Pass on MuJoCo's warnings, except that gymnasium's models use attributes that are deprecated."""
    if "deprecated" not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=1)


def measure(store: Store, run: Run) -> None:
    """Do one run and keep its figures."""
    th.set_num_threads(1)
    mujoco.set_mju_user_warning(warn_of_mujoco)
    if run.algorithm == RANDOM:
        env = make_vec_env(run.env_id, n_envs=N_ENVS, seed=EVALUATION_SEED + run.seed)
        figures: Figures = {"returns": returns_of(RandomAgent(env), env)}
    else:
        figures = train(run)
    store.save(run.settings(), figures)


def measure_missing(store: Store, runs: Sequence[Run], processes: int) -> None:
    """Do the runs that the store does not have, so many at once, each in a process of its own."""
    missing = [run for run in runs if store.load(run.settings()) is None]
    with ThreadPoolExecutor(processes) as threads:
        done = threads.map(lambda run: in_fresh_process(measure, store, run), missing)
        for _ in track(done, f"{len(missing)} of {len(runs)} runs to do", total=len(missing)):
            pass


def summary(figures: Figures) -> dict[str, float]:
    """
    Reduce a run to the figures of the table.

    :param figures: what :func:`train` returned
    :return: returns, seconds, mean KL in nats and the fraction of line searches that found a step
    """
    updates = figures["updates"]
    return {
        "final return": fmean(figures["returns"]),
        "training return": figures["curve"][-1][1] if figures["curve"] else float("nan"),
        "wall s": figures["wall_seconds"],
        "collect s": figures["collect_seconds"],
        "train() s": sum(update["seconds"] for update in updates),
        "train() CPU s": sum(update["cpu_seconds"] for update in updates),
        "mean KL": fmean(update["kl"] for update in updates),
        "largest KL": max(update["kl"] for update in updates),
        "accepted": fmean(update["accepted"] for update in updates),
        "explained variance": updates[-1]["explained_variance"],
    }


_FORMATS = {"mean KL": ".4f", "largest KL": ".4f", "accepted": ".2f", "explained variance": ".2f"}


def cells(figures: dict[str, float]) -> list[str]:
    """Write figures in the precision that they are worth."""
    return [format(value, _FORMATS.get(name, ".1f")) for name, value in figures.items()]


def mean_of(summaries: Sequence[dict[str, float]]) -> dict[str, float]:
    """Average runs over their seeds."""
    return {name: fmean(one[name] for one in summaries) for name in summaries[0]}


def environment_section(store: Store, env_id: str, runs: Sequence[Run]) -> str:
    """Return the tables of one environment."""
    loaded = {run: store.load(run.settings()) for run in runs if run.env_id == env_id}
    figures = {run: found for run, found in loaded.items() if found is not None}
    rows: list[list[str]] = []
    means = {}
    for algorithm in ALGORITHMS:
        summaries = {run.seed: summary(figures[run]) for run in figures if run.algorithm == algorithm}
        rows += [[algorithm, str(seed), *cells(one)] for seed, one in summaries.items()]
        means[algorithm] = mean_of(list(summaries.values()))
        rows.append([f"**{algorithm}**", "mean", *cells(means[algorithm])])
    random_return = fmean(fmean(figures[run]["returns"]) for run in figures if run.algorithm == RANDOM)
    timed = [name for name in means["NPG"] if name.endswith(" s")]
    ratios = [f"{means['NPG'][name] / means['TRPO'][name]:.2f}" for name in timed]
    steps = max(found.get("steps", 0) for found in figures.values())
    return "\n\n".join(
        [
            f"## {env_id}, {steps:,} steps",
            markdown_table(["algorithm", "seed", *means["NPG"]], rows),
            f"A random policy returns {random_return:.1f}. Seconds of NPG over seconds of TRPO:",
            markdown_table(["", *timed], [["NPG / TRPO", *ratios]]),
        ]
    )


def explanation(run: Run) -> str:
    """Say what was compared and what the columns are."""
    shared = ", ".join(f"{name}={value}" for name, value in SHARED.items())
    return f"""\
Both agents: {N_ENVS} environments, VecNormalize, MlpPolicy, {CG_STEPS} conjugate gradient steps,
{shared}.
One process per run with 1 thread, {run.processes} at once, TRPO and NPG in turn.

SB3's `kl_divergence` of a Box action has one value per action dimension, and TRPO takes the mean over rows *and*
dimensions. For d action dimensions the same trust region is NPG(target_kl={run.target_kl:g}, damping={run.damping:g})
and TRPO(target_kl={run.target_kl:g}/d, cg_damping={run.damping:g}/d).

- final return: mean of {EVALUATION_EPISODES} deterministic episodes of the final policy, statistics of VecNormalize
  frozen, reward not normalised
- training return: mean of the last 100 training episodes
- train(), collect: seconds inside `train()` and `collect_rollouts()`; CPU seconds do not count other load
- KL: KL(π_old ‖ π_new) in nats, mean over the rollout's states and sum over action dimensions, measured in the same
  way for both before and after `train()`; 0 for an update that is not accepted
- accepted: fraction of updates whose line search found a step
- explained variance: of the last rollout's returns by the critic, before its update"""


def plot_curves(path: Path, store: Store, env_ids: Sequence[str], runs: Sequence[Run]) -> bool:
    """
    Draw the training returns over the steps, one line per run.

    :return: whether there is a picture; False without matplotlib
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(5.0 * len(env_ids), 4.0), layout="constrained")
    axes = figure.subplots(1, len(env_ids), squeeze=False)[0]
    for ax, env_id in zip(axes, env_ids, strict=True):
        labelled: set[str] = set()
        for run in runs:
            figures = store.load(run.settings())
            if run.env_id != env_id or run.algorithm == RANDOM or figures is None or not figures["curve"]:
                continue
            steps, returns = zip(*figures["curve"], strict=True)
            label = None if run.algorithm in labelled else run.algorithm
            ax.plot(steps, returns, color=f"C{ALGORITHMS.index(run.algorithm)}", label=label)
            labelled.add(run.algorithm)
        ax.set(title=env_id, xlabel="environment steps", ylabel="mean return of the last 100 episodes")
        if labelled:
            ax.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trpo_comparison", description=__doc__)
    parser.add_argument("--steps", type=int, default=300_000, help="environment steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5", "Hopper-v5"])
    parser.add_argument("--target-kl", type=float, default=0.02, help="δ in nats, summed over action dimensions")
    parser.add_argument("--damping", type=float, default=0.1, help="λ, added to the Fisher of that KL")
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument("--out", type=Path, default=Path("docs/trpo_comparison.md"))
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("benchmarks/results/trpo_comparison"),
        help="finished runs, which are not repeated; delete them after a change of the source",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document from what is stored."""
    arguments = parse(argv)
    common = (arguments.steps, arguments.target_kl, arguments.damping, arguments.processes)
    # The algorithms alternate, so that both see the same load on the machine.
    runs = [Run(name, *point, *common) for point in product(arguments.envs, arguments.seeds) for name in ALGORITHMS]
    runs += [Run(RANDOM, env_id, arguments.seeds[0], *common) for env_id in arguments.envs]
    store = Store(arguments.results)
    measure_missing(store, runs, arguments.processes)
    picture = arguments.out.with_suffix(".png")
    sections = [
        preamble("NPG beside sb3-contrib's TRPO", command_line("benchmarks.trpo_comparison", argv)),
        explanation(runs[0]),
        *(environment_section(store, env_id, runs) for env_id in arguments.envs),
    ]
    if plot_curves(picture, store, arguments.envs, runs):
        sections.append(f"![Training returns over environment steps]({picture.name})")
    write_document(arguments.out, sections)


if __name__ == "__main__":
    main(sys.argv[1:])
