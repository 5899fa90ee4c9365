"""The parameter that scales the exploration noise: its part in the Jacobian and in the Fisher, in closed form."""

import functools
from collections.abc import Iterable
from functools import cached_property
from typing import Protocol

import torch as th

from sb3_npg.fisher.feed_forward import FeedForwardJacobian
from sb3_npg.fisher.rollout_fisher import OutputMetric
from sb3_npg.linalg import FisherChain


class NoiseJacobian(Protocol):
    """∂log σ of n rows with respect to the noise parameter, which is read as a matrix of m rows and b columns."""

    def push(self, direction: th.Tensor) -> th.Tensor:
        """Return the change of log σ, shape (n, k), for a change of the parameter, as a flat vector."""
        ...

    def pull(self, cotangent: th.Tensor) -> th.Tensor:
        """Return the derivative with respect to the parameter, in its shape, for a cotangent of shape (n, k)."""
        ...

    @property
    def n_groups(self) -> int:
        """Number of columns of the parameter, b."""
        ...

    def columns(self) -> th.Tensor:
        """Return the whole Jacobian, shape (n, m, b, r): column j of the parameter moves r log standard deviations."""
        ...

    def fisher(self) -> th.Tensor:
        """Return the Fisher of the parameter, mean over rows, shape (b, m, m)."""
        ...


class GaussianJacobian:
    """
    J of z = (μ, log σ), where μ is the output of a network.

    :param mean: J of μ
    :param noise: J of log σ
    :param log_std: log σ, shape (n, k)
    :param span: where the noise's parameter lies in θ; None if it is not trained
    """

    def __init__(self, mean: FeedForwardJacobian, noise: NoiseJacobian, log_std: th.Tensor, span: slice | None):
        self.mean = mean
        self.noise = noise
        self._log_std = log_std
        self._span = span

    @cached_property
    def outputs(self) -> th.Tensor:
        """The outputs z, shape (n, 2k)."""
        return th.cat([self.mean.outputs, self._log_std], dim=1)

    def push(self, vector: th.Tensor) -> th.Tensor:
        """Return J v, shape (n, 2k), for v of shape (p,)."""
        mean = self.mean.push(vector)
        log_std = th.zeros_like(mean) if self._span is None else self.noise.push(vector[self._span]).expand_as(mean)
        return th.cat([mean, log_std], dim=1)

    def pull(self, cotangent: th.Tensor) -> th.Tensor:
        """Return Jᵀ u, shape (p,), for u of shape (n, 2k)."""
        mean, log_std = cotangent.chunk(2, dim=1)
        gradient = self.mean.pull(mean)
        if self._span is not None:
            gradient[self._span] = self.noise.pull(log_std).flatten()
        return gradient

    def chain(self, metric: OutputMetric) -> FisherChain | None:
        """
        Return the Fisher of the rows as a chain: F_out of the mean is 1/σ², and the noise has blocks of its own.

        None if a layer is a convolution.
        """
        chain = self.mean.weighted_chain((-2.0 * self._log_std).exp_())
        if chain is None or self._span is None:
            return chain
        return chain._replace(noise=self.noise.fisher(), noise_span=self._span)


def noise_fisher(jacobians: Iterable[th.Tensor]) -> th.Tensor:
    """
    Sum 2 Σ_r J_r J_rᵀ over rows, as F_out of a log standard deviation is 2.

    :param jacobians: chunks of shape (n, m, b, r), at least one
    :return: shape (b, m, m)
    """
    flat = (chunk.permute(2, 1, 0, 3).flatten(2) for chunk in jacobians)  # (b, m, n·r)
    return functools.reduce(th.add, (2.0 * chunk @ chunk.mT for chunk in flat))


def noise_scores(jacobian: th.Tensor, score: th.Tensor) -> th.Tensor:
    """
    Apply the chain rule from ∂log π / ∂log σ to the noise parameter, row by row.

    :param jacobian: shape (n, m, b, r)
    :param score: ∂log π / ∂log σ, shape (n, b·r)
    :return: shape (n, m·b)
    """
    n, _, b, r = jacobian.shape
    return (jacobian * score.view(n, 1, b, r)).sum(dim=3).flatten(1)
