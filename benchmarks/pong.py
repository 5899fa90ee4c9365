"""
Pong from small images: which solver, which damping, and a shared or a separate features extractor for the critic.

Compares the settings of ``zoo_configs`` for Atari, on frames of 48 × 48 pixels, small enough for a CPU, with others and
with PPO. Besides the returns it measures whether the policy's actions depend on the image at all, and how many of its
extractor's units are still active.

``python -m benchmarks.pong`` measures what is missing and writes ``docs/pong.md``. If interrupted, it resumes. It needs
ale-py and opencv-python.
"""

import importlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import VecFrameStack
from torch import nn

from benchmarks.report import (
    Store,
    candidates_parser,
    command_line,
    markdown_table,
    measure_missing,
    preamble,
    write_document,
)
from sb3_npg import NPG

TASK, SCREEN, N_ENVS = "PongNoFrameskip-v4", 48, 16
#: Environment steps between two looks at a run.
EVERY = 100_000
#: Rows of a rollout that the policy is looked at on.
ROWS = 512
#: The settings of zoo_configs for Atari.
ZOO: dict[str, Any] = {
    "n_steps": 64,
    "batch_size": 256,
    "fisher_solver": "kfac",
    "damping": 0.001,
    "sub_sampling_factor": 4,
    "critic_solver": "adam",
    "n_critic_updates": 2,
    "learning_rate": 5e-4,
    "ent_coef": 0.01,
    "policy_kwargs": {"share_features_extractor": False},
}
#: Those of rl_zoo3 for PPO.
PPO_ZOO: dict[str, Any] = {
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 4,
    "learning_rate": 2.5e-4,
    "clip_range": 0.1,
    "vf_coef": 0.5,
    "ent_coef": 0.01,
}
CG: dict[str, Any] = {"fisher_solver": "cg", "fisher_solver_kwargs": {"max_steps": 10}, "damping": 0.01}
ONE_COLUMN: dict[str, Any] = {"fisher_solver_kwargs": {"columns": "propagated"}}
CHOLESKY: dict[str, Any] = {"fisher_solver_kwargs": {"largest_eigen": 0}}


@dataclass(frozen=True)
class Candidate:
    """
    An algorithm with its settings.

    :param name: in the tables
    :param algorithm: "NPG" or "PPO"
    :param n_steps: environment steps that it is trained for
    :param settings: of its constructor
    :param n_seeds: how often
    """

    name: str
    algorithm: str = "NPG"
    n_steps: int = 1_000_000
    settings: dict[str, Any] = field(default_factory=dict)
    n_seeds: int = 1


