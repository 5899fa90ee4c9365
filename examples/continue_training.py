"""Stop training, and continue later from the saved file with a changed hyperparameter."""

from pathlib import Path

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_npg import NPG

ENV_ID = "CartPole-v1"


def main(total_timesteps: int = 20_000, folder: str | Path = "runs", seed: int = 0) -> tuple[NPG, float, float]:
    """
    Train for half of the steps, save, load with less damping, train for the other half.

    :param total_timesteps: environment steps of both halves together
    :param folder: where the model goes
    :param seed: seed of the environments and the agent
    :return: the model, and its mean return after the first and after the second half
    """
    path = Path(folder) / "npg_half_trained"
    env = make_vec_env(ENV_ID, n_envs=8, seed=seed)
    model = NPG("MlpPolicy", env, n_steps=128, damping=0.1, seed=seed, device="cpu")
    model.learn(total_timesteps // 2)
    model.save(path)
    first_half = mean_return(model)

    # The file holds the networks, the critic's optimizer, the hyperparameters and the number of steps done, but no
    # environment. A keyword argument replaces the hyperparameter of that name.
    model = NPG.load(path, env=env, damping=0.01, device="cpu")
    model.learn(total_timesteps // 2, reset_num_timesteps=False)  # continues counting
    return model, first_half, mean_return(model)


def mean_return(model: NPG) -> float:
    """Evaluate on separate environments, always from the same start states."""
    returns, _ = evaluate_policy(model, make_vec_env(ENV_ID, n_envs=8, seed=1_000_000), n_eval_episodes=16)
    return float(np.mean(returns))


if __name__ == "__main__":
    model, first_half, second_half = main()
    print(f"mean return {first_half:.0f} after the first half, {second_half:.0f} after all {model.num_timesteps} steps")
