"""Drawing actions in as few operations as possible, from the same random numbers as SB3's distributions use."""

import math
from abc import ABC, abstractmethod

import torch as th
from torch import nn

from sb3_npg.output_fisher.base import OutputFisher
from sb3_npg.output_fisher.discrete import CategoricalFisher, MultiCategoricalFisher
from sb3_npg.output_fisher.gaussian import GaussianFisher
from sb3_npg.output_fisher.noise import ExplorationNoise, FreeNoise


class Sampler(ABC):
    """Draws actions from the outputs of an actor's last layer."""

    @abstractmethod
    def draw(self, outputs: th.Tensor, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Draw actions.

        :param outputs: of the last layer, shape (n, k)
        :param features: what went into it, shape (n, d)
        :return: actions, shape (n, action_dim), or (n,) for a Discrete space, and their log-probabilities, shape (n,)
        """


class NoiseSampler(Sampler):
    """Draws random numbers independently of the outputs, and computes actions from both."""

    @abstractmethod
    def fill(self, noise: th.Tensor) -> None:
        """Draw the random numbers of n actions into a tensor of the outputs' shape, (n, k)."""

    @abstractmethod
    def actions(self, outputs: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Return actions and their log-probabilities.

        :param outputs: of the last layer, shape (n, k)
        :param noise: filled, shape (n, k)
        """

    def draw(self, outputs: th.Tensor, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Draw actions."""
        noise = th.empty_like(outputs)
        self.fill(noise)
        return self.actions(outputs, noise)


class GaussianSampler(NoiseSampler):
    """
    A Gaussian whose log σ is a parameter: log π follows from the noise that was drawn.

    :param log_std: log σ, shape (action_dim,)
    """

    def __init__(self, log_std: nn.Parameter):
        self.log_std = log_std
        self._constant = 0.5 * len(log_std) * math.log(2.0 * math.pi)

    def fill(self, noise: th.Tensor) -> None:
        """Draw ε from the standard normal distribution."""
        noise.normal_()

    def actions(self, outputs: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return μ + σε and −½ Σ ε² − Σ log σ − ½ d log 2π."""
        actions = outputs + noise * self.log_std.exp()
        return actions, noise.square().sum(dim=1).mul_(-0.5).sub_(self.log_std.sum() + self._constant)


class CategoricalSampler(NoiseSampler):
    """
    Categoricals, sampled by means of exponential random numbers.

    :param metric: the closed forms of one categorical, or of several
    """

    def __init__(self, metric: CategoricalFisher | MultiCategoricalFisher):
        self.metric = metric

    def fill(self, noise: th.Tensor) -> None:
        """Draw e, one categorical after the other."""
        for piece in self.metric.pieces(noise):
            piece.exponential_()

    def actions(self, outputs: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return argmax_a p_a / e_a of each categorical, and the sum of log p_a."""
        actions = self.metric.sample(outputs, noise)
        return actions, self.metric.log_prob(outputs, actions)


class ClosedFormSampler(Sampler):
    """
    Any distribution that is known in closed form.

    :param metric: the closed forms
    :param noise: what sets σ of continuous actions
    """

    def __init__(self, metric: OutputFisher, noise: ExplorationNoise | None):
        self.metric = metric
        self.noise = noise

    def draw(self, outputs: th.Tensor, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return actions and their log-probabilities."""
        drawn = None
        if self.noise is not None:
            outputs, drawn = th.cat([outputs, self.noise.log_std(features)], dim=1), self.noise.draw(features)
        actions = th.nan_to_num(self.metric.sample(outputs, drawn))  # features may overflow in the noise of gSDE
        return actions, self.metric.log_prob(outputs, actions)


def make_sampler(metric: OutputFisher, noise: ExplorationNoise | None) -> Sampler:
    """
    Choose the way to draw actions.

    :param metric: the closed forms of the distribution
    :param noise: what sets σ of continuous actions
    :return: a sampler
    """
    if isinstance(noise, FreeNoise) and isinstance(metric, GaussianFisher) and metric.log_slope is None:
        return GaussianSampler(noise.parameter)
    if isinstance(metric, CategoricalFisher | MultiCategoricalFisher):
        return CategoricalSampler(metric)
    return ClosedFormSampler(metric, noise)
