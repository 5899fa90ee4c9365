"""Catch, a task of images small enough that the Fisher of a policy on them can be formed."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

SIZE = 12
#: Pixels that the paddle covers to each side of its middle.
REACH = 1
#: Actions move the paddle by one less than their number.
ACTIONS = 3
Image = np.ndarray[Any, np.dtype[np.uint8]]


class Catch(gym.Env[Image, np.int64]):
    """
    A ball falls from a random column, a pixel a step; a paddle in the bottom row moves left, not, or right.

    Observations are images of shape (1, 12, 12) and type uint8. The episode ends in the bottom row, with reward 1
    if the paddle is there and −1 if not.

    Mnih et al. (2014), Recurrent Models of Visual Attention, section 4.2, without the glimpses.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (1, SIZE, SIZE), np.uint8)
        self.action_space = spaces.Discrete(ACTIONS)
        self.row = self.column = self.paddle = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Image, dict[str, Any]]:
        """Let a new ball fall."""
        super().reset(seed=seed)
        self.row, self.column = 0, int(self.np_random.integers(SIZE))
        self.paddle = int(self.np_random.integers(REACH, SIZE - REACH))
        return self._image(), {}

    def step(self, action: np.int64) -> tuple[Image, float, bool, bool, dict[str, Any]]:
        """Move the paddle and the ball."""
        self.paddle = int(np.clip(self.paddle + int(action) - 1, REACH, SIZE - 1 - REACH))
        self.row += 1
        landed = self.row == SIZE - 1
        reward = (1.0 if abs(self.column - self.paddle) <= REACH else -1.0) if landed else 0.0
        return self._image(), reward, landed, False, {}

    def _image(self) -> Image:
        image = np.zeros((1, SIZE, SIZE), np.uint8)
        image[0, -1, self.paddle - REACH : self.paddle + REACH + 1] = 255
        image[0, self.row, self.column] = 255
        return image


class CatchExtractor(BaseFeaturesExtractor):
    """Two convolutions and a linear layer, 5,888 parameters."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 32):
        super().__init__(observation_space, features_dim)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * 3 * 3, features_dim), nn.ReLU(),
        )  # fmt: skip

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Return the features, shape (n, features_dim)."""
        features: th.Tensor = self.layers(observations)
        return features
