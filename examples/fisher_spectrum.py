"""
How the solvers approximate each layer's block of the Fisher, early and late in training.

``python -m examples.fisher_spectrum --help``. Draws the eigenvalues of the block itself, which is formed, and those of
its approximations by K-FAC, EKFAC and the diagonal. For small networks with vectors as observations.
"""

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_npg import NPG
from sb3_npg.fisher import kronecker_factors, layer_blocks
from sb3_npg.local_problem import LocalProblem
from sb3_npg.rollout import normalized, read_rollout
from sb3_npg.solvers.base import Layers
from sb3_npg.solvers.block_diagonal import BlockDiagonalSolver
from sb3_npg.solvers.diagonal import DiagonalSolver
from sb3_npg.solvers.ekfac import EKFACSolver
from sb3_npg.solvers.kfac import KFACSolver

N_ENVS, N_STEPS = 8, 128
DAMPING = 0.1
#: Width of the hidden layers: F is formed, and its blocks are decomposed.
WIDTH = 16
EXACT = "the block itself"
STYLES = {EXACT: "k-", "K-FAC": "C0--", "EKFAC": "C1-.", "diagonal": "C2:"}


class Spectrum(NamedTuple):
    """
    One layer's block of the Fisher, and its approximations.

    :param eigenvalues: of the block and of each approximation, by name, from the largest to the smallest
    :param errors: relative error of each approximation of the block, in Frobenius norm
    """

    eigenvalues: dict[str, np.ndarray]
    errors: dict[str, float]


#: By update and by layer.
Spectra = dict[int, dict[str, Spectrum]]


class SpectrumCallback(BaseCallback):
    """
    Looks at the Fisher before the first update, one in the middle and the last.

    :param n_updates: how many there will be
    """

    def __init__(self, n_updates: int) -> None:
        super().__init__()
        self.moments = {0, n_updates // 2, n_updates - 1}
        self.spectra: Spectra = {}
        self._n_rollouts = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self._n_rollouts in self.moments:
            assert isinstance(self.model, NPG)
            self.spectra[self._n_rollouts] = measure(local_problem(self.model))
        self._n_rollouts += 1


def main(
    total_timesteps: int = 20_000, env_id: str = "CartPole-v1", seed: int = 0, picture: str | Path | None = None
) -> tuple[Spectra, Path]:
    """
    Train, measure and draw.

    :param total_timesteps: environment steps to train for
    :param env_id: a Gymnasium environment
    :param seed: seed of the environments and the agent
    :param picture: where to draw; by default ``runs/``, the environment's name, ``fisher_spectrum.png``
    :return: the spectra, and the file that they are drawn in
    """
    env = make_vec_env(env_id, N_ENVS, seed)
    model = NPG(
        "MultiInputPolicy" if isinstance(env.observation_space, gym.spaces.Dict) else "MlpPolicy",
        env,
        n_steps=N_STEPS,
        damping=DAMPING,
        policy_kwargs={"net_arch": {"pi": [WIDTH, WIDTH], "vf": [64, 64]}},
        seed=seed,
        device="cpu",
    )
    callback = SpectrumCallback(math.ceil(total_timesteps / (N_ENVS * N_STEPS)))
    model.learn(total_timesteps, callback)
    picture = Path("runs") / env_id / "fisher_spectrum.png" if picture is None else Path(picture)
    return callback.spectra, draw(callback.spectra, picture, f"Fisher of a policy on {env_id}, layer by layer")


def local_problem(model: NPG) -> LocalProblem:
    """Freeze the policy update that the last rollout leads to."""
    rollout = read_rollout(model.rollout_buffer, model.action_space)
    return LocalProblem(model.policy, rollout.observations, rollout.actions, normalized(rollout.advantages))


def measure(problem: LocalProblem) -> dict[str, Spectrum]:
    """Decompose each layer's block of the Fisher, and let the solvers approximate it."""
    solvers: dict[str, BlockDiagonalSolver] = {
        "K-FAC": KFACSolver(),
        "EKFAC": EKFACSolver(),
        "diagonal": DiagonalSolver(),
    }
    for solver in solvers.values():
        solver.update(problem)
    eigenvalues = {name: solver.eigenvalues() for name, solver in solvers.items()}
    products = kronecker_products(problem.layers)
    fisher = problem.dense_fisher().double()
    each = th.arange(len(fisher))
    spectra = {}
    for layer in layer_blocks(problem.layers.blocks):
        where = layer.gather(each).flatten()
        block = fisher[where][:, where]
        by_name = {EXACT: th.linalg.eigvalsh(block), **{name: of[layer.name] for name, of in eigenvalues.items()}}
        spectra[layer.name] = Spectrum(
            {name: values.double().sort(descending=True).values.numpy() for name, values in by_name.items()},
            relative_errors(block, products[layer.name], by_name),
        )
    return spectra


def kronecker_products(layers: Layers) -> dict[str, th.Tensor]:
    """Form K-FAC's approximation of each layer's block."""
    factors: dict[str, tuple[th.Tensor, th.Tensor]] = {}
    for records in layers.records():
        for record in records:
            a, g = (factor.double() / layers.n_rows for factor in kronecker_factors(record))
            old_a, old_g = factors.get(record.block.name, (0.0, 0.0))
            factors[record.block.name] = old_a + a, old_g + g
    return {name: th.kron(g, a) for name, (a, g) in factors.items()}


def relative_errors(block: th.Tensor, product: th.Tensor, eigenvalues: dict[str, th.Tensor]) -> dict[str, float]:
    """
    Measure what the approximations miss.

    On the diagonal, the diagonal approximation is exact, and so is EKFAC in the eigenbasis of K-FAC. What they miss is
    off the diagonal: the sum of all squares less those on it.
    """
    whole = block.square().sum()
    missed = {"K-FAC": (block - product).square().sum()}
    for name in ("EKFAC", "diagonal"):
        missed[name] = (whole - eigenvalues[name].double().square().sum()).clamp_min(0.0)
    return {name: float((squares / whole).sqrt()) for name, squares in missed.items()}


def draw(spectra: Spectra, picture: Path, title: str) -> Path:
    """Draw a panel for each moment and layer."""
    layers = list(next(iter(spectra.values())))
    figure = Figure(figsize=(4 * len(layers), 3 * len(spectra)), layout="constrained")
    panels = figure.subplots(len(spectra), len(layers), squeeze=False, sharex="col", sharey="col")
    for row, (update, by_layer) in zip(panels, spectra.items(), strict=True):
        for axes, (layer, spectrum) in zip(row, by_layer.items(), strict=True):
            for name, values in spectrum.eigenvalues.items():
                axes.loglog(np.arange(1, len(values) + 1), values, STYLES[name], label=name)
            axes.axhline(DAMPING, color="0.7", linewidth=1, label=f"damping {DAMPING}")
            axes.set_title(f"{layer}, update {update + 1}", fontsize="medium")
    for axes, layer in zip(panels[-1], layers, strict=True):
        largest = max(values[0] for by_layer in spectra.values() for values in by_layer[layer].eigenvalues.values())
        # Single precision does not resolve less.
        axes.set(xlabel="number", ylim=(1e-7 * largest, 3.0 * max(largest, DAMPING)))
    for axes in panels[:, 0]:
        axes.set_ylabel("eigenvalue")
    panels[0, 0].legend(fontsize="small")
    figure.suptitle(title)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=100)
    return picture


