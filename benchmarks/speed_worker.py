"""
One algorithm of the speed comparison in a process of its own: does an iteration when told to, and says what it took.

Runs in whatever virtual environment has the algorithm, so it imports nothing of this repository but ``sb3_npg``, and
that only for NPG. Reads one JSON object a line: ``{"do": "iterate"}`` collects and trains, ``{"do": "quit"}`` ends.
The first argument is a JSON object of settings; see :class:`benchmarks.update_speed.Peer`.
"""

import importlib
import itertools
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

warnings.simplefilter("ignore")

Seconds = dict[str, float]
#: Of an update, in their order.
PARTS = ("gradient", "solve", "line search", "critic")


@contextmanager
def timed(seconds: Seconds, name: str) -> Iterator[None]:
    """Add the seconds of a block."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def wrap(owner: Any, name: str, seconds: Seconds, part: str) -> None:
    """Let every call of a function or method add its seconds to a part."""
    inner = getattr(owner, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        with timed(seconds, part):
            return inner(*args, **kwargs)

    setattr(owner, name, outer)


def quiet_mujoco() -> None:
    """Keep MuJoCo from printing a deprecation of gymnasium's models for each of them."""
    mujoco: Any = importlib.import_module("mujoco")

    mujoco.set_mju_user_warning(lambda _message: None)


def vectors() -> Any:
    """Build an environment of HalfCheetah's sizes that draws its observations beforehand."""
    import gymnasium as gym
    import numpy as np

    class Vectors(gym.Env[Any, Any]):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (17,), np.float32)
        action_space = gym.spaces.Box(-1.0, 1.0, (6,), np.float32)
        drawn = np.random.default_rng(0).standard_normal((4096, 17)).astype(np.float32)
        n_steps = 0

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return self.drawn[0], {}

        def step(self, action: Any) -> Any:
            self.n_steps += 1
            row = self.drawn[self.n_steps % len(self.drawn)]
            return row, float(row[0] - np.square(action).mean()), False, self.n_steps % 1000 == 0, {}

    return Vectors()


def images() -> Any:
    """Build SB3's environment of random images."""
    from stable_baselines3.common.envs import FakeImageEnv

    return FakeImageEnv(action_dim=3, screen_height=36, screen_width=36)


#: Environments that cost next to nothing.
ENVIRONMENTS = {"vectors": vectors, "images": images}


# Algorithms with SB3's interface


class Sb3Peer:
    """An algorithm with SB3's interface, timed from outside in rollout and update."""

    def __init__(self, settings: dict[str, Any]):
        self.seconds: Seconds = {}
        self.settings = settings
        self.model = self._build()
        self._instrument()
        self._started = False

    def _build(self) -> Any:
        from stable_baselines3.common.env_util import make_vec_env

        make = ENVIRONMENTS.get(self.settings["env_id"], self.settings["env_id"])
        env = make_vec_env(make, n_envs=self.settings["n_envs"], seed=0)
        wrap(env, "step", self.seconds, "simulator")
        n_steps = self.settings["rows"] // self.settings["n_envs"]
        images = self.settings["env_id"] == "images"
        width = self.settings["width"]
        kwargs = {"n_steps": n_steps, "seed": 0, "device": "cpu"}
        if not images:
            kwargs["policy_kwargs"] = {"net_arch": [width, width]}
        policy = "CnnPolicy" if images else "MlpPolicy"
        return self._class()(policy, env, **{**kwargs, **self.settings["arguments"]})

    def _class(self) -> Any:
        name = self.settings["algorithm"]
        if name == "NPG":
            import sb3_npg

            return sb3_npg.NPG
        if name == "TRPO":
            import sb3_contrib

            return sb3_contrib.TRPO
        if name == "SBX PPO":
            import sbx

            return sbx.PPO
        import stable_baselines3

        return getattr(stable_baselines3, name)

    def _instrument(self) -> None:
        wrap(self.model, "collect_rollouts", self.seconds, "rollout")
        wrap(self.model, "train", self.seconds, "train")
        if self.settings["algorithm"] == "NPG":
            self._instrument_npg()
        if self.settings["algorithm"] == "TRPO":
            self._instrument_trpo()

    def _instrument_npg(self) -> None:
        for name, part in (("_find_direction", "solve"), ("_search", "line search"), ("_fit_critic", "critic")):
            wrap(self.model, name, self.seconds, part)
        inner = self.model._local_problem

        def local_problem(*args: Any) -> Any:
            with timed(self.seconds, "gradient"):
                problem = inner(*args)
            wrap(problem, "surrogate_gradient", self.seconds, "gradient")
            return problem

        self.model._local_problem = local_problem

    def _instrument_trpo(self) -> None:
        """TRPO's train() is one piece: its parts begin where it calls what is marked here."""
        trpo: Any = importlib.import_module("sb3_contrib.trpo.trpo")

        marks: dict[str, float] = {}
        solver, values = trpo.conjugate_gradient_solver, self.model.policy.predict_values
        train = self.model.train

        def solve(*args: Any, **kwargs: Any) -> Any:
            marks["solve"] = time.perf_counter()
            try:
                return solver(*args, **kwargs)
            finally:
                marks["search"] = time.perf_counter()

        def predict_values(*args: Any, **kwargs: Any) -> Any:
            marks.setdefault("critic", time.perf_counter())
            return values(*args, **kwargs)

        def timed_train() -> None:
            marks.clear()
            start = time.perf_counter()
            train()
            ends = [start, marks["solve"], marks["search"], marks["critic"], time.perf_counter()]
            for part, (first, last) in zip(PARTS, itertools.pairwise(ends), strict=True):
                self.seconds[part] = self.seconds.get(part, 0.0) + last - first

        trpo.conjugate_gradient_solver = solve
        self.model.policy.predict_values = predict_values
        self.model.train = timed_train

    def iterate(self) -> dict[str, float]:
        """Collect one rollout and train on it."""
        self.seconds.clear()
        steps = self.settings["rows"]
        self.model.learn(steps, reset_num_timesteps=not self._started, log_interval=None)
        self._started = True
        logged = self.model.logger.name_to_value
        figures = {name: float(logged[f"train/{key}"]) for name, key in FIGURES.items() if f"train/{key}" in logged}
        return {**self.seconds, **figures}


