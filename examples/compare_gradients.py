"""
The natural gradient does not depend on the units of the policy's parameters. The vanilla gradient does.

The policy is linear, with weights in metres and radians or in centimetres and turns: the same policies in different
coordinates. Start, environment, critic and random numbers are the same too. So the natural gradient takes the same
steps, and its curves coincide until rounding flips an action. The vanilla gradient of a weight depends on the weight's
unit: a step of the same KL then goes almost entirely into the weights in centimetres, and the pole falls.
"""

from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.spaces import MultiBinary
from gymnasium.wrappers import TransformAction
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from sb3_npg import NPG

N_ENVS, N_STEPS = 8, 128
#: What CartPole's position, speed, angle and angular speed are multiplied by.
UNITS = {"metres, radians": (1.0, 1.0, 1.0, 1.0), "centimetres, turns": (100.0, 100.0, 0.159, 0.159)}
SOLVERS = {"natural": "exact", "vanilla": "identity"}
#: Mean return by gradient and units, of shape (seeds, rollouts).
Returns = dict[tuple[str, str], np.ndarray]


class Rescaled(nn.Module):
    """
    Weights of a policy whose observations are in other units: W = V · scale.

    :param scale: new units in one old unit, by observation
    """

    scale: th.Tensor

    def __init__(self, scale: tuple[float, ...]):
        super().__init__()
        self.register_buffer("scale", th.tensor(scale))

    def forward(self, parameter: th.Tensor) -> th.Tensor:
        """Return the weight W for the parameter V, which is what is trained."""
        return parameter * self.scale

    def right_inverse(self, weight: th.Tensor) -> th.Tensor:
        """Return the parameter V for the weight W."""
        return weight / self.scale


class RolloutReturns(BaseCallback):
    """Keeps the mean return of the last episodes at the end of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.returns.append(float(np.mean([episode["r"] for episode in self.model.ep_info_buffer or ()])))


def main(total_timesteps: int = 20_000, folder: str | Path = "runs", n_seeds: int = 4) -> tuple[Returns, Path]:
    """
    Train with both gradients in both units.

    :param total_timesteps: environment steps of each run
    :param folder: where the picture goes
    :param n_seeds: runs of each kind
    :return: the learning curves, and the file that they are drawn in
    """
    returns = {
        (gradient, units): np.array([train(gradient, units, seed, total_timesteps) for seed in range(n_seeds)])
        for gradient in SOLVERS
        for units in UNITS
    }
    return returns, draw(returns, Path(folder) / "gradients.png")


def one_bit(env: gym.Env) -> gym.Env:
    """
    Make CartPole's two actions one bit.

    Of two actions only the difference of the logits counts. One bit has one logit, the Fisher is invertible, and the
    natural gradient needs no damping, which would depend on the units.
    """
    return TransformAction(env, lambda action: int(action[0]), MultiBinary(1))


def train(gradient: str, units: str, seed: int, total_timesteps: int) -> list[float]:
    """Train a linear policy on CartPole and return its mean return after each rollout."""
    env = make_vec_env("CartPole-v1", n_envs=N_ENVS, seed=seed, wrapper_class=one_bit)
    model = NPG(
        "MlpPolicy",
        env,
        n_steps=N_STEPS,
        fisher_solver=SOLVERS[gradient],
        damping=0.0,
        stats_window_size=20,
        policy_kwargs={"net_arch": {"pi": [], "vf": [64]}},
        seed=seed,
        device="cpu",
    )
    register_parametrization(model.policy.action_net, "weight", Rescaled(UNITS[units]))
    callback = RolloutReturns()
    model.learn(total_timesteps, callback)
    return callback.returns


def draw(returns: Returns, picture: Path) -> Path:
    """Draw every run thin and the mean of a kind thick."""
    axes = (figure := Figure(figsize=(8, 4.5), layout="constrained")).subplots()
    styles = zip(returns.items(), ("C0-", "C1--", "C2-", "C3--"), strict=True)
    for ((gradient, units), runs), style in styles:
        steps = N_ENVS * N_STEPS * np.arange(1, runs.shape[1] + 1)
        axes.plot(steps, runs.T, style, linewidth=0.6, alpha=0.5)
        axes.plot(steps, runs.mean(axis=0), style, linewidth=2, label=f"{gradient} gradient, {units}")
    axes.set(title="CartPole, one policy in two coordinates", xlabel="environment steps", ylabel="mean return")
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    return picture


if __name__ == "__main__":
    returns, picture = main()
    for (gradient, units), runs in returns.items():
        print(f"{gradient} gradient, {units + ':':<19} return {runs[:, -1].mean():.0f} at the end")
    print(f"learning curves: {picture}")
