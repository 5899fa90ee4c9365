"""
Policies on small images, mostly MinAtar: which damping, which solver, and a shared or a separate extractor.

Games of 10 × 10 cells, a channel for each kind of object, with the network of their authors at half its width:
Young and Tian (2019), MinAtar: An Atari-Inspired Testbed for Thorough and Reproducible Reinforcement Learning
Experiments, section 3. Also two drawn tasks with continuous actions. Compares the defaults of ``NPG("CnnPolicy")``
with other settings and with PPO.

``python -m benchmarks.minatar`` measures what is missing and writes ``docs/minatar.md``. If interrupted, it resumes. It
needs MinAtar.
"""

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from benchmarks.drawn import DRAWN
from benchmarks.pong import PPO_ZOO
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

GAMES = ("asterix", "breakout", "space_invaders", *DRAWN)
SEEDS = (0, 1, 2)
N_ENVS, N_STEPS, STEPS = 16, 128, 300_000
#: Looks at a run, evenly spaced.
LOOKS = 6

Observation = npt.NDArray[np.float32]


class MinAtar(gym.Env[Observation, np.int64]):
    """
    A game with the channels first and the actions that do something in it.

    :param game: its name
    """

    def __init__(self, game: str):
        self._game: Any = importlib.import_module("minatar").Environment(game)
        self._actions = self._game.minimal_action_set()
        height, width, channels = self._game.state_shape()
        self.observation_space = spaces.Box(0.0, 1.0, (channels, height, width), np.float32)
        self.action_space = spaces.Discrete(len(self._actions))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        if seed is not None:
            self._game.seed(seed)
        self._game.reset()
        return self._seen(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Act, or repeat the action before with probability 0.1."""
        reward, over = self._game.act(self._actions[action])
        return self._seen(), float(reward), over, False, {}

    def _seen(self) -> Observation:
        seen: Observation = np.moveaxis(self._game.state(), 2, 0).astype(np.float32)
        return seen


class MinAtarCNN(BaseFeaturesExtractor):
    """
    One convolution of sixteen 3 × 3 filters, and a linear layer.

    :param observation_space: channels, height, width
    :param features_dim: width of the linear layer
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 64):
        super().__init__(observation_space, features_dim)
        channels, height, width = observation_space.shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (height - 2) * (width - 2), features_dim),
            nn.ReLU(),
        )

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Return the features, shape (n, features_dim)."""
        features: th.Tensor = self.layers(observations)
        return features


@dataclass(frozen=True)
class Candidate:
    """
    An algorithm with its settings.

    :param name: in the table
    :param algorithm: "NPG" or "PPO"
    :param settings: of its constructor, over the defaults
    :param shares: whether actor and critic have one extractor
    """

    name: str
    algorithm: str = "NPG"
    settings: dict[str, Any] = field(default_factory=dict)
    shares: bool = True


CG: dict[str, Any] = {"fisher_solver": "cg"}
KFAC: dict[str, Any] = {"fisher_solver": "kfac"}
REDUCED, CHOLESKY, PROPAGATED = {"weight_sharing": "reduce"}, {"largest_eigen": 0}, {"columns": "propagated"}
RARE = {"statistics_interval": 4, "inverse_interval": 4}
CANDIDATES = (
    Candidate("CG, λ = 0.1", settings=CG | {"damping": 0.1}),
    Candidate("CG, λ = 0.01", settings=CG | {"damping": 0.01}),
    Candidate("CG, λ = 0.001", settings=CG | {"damping": 0.001}),
    Candidate(
        "CG, λ = 0.01, Adam and an extractor for the critic",
        settings=CG | {"damping": 0.01, "critic_solver": "adam"},
        shares=False,
    ),
    Candidate("K-FAC, λ = 0.1", settings=KFAC | {"damping": 0.1}),
    Candidate("K-FAC, λ = 0.01", settings=KFAC | {"damping": 0.01}),
    Candidate("K-FAC, λ = 0.001, the defaults", settings=KFAC | {"damping": 0.001}),
    Candidate("K-FAC, λ = 0.0001", settings=KFAC | {"damping": 0.0001}),
    Candidate("K-FAC, λ = 0.01, reduced", settings=KFAC | {"damping": 0.01, "fisher_solver_kwargs": REDUCED}),
    Candidate("K-FAC, λ = 0.001, Cholesky", settings=KFAC | {"damping": 0.001, "fisher_solver_kwargs": CHOLESKY}),
    Candidate("K-FAC, λ = 0.001, propagated", settings=KFAC | {"damping": 0.001, "fisher_solver_kwargs": PROPAGATED}),
    Candidate("K-FAC, λ = 0.001, every fourth", settings=KFAC | {"damping": 0.001, "fisher_solver_kwargs": RARE}),
    Candidate("EKFAC, λ = 0.001", settings={"fisher_solver": "ekfac", "damping": 0.001}),
    Candidate("PPO as in rl_zoo3 for Atari", "PPO", {name: PPO_ZOO[name] for name in PPO_ZOO if name != "n_steps"}),
)
#: What the tables say, in the words of those who read them.
CONCLUSIONS = """\
## What this says

- **K-FAC with λ = 0.001 is ahead of PPO in the same time, and ahead of conjugate gradient or even with it**: it returns
  10.2 on Breakout and 30.4 on Space Invaders, PPO 5.9 and 21.8, and the ranges of their three seeds do not overlap. At
  λ = 0.1 it is below every other candidate on both games, except K-FAC with weight sharing "reduce". A tenth of 0.001
  is no better beyond the spread, and EKFAC returns as much as K-FAC.
