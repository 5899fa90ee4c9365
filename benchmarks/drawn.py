"""Tasks of continuous actions that are seen as small images, drawn with numpy."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv

#: Pixels of a side.
EDGE = 12
Image = npt.NDArray[np.float32]


def drawn(points: npt.NDArray[np.floating[Any]]) -> Image:
    """
    Draw points as dots of one pixel's area, which four pixels share.

    :param points: shape (n, 2), in [−1, 1]
    :return: shape (EDGE, EDGE), in [0, 1]
    """
    places = (0.5 + 0.5 * np.clip(points, -1.0, 1.0)) * (EDGE - 1)
    corners = np.minimum(places.astype(int), EDGE - 2)
    part = places - corners
    image = np.zeros((EDGE, EDGE), dtype=np.float32)
    for i, rows in enumerate((1.0 - part[:, 0], part[:, 0])):
        for j, columns in enumerate((1.0 - part[:, 1], part[:, 1])):
            np.add.at(image, (corners[:, 0] + i, corners[:, 1] + j), rows * columns)
    return image.clip(0.0, 1.0)


class DrawnPendulum(gym.Wrapper[Image, Any, Any, Any]):
    """Gymnasium's pendulum as two images, of now and of the step before; a tenth of its reward."""

    def __init__(self) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.observation_space = spaces.Box(0.0, 1.0, (2, EDGE, EDGE), np.float32)
        self._before: Image = np.zeros((EDGE, EDGE), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Image, dict[str, Any]]:
        """Begin an episode, at rest as far as can be seen."""
        _, info = self.env.reset(seed=seed, options=options)
        self._before = self._rod()
        return np.stack([self._before, self._before]), info

    def step(self, action: Any) -> tuple[Image, float, bool, bool, dict[str, Any]]:
        """Turn."""
        _, reward, terminated, truncated, info = self.env.step(action)
        seen = [self._rod(), self._before]
        self._before = seen[0]
        return np.stack(seen), 0.1 * float(reward), terminated, truncated, info

    def _rod(self) -> Image:
        pendulum = self.env.unwrapped
        assert isinstance(pendulum, PendulumEnv)
        assert pendulum.state is not None
        angle = pendulum.state[0]
        return drawn(np.outer(np.linspace(0.1, 0.9, EDGE), (np.cos(angle), np.sin(angle))))


class Chase(gym.Env[Image, Any]):
    """A dot that is moved, and a target that drifts, each in an image of its own; what is paid for is to be near."""

    n_steps = 100

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (2, EDGE, EDGE), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._steps = 0
        self._dot, self._target, self._drift = np.zeros((3, 2))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Image, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._steps = 0
        self._dot, self._target = self.np_random.uniform(-1.0, 1.0, (2, 2))
        self._drift = self.np_random.uniform(-0.05, 0.05, 2)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Image, float, bool, bool, dict[str, Any]]:
        """Move the dot by a tenth of the action; the target turns back at the walls."""
        self._steps += 1
        self._dot = np.clip(self._dot + 0.1 * np.asarray(action), -1.0, 1.0)
        self._drift = np.where(np.abs(self._target + self._drift) > 1.0, -self._drift, self._drift)
        self._target = self._target + self._drift
        distance = float(np.linalg.norm(self._dot - self._target))
        return self._seen(), -distance, False, self._steps >= self.n_steps, {}

    def _seen(self) -> Image:
        return np.stack([drawn(self._dot[None]), drawn(self._target[None])])


#: By name.
DRAWN: dict[str, Callable[[], gym.Env[Any, Any]]] = {"pendulum": DrawnPendulum, "chase": Chase}