CANDIDATES = (
    Candidate("as in zoo_configs", n_steps=600_000, settings=ZOO, n_seeds=3),
    Candidate("one random column", n_steps=600_000, settings=ZOO | ONE_COLUMN, n_seeds=2),
    Candidate("Cholesky", n_steps=600_000, settings=ZOO | CHOLESKY, n_seeds=2),
    Candidate("Cholesky, λ = 1e-5", n_steps=300_000, settings=ZOO | CHOLESKY | {"damping": 1e-5}),
    Candidate("Cholesky, λ = 1e-6", n_steps=300_000, settings=ZOO | CHOLESKY | {"damping": 1e-6}),
    Candidate("δ falling from 0.02 to 0", n_steps=800_000, settings=ZOO | {"target_kl": "lin_0.02"}, n_seeds=2),
    Candidate("PPO as in rl_zoo3", "PPO", settings=PPO_ZOO, n_seeds=3),
    Candidate("λ = 0.1", n_steps=200_000, settings=ZOO | {"damping": 0.1}),
    Candidate("λ = 0.1, one extractor", n_steps=200_000, settings=ZOO | {"damping": 0.1, "policy_kwargs": None}),
    Candidate("conjugate gradient", n_steps=600_000, settings=ZOO | CG, n_seeds=3),
    Candidate("conjugate gradient, λ = 0.1", n_steps=200_000, settings=ZOO | CG | {"damping": 0.1}),
)
#: What the tables say, in the words of those who read them.
CONCLUSIONS = """\
## What this says

- **K-FAC with little damping learns Pong from a fraction of PPO's samples**: after 600,000 steps its three seeds are at
  5.2, 12.5 and -6.9 and still rising. PPO, run on one seed only, is at -19.9 by then and at -16.5 after 1,000,000. On
  frames of 84 × 84 pixels, on a GPU, three seeds are at 19.6, 17.1 and 18.3 after 1.13 million steps
  ([gpu.md](gpu.md)).
- **The damping decides.** At λ = 0.1 K-FAC's policy ignores the image: the probabilities of its actions are the same in
  every state. A young policy's gradient is nearly all noise, in the directions that all states have in common. Each
  layer follows this noise on its own, and most units of the extractor end up below zero in every state. Sharing one
  extractor between actor and critic does not change that. At λ = 0.001 the policy depends on the image by 100,000
  steps.
- **One random column of F_out instead of all** ends at -1.8 on seed 0, where all columns are at 5.2. Seed 1 was at
  -12.7 after 400,000 steps and lost nearly every point from 500,000 on. On smaller games it does as well as all columns
  ([minatar.md](minatar.md)).
- **Cholesky, which splits the damping between the two factors, learns less**: it is at -15.9 and -16.8 after 600,000
  steps, the eigendecompositions at 5.2 and 12.5. √λ is added to each factor, so that their product is damped by much
  more than λ. Less damping makes up for part of that: after 300,000 steps of seed 0 a hundredth of λ is at -17.5, a
  thousandth at -18.1, λ itself at -18.7 and the eigendecompositions at -14.8.
- **Longer steps at the beginning do not pay**: with δ falling from 0.02 to 0 over 800,000 steps, seed 0 is at 3.6 after
  600,000, where δ = 0.01 is at 5.2, and ends at 6.8. Seed 1 lost nearly every point until 500,000.
- **Conjugate gradient is slower**: with λ = 0.01 its three seeds are at -18.6, -15.7 and -19.6 after 600,000 steps. At
  λ = 0.1 its policy hardly depends on the image either: what tells images apart lies along small eigenvalues.
- The settings other than solver and damping were chosen on seed 0 with conjugate gradient, in trials that were not
  kept.
"""


@dataclass(frozen=True)
class Run:
    """
    A training.

    :param candidate: what is trained
    :param seed: of the training
    """

    candidate: Candidate
    seed: int = 0

    def label(self) -> str:
        """Return what it is called in the tables."""
        return self.candidate.name + (f", seed {self.seed}" if self.candidate.n_seeds > 1 else "")

    def settings(self) -> dict[str, Any]:
        """Return all that the figures depend on."""
        asked = asdict(self.candidate)
        del asked["name"], asked["n_seeds"]
        return {**asked, "seed": self.seed, "task": TASK, "screen": SCREEN, "n_envs": N_ENVS, "every": EVERY}


