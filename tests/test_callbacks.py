"""Episodes of a VecEnv that begin at different times."""

import gymnasium as gym
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_npg import NPG
from sb3_npg.callbacks import StaggerEpisodes

LIMIT = 40


class Lengths(BaseCallback):
    """The lengths of the episodes of each environment, in their order."""

    def _on_training_start(self):
        self.of = [[] for _ in range(self.training_env.num_envs)]

    def _on_step(self):
        for lengths, info in zip(self.of, self.locals["infos"], strict=True):
            if "episode" in info:
                lengths.append(info["episode"]["l"])
        return True


def pendulums(n_envs=4, limit=LIMIT, vec_env_cls=DummyVecEnv):
    return make_vec_env("Pendulum-v1", n_envs, env_kwargs={"max_episode_steps": limit}, vec_env_cls=vec_env_cls)


@pytest.mark.parametrize(("algorithm", "vec_env_cls"), [(NPG, DummyVecEnv), (NPG, SubprocVecEnv), (PPO, DummyVecEnv)])
def test_first_episodes_end_one_after_the_other_and_the_rest_are_whole(algorithm, vec_env_cls):
    lengths = Lengths()
    env = VecNormalize(pendulums(vec_env_cls=vec_env_cls))
    algorithm("MlpPolicy", env, n_steps=20, batch_size=20, seed=0).learn(4 * 80, [StaggerEpisodes(), lengths])
    env.close()
    assert lengths.of == [[40, 40], [30, 40], [20, 40], [10, 40]]


def test_without_it_they_end_in_step():
    lengths = Lengths()
    NPG("MlpPolicy", pendulums(), n_steps=20, seed=0).learn(4 * 80, lengths)
    assert lengths.of == [[40, 40]] * 4


def test_episodes_that_go_on_are_left_alone():
    lengths = Lengths()
    model = NPG("MlpPolicy", pendulums(n_envs=2), n_steps=20, seed=0).learn(2 * 20)
    model.learn(2 * 60, [StaggerEpisodes(), lengths], reset_num_timesteps=False)
    assert lengths.of == [[40, 40], [40, 40]]


def test_episodes_that_go_on_beside_one_that_begins_are_left_alone():
    lengths = Lengths()
    model = NPG("MlpPolicy", pendulums(n_envs=2), n_steps=20, seed=0).learn(2 * 20, StaggerEpisodes())
    model.learn(2 * 60, [StaggerEpisodes(), lengths], reset_num_timesteps=False)
    assert lengths.of == [[40, 40], [40]]


@pytest.mark.parametrize(("limit", "first"), [(3, [3, 3, 2, 2, 1]), (1, [1, 1, 1, 1, 1])])
def test_limits_shorter_than_the_environments_are_many(limit, first):
    lengths = Lengths()
    model = NPG("MlpPolicy", pendulums(n_envs=5, limit=limit), n_steps=8, seed=0)
    model.learn(5 * 8, [StaggerEpisodes(), lengths])
    assert [of[0] for of in lengths.of] == first


def test_says_what_it_did_if_it_is_asked_to(capsys):
    NPG("MlpPolicy", pendulums(), n_steps=20, seed=0).learn(1, StaggerEpisodes(verbose=1))
    assert "[0, 10, 20, 30]" in capsys.readouterr().out
    NPG("MlpPolicy", pendulums(), n_steps=20, seed=0).learn(1, StaggerEpisodes())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_an_environment_without_a_time_limit_is_refused_before_training(limit):
    env = DummyVecEnv([lambda: gym.make("Pendulum-v1").unwrapped] * 2)
    if limit is not None:
        env.set_attr("_max_episode_steps", limit)  # of its own, which counts no steps
    model = NPG("MlpPolicy", env, n_steps=20, seed=0)
    with pytest.raises(ValueError, match=r"StaggerEpisodes.*max_episode_steps"):
        model.learn(40, StaggerEpisodes())
    assert model.num_timesteps == 0
