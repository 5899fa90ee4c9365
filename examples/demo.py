"""Train NPG on a task, save it, load it, and show what it has learnt: ``python -m examples.demo --help``."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from sb3_npg import NPG

N_ENVS = 8
N_EVALUATION_EPISODES = 20
#: Not 0: by luck its untrained policy balances CartPole's pole for over 300 steps, where most drop it within 10.
SEED = 1
#: Rollouts of 1,024 rows.
N_STEPS = 128
#: Standard deviations that normalised observations are clipped at.
CLIP_OBS = 3.0


class Result(NamedTuple):
    """
    What the demo found.

    :param before: mean return of the evaluation before training
    :param after: mean return after training
    :param reloaded: mean return of the model that was saved and loaded
    :param picture: the learning curve
    """

    before: float
    after: float
    reloaded: float
    picture: Path


def policy_for(observations: gym.Space[Any]) -> str:
    """Return the name of SB3's policy for a space of observations."""
    if isinstance(observations, gym.spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(observations) else "MlpPolicy"


def main(
    total_timesteps: int | None = None, env_id: str = "CartPole-v1", seed: int = SEED, folder: str | Path = "runs"
) -> Result:
    """
    Train, evaluate, save, load and draw.

    :param total_timesteps: environment steps to train for; by default 60,000, or 200,000 for continuous actions
    :param env_id: a Gymnasium environment
    :param seed: seed of the environments and the agent
    :param folder: the results go to a folder in here, named after the environment
    """
    folder = Path(folder) / env_id
    folder.mkdir(parents=True, exist_ok=True)
    env, evaluation_env = make_vec_env(env_id, N_ENVS, seed), make_vec_env(env_id, N_ENVS, seed)
    policy, continuous = policy_for(env.observation_space), isinstance(env.action_space, gym.spaces.Box)
    if continuous:
        norm_obs = policy != "CnnPolicy"  # images are scaled by the policy
        env = VecNormalize(env, norm_obs=norm_obs, clip_obs=CLIP_OBS)
        evaluation_env = VecNormalize(
            evaluation_env, training=False, norm_obs=norm_obs, norm_reward=False, clip_obs=CLIP_OBS
        )
    model = NPG(policy, env, n_steps=N_STEPS, seed=seed, device="cpu")

    before = evaluate("before training", model, evaluation_env)
    if total_timesteps is None:
        total_timesteps = 200_000 if continuous else 60_000
    model.learn(total_timesteps, progress_bar=True)
    if isinstance(env, VecNormalize):
        sync_envs_normalization(env, evaluation_env)
        env.save(str(folder / "vec_normalize.pkl"))
    after = evaluate("after training", model, evaluation_env)

    model.save(folder / "model")
    loaded = NPG.load(folder / "model", device="cpu")
    if continuous:  # the statistics that observations are normalised by are a file of their own
        evaluation_env = VecNormalize.load(str(folder / "vec_normalize.pkl"), make_vec_env(env_id, N_ENVS))
        evaluation_env.training = evaluation_env.norm_reward = False
    reloaded = evaluate("saved and loaded", loaded, evaluation_env)
    observations: Any = evaluation_env.reset()
    actions, loaded_actions = (agent.predict(observations, deterministic=True)[0] for agent in (model, loaded))
    print("the loaded model's actions are", "the same" if np.array_equal(actions, loaded_actions) else "DIFFERENT")

    picture = draw_learning_curve(env, folder / "learning_curve.png", f"NPG on {env_id}")
    print(f"model and learning curve: {folder / 'model.zip'}, {picture}")
    return Result(before, after, reloaded, picture)


def evaluate(title: str, model: NPG, env: VecEnv, seed: int = 1_000_000) -> float:
    """Return the mean return of the deterministic policy, always from the same start states."""
    env.seed(seed)
    returns, _ = evaluate_policy(model, env, N_EVALUATION_EPISODES, deterministic=True, return_episode_rewards=True)
    print(
        f"{title + ':':<17} return {np.mean(returns):.1f} ± {np.std(returns):.1f} in {N_EVALUATION_EPISODES} episodes"
    )
    return float(np.mean(returns))


def draw_learning_curve(env: VecEnv, picture: Path, title: str, window: int = 20) -> Path:
    """Draw the return of every training episode, and their moving average, against the environment steps."""
    # The Monitor around each environment keeps its episodes; all environments step together.
    ends = [np.cumsum(lengths) * env.num_envs for lengths in env.env_method("get_episode_lengths")]
    steps, returns = np.concatenate(ends), np.concatenate(env.env_method("get_episode_rewards"))
    order = np.argsort(steps, kind="stable")
    steps, returns = steps[order], returns[order]
    axes = (figure := Figure(figsize=(8, 4.5), layout="constrained")).subplots()
    axes.plot(steps, returns, ".", markersize=3, alpha=0.4, label="episode")
    if len(returns) >= window:
        average = np.convolve(returns, np.full(window, 1 / window), "valid")
        axes.plot(steps[window - 1 :], average, label=f"mean of {window} episodes")
    axes.set(title=title, xlabel="environment steps", ylabel="return of the episode")
    axes.legend()
    figure.savefig(picture, dpi=120)
    return picture


def run() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train NPG, evaluate it, save it, load it, draw its learning curve.")
    parser.add_argument("--env", default="CartPole-v1", help="a Gymnasium environment (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="environment steps (default: 60000; continuous actions 200000)")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        gym.make(arguments.env).close()
    except gym.error.Error as error:
        parser.error(f"--env {arguments.env}: {error}")
    main(arguments.steps, arguments.env, arguments.seed)


if __name__ == "__main__":
    run()
