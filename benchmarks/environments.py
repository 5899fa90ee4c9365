"""The environments that the benchmarks train and evaluate on, and how they do, alike for all of them."""

import warnings

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

N_ENVS = 8
EVALUATION_EPISODES = 20
#: Episodes are drawn from environments that training does not see.
EVALUATION_SEED = 10_000


def prepare_process() -> None:
    """Give a run one thread, and keep MuJoCo from printing a deprecation of gymnasium's models for each of them."""
    import mujoco  # type: ignore[import-untyped]  # which not every task needs

    th.set_num_threads(1)
    mujoco.set_mju_user_warning(_warn_of_mujoco)


def _warn_of_mujoco(message: str) -> None:
    """Pass on MuJoCo's warnings, except that gymnasium's models use attributes that are deprecated."""
    if "deprecated" not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=1)


def training_env(env_id: str, seed: int, gamma: float = 0.99) -> VecNormalize:
    """Return the environments to train on, observations and rewards normalised."""
    return VecNormalize(make_vec_env(env_id, n_envs=N_ENVS, seed=seed), gamma=gamma)


def unseen_env(env_id: str, seed: int) -> VecEnv:
    """Return environments whose episodes training does not see, as they are."""
    return make_vec_env(env_id, n_envs=N_ENVS, seed=EVALUATION_SEED + seed)


def evaluation_env(env_id: str, seed: int, env: VecNormalize) -> VecNormalize:
    """
    Return unseen environments with the statistics of the training environments, frozen, and the reward as it is.

    :param env_id: the task
    :param seed: of the run
    :param env: the environments of its training
    """
    evaluation = VecNormalize(unseen_env(env_id, seed), training=False, norm_reward=False)
    sync_envs_normalization(env, evaluation)
    return evaluation


def returns_of(agent: PolicyPredictor, env: VecEnv) -> list[float]:
    """Return the undiscounted, unnormalised returns of deterministic episodes."""
    returns, _ = evaluate_policy(
        agent, env, n_eval_episodes=EVALUATION_EPISODES, deterministic=True, return_episode_rewards=True
    )
    assert isinstance(returns, list)
    return [float(value) for value in returns]