class Look(BaseCallback):
    """Looks at the training and at the policy every so many steps."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, float]] = []
        self._start = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps < EVERY * (len(self.found) + 1):
            return
        episodes = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        seconds = time.perf_counter() - self._start
        figures = {"steps": self.num_timesteps, "seconds": seconds, "return": fmean(episodes)}
        assert isinstance(self.model, OnPolicyAlgorithm)
        self.found.append(figures | policy_figures(self.model))


@th.no_grad()
def policy_figures(model: OnPolicyAlgorithm) -> dict[str, float]:
    """
    Tell what the policy does on rows of its last rollout.

    :param model: with a full rollout buffer
    :return: the entropy in nats, the standard deviation over rows of an action's probability, and the part of the
        extractor's units that are above zero for some row
    """
    frames = model.rollout_buffer.observations.reshape(-1, *model.rollout_buffer.obs_shape)
    observations = th.as_tensor(frames[:: max(1, len(frames) // ROWS)], device=model.device)
    distribution = model.policy.get_distribution(observations).distribution
    assert isinstance(distribution, th.distributions.Categorical)
    extractor = model.policy.pi_features_extractor
    assert isinstance(extractor, NatureCNN)
    passing, alive = observations.float() / 255.0, []
    for module in (*extractor.cnn.children(), *extractor.linear.children()):
        passing = module(passing)
        if isinstance(module, nn.ReLU):
            alive.append((passing > 0.0).any(dim=0).float().flatten())
    return {
        "entropy": float(-distribution.probs.xlogy(distribution.probs).sum(dim=1).mean()),
        "spread": float(distribution.probs.std(dim=0).mean()),
        "alive": float(th.cat(alive).mean()),
    }


def measure(store: Store, run: Run) -> None:
    """Train, and keep what was seen on the way."""
    th.set_num_threads(1)
    gym.register_envs(importlib.import_module("ale_py"))
    env = make_atari_env(TASK, n_envs=N_ENVS, seed=run.seed, wrapper_kwargs={"screen_size": SCREEN})
    make: Callable[..., OnPolicyAlgorithm] = {"NPG": NPG, "PPO": PPO}[run.candidate.algorithm]
    model = make("CnnPolicy", VecFrameStack(env, 4), seed=run.seed, device="cpu", **run.candidate.settings)
    look = Look()
    model.learn(run.candidate.n_steps, callback=look)
    env.close()
    store.save(run.settings(), {"looks": look.found})


def table(found: Iterable[tuple[str, list[dict[str, float]]]], figure: str, digits: int, scale: float = 1.0) -> str:
    """
    Return a figure of each candidate after so many steps.

    :param found: looks by the candidate's name
    :param figure: its name
    :param digits: behind the point
    :param scale: what it is multiplied by
    """
    rows = [(name, [f"{scale * look[figure]:.{digits}f}" for look in looks]) for name, looks in found]
    longest = max(len(cells) for _, cells in rows)
    titles = [f"{EVERY * (i + 1):,}" for i in range(longest)]
    return markdown_table(
        ["candidate", *titles], [[name, *cells, *["–"] * (longest - len(cells))] for name, cells in rows]
    )


def document(store: Store, runs: Sequence[Run]) -> list[str]:
    """Return the sections of the document."""
    found = {run.label(): figures["looks"] for run in runs if (figures := store.load(run.settings()))}
    candidates = {run.candidate.name: run.candidate for run in runs}
    settings = "\n".join(f"- {name}: {one.algorithm}, {one.settings}" for name, one in candidates.items())
    seconds = [
        f"{name}: {looks[-1]['seconds'] / 60:.0f} minutes for {looks[-1]['steps']:,.0f} steps"
        for name, looks in found.items()
    ]
    return [
        CONCLUSIONS,
        f"{TASK} on frames of {SCREEN} × {SCREEN} pixels, with rl_zoo3's wrappers and {N_ENVS} environments, one "
        "thread each; seed 0 if only one was run. Columns are environment steps, of four frames each.",
        settings,
        "## Mean return of the last 100 episodes of the training",
        table(found.items(), "return", 2),
        "## Standard deviation over states of an action's probability, in thousandths",
        "It is zero for a policy that ignores the image.",
        table(found.items(), "spread", 1, 1e3),
        "## Units of the policy's extractor that are above zero in some state, in per cent",
        table(found.items(), "alive", 0, 1e2),
        "## Entropy in nats, at most 1.79",
        table(found.items(), "entropy", 2),
        f"Wall time with two runs at once on two cores, most of the time beside other work: {'; '.join(seconds)}.",
    ]


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document."""
    parser = candidates_parser("pong", __doc__, [one.name for one in CANDIDATES])
    arguments = parser.parse_args(argv)
    chosen = [candidate for candidate in CANDIDATES if candidate.name in arguments.candidates]
    runs = [Run(candidate, seed) for candidate in chosen for seed in range(candidate.n_seeds)]
    store = Store(arguments.results, any_machine=True)
    if not arguments.report:
        measure_missing(store, runs, measure, arguments.processes)
    head = preamble("Pong from small images", command_line("benchmarks.pong", []))
    write_document(arguments.out, [head, *document(store, runs)])


if __name__ == "__main__":
    main(sys.argv[1:])
