"""The algorithms of the speed comparison, what they are given, and where they live."""

import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import environment

WORKER = Path(__file__).with_name("speed_worker.py")
#: Where virtual environments for the algorithms that cannot share ours are made.
ENVIRONMENTS = Path(".peers")
_SHARED = ["torch==2.13.0", "gymnasium[mujoco]==1.4.0", "mujoco==4.0.0"]
#: What each of them holds.
REQUIREMENTS = {
    "sbx": ["sbx-rl==0.28.0", "stable-baselines3==2.9.2", *_SHARED],
    "tianshou": ["tianshou==2.0.1", *_SHARED],
}
#: δ and λ of every trust region, in nats of the KL that is summed over HalfCheetah's action dimensions.
TARGET_KL, DAMPING, CG_STEPS, ACTION_DIM = 0.02, 0.1, 10, 6


@dataclass(frozen=True)
class Peer:
    """
    An algorithm with its settings.

    :param name: in the tables
    :param algorithm: what the worker builds
    :param arguments: of its constructor, in addition to those that all share
    :param home: key of ``REQUIREMENTS``, or "" for our own environment
    """

    name: str
    algorithm: str
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)
    home: str = ""


@dataclass(frozen=True)
class Size:
    """
    A task, a rollout and a network.

    :param env_id: a task of Gymnasium's, or "vectors" or "images", random observations that cost nothing
    :param n_envs: environments that step together
    :param rows: N, over all environments
    :param width: units of each of two hidden layers
    :param threads: of torch
    """

    env_id: str = "HalfCheetah-v5"
    n_envs: int = 8
    rows: int = 2048
    width: int = 64
    threads: int = 1


def npg(name: str, **arguments: Any) -> Peer:
    """Return NPG with some arguments."""
    return Peer(f"NPG, {name}", "NPG", {"target_kl": TARGET_KL, "damping": DAMPING, **arguments})


_CG: dict[str, Any] = {"fisher_solver": "cg", "fisher_solver_kwargs": {"max_steps": CG_STEPS, "rtol": 0.0}}
_ADAM: dict[str, Any] = {"critic_solver": "adam", "n_critic_updates": 10}
CG = npg("CG 10", **_CG)
GENERIC = npg("CG 10, fast_paths=False", **_CG, fast_paths=False)
SOLVERS = (
    CG,
    npg("K-FAC", fisher_solver="kfac"),
    npg("EKFAC", fisher_solver="ekfac"),
    npg(
        "CG 5 + K-FAC",
        fisher_solver="cg",
        fisher_solver_kwargs={"max_steps": 5, "rtol": 0.0, "preconditioner": "kfac"},
    ),
    npg("diagonal", fisher_solver="diagonal"),
    npg("woodbury, every 4th row", fisher_solver="woodbury", sub_sampling_factor=4),
    npg("identity", fisher_solver="identity"),
)
ADAM = tuple(npg(f"CG 10, Adam 10 × {rows}", **_CG, **_ADAM, batch_size=rows) for rows in (64, 128))
#: SB3's KL of a Box action has a value for each dimension, and TRPO takes the mean over rows and dimensions.
TRPO = Peer(
    "contrib TRPO, CG 10",
    "TRPO",
    {"target_kl": TARGET_KL / ACTION_DIM, "cg_damping": DAMPING / ACTION_DIM, "cg_max_steps": CG_STEPS},
)
PPO = Peer("SB3 PPO", "PPO")
A2C = Peer("SB3 A2C, one batch", "A2C")
SBX = Peer("SBX PPO", "SBX PPO", home="sbx")
_TIANSHOU = {"optim_critic_iters": 20}
TIANSHOU = (
    Peer("tianshou NPG", "tianshou NPG", {**_TIANSHOU, "trust_region_size": 0.1}, home="tianshou"),
    Peer("tianshou TRPO", "tianshou TRPO", {**_TIANSHOU, "max_kl": TARGET_KL}, home="tianshou"),
)


class Worker:
    """
    A process that runs one algorithm, and rests while others run.

    :param peer: the algorithm
    :param size: what it is run on
    """

    def __init__(self, peer: Peer, size: Size):
        self.peer = peer
        settings = {"algorithm": peer.algorithm, "arguments": peer.arguments, **asdict(size)}
        self._process = subprocess.Popen(
            [interpreter(peer.home), str(WORKER), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._read()

    def iterate(self) -> dict[str, float]:
        """Let it collect a rollout and train on it; returns what it took."""
        self._write({"do": "iterate"})
        return self._read()

    def quit(self) -> None:
        """End the process."""
        self._process.communicate(json.dumps({"do": "quit"}) + "\n", timeout=60)

    def _write(self, message: dict[str, str]) -> None:
        if self._process.stdin is None:
            raise RuntimeError("the worker has no input")
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, float]:
        line = "" if self._process.stdout is None else self._process.stdout.readline()
        if not line:
            self._process.communicate()
            raise RuntimeError(f"the worker of {self.peer.name} ended with {self._process.returncode}")
        answer: dict[str, float] = json.loads(line)
        return answer


def interpreter(home: str) -> str:
    """Return the Python that has a peer."""
    return sys.executable if not home else str(ENVIRONMENTS / home / "bin" / "python")


def make_environments(homes: Sequence[str]) -> None:
    """Make the virtual environments that are not there yet."""
    for home in homes:
        installed = ENVIRONMENTS / home / "installed.txt"
        wanted = "\n".join(REQUIREMENTS[home])
        if installed.exists() and installed.read_text() == wanted:
            continue
        print(f"making {ENVIRONMENTS / home}", file=sys.stderr)
        venv.create(ENVIRONMENTS / home, with_pip=True)
        command = [interpreter(home), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, *REQUIREMENTS[home]], check=True)
        installed.write_text(wanted)


def versions(homes: Sequence[str]) -> dict[str, str]:
    """Return our versions and machine, and those of the peers that live elsewhere."""
    elsewhere = {home: ", ".join(REQUIREMENTS[home]) for home in homes}
    return {**environment(), **elsewhere}