#: What an iteration reports beside seconds, by the key that SB3's algorithms log it under.
FIGURES = {"explained variance": "explained_variance", "KL": "kl_divergence_loss"}


# tianshou


class TianshouPeer:
    """tianshou's NPG or TRPO, with the network and the settings of its own MuJoCo examples."""

    def __init__(self, settings: dict[str, Any]):
        import gymnasium as gym
        import numpy as np
        import torch
        from tianshou.algorithm import NPG, TRPO
        from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
        from tianshou.algorithm.optim import AdamOptimizerFactory
        from tianshou.data import Collector, VectorReplayBuffer
        from tianshou.env import DummyVectorEnv
        from tianshou.utils.net.common import Net
        from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
        from torch.distributions import Independent, Normal

        self.settings = settings
        self.seconds: Seconds = {}
        np.random.seed(0)
        torch.manual_seed(0)
        n_envs, width = settings["n_envs"], settings["width"]
        envs = DummyVectorEnv([lambda: gym.make(settings["env_id"]) for _ in range(n_envs)])
        envs.seed(0)
        wrap(envs, "step", self.seconds, "simulator")
        observation_space, action_space = envs.observation_space[0], envs.action_space[0]
        nets = [
            Net(state_shape=observation_space.shape, hidden_sizes=(width, width), activation=torch.nn.Tanh)
            for _ in range(2)
        ]
        actor = ContinuousActorProbabilistic(preprocess_net=nets[0], action_shape=action_space.shape, unbounded=True)
        critic = ContinuousCritic(preprocess_net=nets[1])
        policy = ProbabilisticActorPolicy(
            actor=actor,
            dist_fn=lambda location_and_scale: Independent(Normal(*location_and_scale), 1),
            action_space=action_space,
            action_scaling=True,
            action_bound_method="clip",
        )
        kind = {"tianshou NPG": NPG, "tianshou TRPO": TRPO}[settings["algorithm"]]
        self.algorithm = kind(
            policy=policy, critic=critic, optim=AdamOptimizerFactory(lr=1e-3), **settings["arguments"]
        )
        self.buffer = VectorReplayBuffer(settings["rows"], n_envs)
        self.collector = Collector(self.algorithm, envs, self.buffer, exploration_noise=True)
        self.collector.reset()

    def iterate(self) -> dict[str, float]:
        """Collect one rollout and train on it."""
        from tianshou.utils.torch_utils import policy_within_training_step

        self.seconds.clear()
        with timed(self.seconds, "rollout"), policy_within_training_step(self.algorithm.policy):
            self.collector.collect(n_step=self.settings["rows"])
        with timed(self.seconds, "train"), policy_within_training_step(self.algorithm.policy):
            self.algorithm.update(buffer=self.buffer, batch_size=None, repeat=1)
        self.buffer.reset(keep_statistics=True)
        return dict(self.seconds)


def main() -> None:
    """Build the algorithm, then do as told."""
    settings = json.loads(sys.argv[1])
    import torch as th

    th.set_num_threads(settings["threads"])
    if hasattr(os, "sched_setaffinity"):  # XLA has threads of its own
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["threads"]])
    quiet_mujoco()
    kind: Callable[[dict[str, Any]], Any] = TianshouPeer if "tianshou" in settings["algorithm"] else Sb3Peer
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever the libraries print
    peer = kind(settings)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        if json.loads(line)["do"] == "quit":
            break
        figures = peer.iterate()
        figures["peak bytes"] = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(figures), file=answers, flush=True)


if __name__ == "__main__":
    main()
