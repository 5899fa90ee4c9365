"""Train NPG, save it, load it and let it act."""

from pathlib import Path

import gymnasium as gym

from sb3_npg import NPG


def main(total_timesteps: int = 40_000, folder: str | Path = "runs") -> tuple[NPG, float]:
    """
    Train on CartPole, then play one episode with the model that was saved and loaded.

    :param total_timesteps: environment steps to train for
    :param folder: where the model goes
    :return: the loaded model, and the return of the episode
    """
    path = Path(folder) / "npg_cartpole"
    model = NPG("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    model.learn(total_timesteps)
    model.save(path)

    loaded = NPG.load(path, device="cpu")
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    episode_return, done = 0.0, False
    while not done:
        action, _ = loaded.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(action)
        episode_return += float(reward)
        done = terminated or truncated
    return loaded, episode_return


if __name__ == "__main__":
    _, episode_return = main()
    print(f"the loaded model keeps the pole up for {episode_return:.0f} of 500 steps")