- **Conjugate gradient needs less damping here than for vectors**: λ = 0.01 returns more than 0.1 on five of six pairs
  of seeds. With λ = 0.001 the returns are lower again. It takes two to three times as long as PPO, on one thread.
- **One random column of F_out is as good for K-FAC as all of them** and takes less time, but not on [Pong](pong.md). To
  measure and decompose only at every fourth update costs a sixth of the returns and saves a third of the time.
  Cholesky, which splits the damping, returns as much on Breakout, and less on Space Invaders on two of three seeds.
  Averaging over positions does not work: weight sharing "reduce" costs two fifths of the returns (λ = 0.01).
- **K-FAC with λ = 0.001 is as good with continuous actions**: on the two drawn tasks it ends above conjugate gradient
  on each of three seeds, though by less than seeds differ, and takes half the time. On Pendulum λ = 0.01 returned more
  still, with one seed.
- Hence `fisher_solver="auto"` is K-FAC for images.
- None of the four candidates that were run on Asterix learns it in so few steps.
- Adam with a separate extractor for the critic, as in zoo_configs for Atari, is no better on Breakout than with a
  shared one.
- Minutes are of processor time. K-FAC with λ below 0.1 and EKFAC computed their actions by hand, which saves about half
  a minute on the games; the others acted through SB3's modules.
- Figures without ± are from one seed: differences of a tenth say nothing. A dash means not run.
"""


@dataclass(frozen=True)
class Run:
    """
    A training.

    :param candidate: what is trained
    :param game: that it plays
    :param seed: of the training
    """

    candidate: Candidate
    game: str
    seed: int

    def settings(self) -> dict[str, Any]:
        """Return all that the figures depend on."""
        asked = asdict(self.candidate)
        del asked["name"]
        rollout = {"n_envs": N_ENVS, "n_steps": N_STEPS, "steps": STEPS, "looks": LOOKS}
        return {**asked, **rollout, "game": self.game, "seed": self.seed}


class Look(BaseCallback):
    """Notes the mean return of the last hundred episodes every so many steps."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps >= STEPS * (len(self.found) + 1) // LOOKS:
            self.found.append(fmean(episode["r"] for episode in self.model.ep_info_buffer or ()))


def measure(store: Store, run: Run) -> None:
    """Train, and keep the returns."""
    th.set_num_threads(1)
    env = make_vec_env(DRAWN.get(run.game, partial(MinAtar, run.game)), N_ENVS, seed=run.seed)
    make: Callable[..., OnPolicyAlgorithm] = {"NPG": NPG, "PPO": PPO}[run.candidate.algorithm]
    policy = {
        "features_extractor_class": MinAtarCNN,
        "normalize_images": False,
        "share_features_extractor": run.candidate.shares,
    }
    model = make(
        "CnnPolicy",
        env,
        n_steps=N_STEPS,
        seed=run.seed,
        device="cpu",
        policy_kwargs=policy,
        **run.candidate.settings,
    )
    look, start = Look(), time.process_time()
    model.learn(STEPS, callback=look)
    store.save(run.settings(), {"returns": look.found, "processor_seconds": time.process_time() - start})


def table(store: Store, chosen: Sequence[Candidate], cell: Callable[[list[dict[str, Any]]], str]) -> str:
    """Return what is made of the runs of each candidate, game by game."""
    runs = [Run(candidate, game, seed) for candidate in chosen for game in GAMES for seed in SEEDS]
    found = store.found(runs, lambda run: (run.candidate.name, run.game))
    rows = [[one.name, *(cell(found.get((one.name, game), [])) for game in GAMES)] for one in chosen]
    return markdown_table(["candidate", *GAMES], rows)


def final(runs: Sequence[dict[str, Any]]) -> str:
    """Return the mean return at the end, over seeds."""
    return mean_and_spread([run["returns"][-1] for run in runs], 1) if runs else "–"


def minutes(runs: Sequence[dict[str, Any]]) -> str:
    """Return the time on one processor."""
    return f"{fmean(run['processor_seconds'] for run in runs) / 60:.1f}" if runs else "–"


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document."""
    parser = candidates_parser("minatar", __doc__, [one.name for one in CANDIDATES])
    parser.add_argument("--games", nargs="+", choices=GAMES, default=GAMES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    arguments = parser.parse_args(argv)
    chosen = [candidate for candidate in CANDIDATES if candidate.name in arguments.candidates]
    store = Store(arguments.results, any_machine=True)
    if not arguments.report:
        runs = [Run(one, game, seed) for seed in arguments.seeds for game in arguments.games for one in chosen]
        measure_missing(store, runs, measure, arguments.processes)
    settings = [f"- {one.name}: {one.algorithm}, {one.settings}" for one in CANDIDATES]
    sections = [
        preamble("Policies on small images: MinAtar", command_line("benchmarks.minatar", [])),
        CONCLUSIONS,
        f"{STEPS:,} steps over {N_ENVS} environments, {N_STEPS} in each between updates; seeds {SEEDS}. The extractor "
        "has one convolution and one linear layer; actor and critic share it unless stated otherwise. Pendulum and "
        "chase, with one and two continuous actions, are drawn on 12 × 12 pixels (benchmarks/drawn.py).",
        "\n".join(settings),
        "## Mean return of the last 100 episodes of the training, over seeds",
        table(store, CANDIDATES, final),
        "## Minutes on one processor",
        table(store, CANDIDATES, minutes),
    ]
    write_document(arguments.out, sections)


if __name__ == "__main__":
    main(sys.argv[1:])
