"""Callbacks for training with NPG, or with any other algorithm of SB3."""

from stable_baselines3.common.callbacks import BaseCallback


class StaggerEpisodes(BaseCallback):
    """
    Starts the environments of a ``VecEnv`` at different times within their episodes.

    Without it all start together, and if only a time limit ends an episode they stay in step throughout training.
    A rollout of 128 steps then covers the same eighth of a 1,000-step episode in all environments, and the update moves
    the policy away from what the rest of the episode needs. With n environments and a limit of T steps, the i-th counts
    i·T/n steps as elapsed when training begins: its first episode is truncated that much earlier, and later ones have
    full length. Nothing is changed if training begins in the middle of episodes.

    Massively parallel training of locomotion does the same ("init at random episode length" in RSL-RL: Rudin et al.
    (2022), Learning to Walk in Minutes Using Massively Parallel Deep Reinforcement Learning).

    :param verbose: 1 prints how many steps count as elapsed
    :raises ValueError: when training begins, if an environment has no ``gymnasium.wrappers.TimeLimit``
    """

    def _on_training_start(self) -> None:
        env = self.training_env
        if not (env.has_attr("_max_episode_steps") and env.has_attr("_elapsed_steps")):
            raise ValueError(
                "`callback`=StaggerEpisodes() needs environments with a time limit, and there is one without. Make it "
                "by gymnasium.make(..., max_episode_steps=...), or leave the callback out."
            )
        if any(env.get_attr("_elapsed_steps")):
            return
        limits = env.get_attr("_max_episode_steps")
        elapsed = [index * limit // env.num_envs for index, limit in enumerate(limits)]
        for index, steps in enumerate(elapsed):
            env.env_method("set_wrapper_attr", "_elapsed_steps", steps, indices=index)
        if self.verbose > 0:
            print(f"Steps of an episode that count as elapsed: {elapsed}")

    def _on_step(self) -> bool:
        return True