def print_table(spectra: Spectra) -> None:
    """Print, for each moment and layer, the spectrum in three figures and the error of each approximation."""
    print(f"{'':<40}{'eigenvalues':>18}{'condition':>12}   relative error")
    print(
        f"{'update':>6}  {'layer':<28}{'size':>4}{'mean':>9}{'largest':>9}{f'+ {DAMPING}':>12}   K-FAC  EKFAC  diagonal"
    )
    for update, by_layer in spectra.items():
        for layer, (eigenvalues, errors) in by_layer.items():
            values = eigenvalues[EXACT]
            condition = (values[0] + DAMPING) / (max(values[-1], 0.0) + DAMPING)
            figures = f"{len(values):>4}{values.mean():>9.1e}{values[0]:>9.1e}{condition:>12.1f}"
            missed = f"{errors['K-FAC']:>8.2f}{errors['EKFAC']:>7.2f}{errors['diagonal']:>10.2f}"
            print(f"{update + 1:>6}  {layer:<28}{figures}{missed}")


def run() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Draw the spectrum of the Fisher's blocks as training goes on.")
    parser.add_argument("--env", default="CartPole-v1", help="a Gymnasium environment (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--picture", help="where to draw (default: runs/ENV/fisher_spectrum.png)")
    arguments = parser.parse_args()
    try:
        gym.make(arguments.env).close()
    except gym.error.Error as error:
        parser.error(f"--env {arguments.env}: {error}")
    spectra, picture = main(arguments.steps, arguments.env, arguments.seed, arguments.picture)
    print_table(spectra)
    print(f"spectra: {picture}")


if __name__ == "__main__":
    run()
