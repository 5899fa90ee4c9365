"""The actor of a policy of feed-forward networks, computed by hand."""

import math
from functools import cached_property
from typing import NamedTuple

import torch as th

from sb3_npg.actor.base import ActingRows, Objective
from sb3_npg.fisher import (
    FeedForwardJacobian,
    FeedForwardLayers,
    FeedForwardModel,
    FeedForwardRows,
    GaussianJacobian,
    KeptJacobian,
    OutputModel,
    RolloutFisher,
)
from sb3_npg.networks import PolicyNetworks
from sb3_npg.parameters import ParameterVector


class _Kept(NamedTuple):
    """J of z at a version of the noise parameter, for the rows of the kept mean Jacobian."""

    version: int
    jacobian: GaussianJacobian


class FeedForwardActor:
    """
    An actor that is a feed-forward network: constant features are computed once, Jacobians by hand, densities in closed
    form.

    :param networks: the policy's networks
    :param inputs: inputs of its actor, n rows
    :param actions: shape (n, action_dim), or (n,) for a Discrete space
    :param parameters: θ
    """

    def __init__(self, networks: PolicyNetworks, inputs: th.Tensor, actions: th.Tensor, parameters: ParameterVector):
        self.networks = networks
        self.inputs = inputs
        self.actions = actions
        self.parameters = parameters
        self.n_rows = len(actions)
        self.metric = networks.metric
        self._mean_jacobian = KeptJacobian(networks.actor, inputs, parameters)
        self._kept: _Kept | None = None

    def act(self, rows: slice) -> ActingRows:
        """
        Return the action distribution at the present θ, with its graph where gradients are enabled.

        All log-probabilities are NaN if the outputs of any row define no distribution.
        """
        network, noise = self.networks.actor, self.networks.noise
        hidden = network.hidden(self.inputs[rows])
        outputs = network.head(hidden)
        if noise is not None:
            outputs = th.cat([outputs, noise.log_std(hidden)], dim=1)
        known = self._known(outputs, rows)
        # Torch's distributions would raise here, and wait for the device to find out.
        undefined = ~self.metric.is_defined(outputs)
        return known._replace(log_prob=known.log_prob.masked_fill(undefined, math.nan))

    @th.no_grad()
    def start(self, rows: slice) -> ActingRows:
        """Return the action distribution at the present θ, without a graph."""
        return self._known(self._jacobian(rows).outputs, rows)

    def gradient(self, rows: slice, objective: Objective) -> th.Tensor:
        """Return the gradient of an objective with respect to θ, at the present θ, shape (p,): one backward pass."""
        jacobian = self._jacobian(rows)
        with th.enable_grad():
            outputs = jacobian.outputs.detach().requires_grad_()
            (cotangent,) = th.autograd.grad(objective(self._known(outputs, rows)).sum(), outputs)
        return jacobian.pull(cotangent)

    def rows_within(self, memory_budget: int) -> int:
        """Return for how many rows the activations fit into ``memory_budget`` bytes."""
        return self._mean_jacobian.rows_within(memory_budget)

    def fisher(self, chunk_rows: int) -> RolloutFisher:
        """Return F of all rows."""
        model = OutputModel(
            lambda rows: self.act(rows).outputs, self.n_rows, self.parameters, self.metric, self._jacobian
        )
        return RolloutFisher(model, chunk_rows)

    def layers(self, chunk_rows: int, memory_budget: int) -> FeedForwardLayers:
        """Return F layer by layer."""
        chunks = self._mean_jacobian.record_chunks(chunk_rows, memory_budget)
        return FeedForwardLayers(FeedForwardModel(self._rows_of, chunks, self.metric, noise_span=self._noise_span))

    def every(self, step: int) -> "FeedForwardActor":
        """Return the same actor on every ``step``-th row."""
        if step == 1:
            return self
        return FeedForwardActor(self.networks, self.inputs[::step].contiguous(), self.actions[::step], self.parameters)

    def _known(self, outputs: th.Tensor, rows: slice) -> ActingRows:
        log_prob = self.metric.log_prob(outputs, self.actions[rows])
        return ActingRows(outputs, log_prob, lambda: self.metric.entropy(outputs))

    def _jacobian(self, rows: slice) -> FeedForwardJacobian | GaussianJacobian:
        """Return J of z; the last one is kept, so that snapshot, gradient and products share a forward pass."""
        noise = self.networks.noise
        if noise is None:
            return self._mean_jacobian.of(rows)
        kept, version = self._kept, noise.parameter._version
        if kept is not None and kept.version == version and self._mean_jacobian.holds(rows):
            return kept.jacobian
        self._kept = None  # frees the network's memory first
        mean = self._mean_jacobian.of(rows)
        hidden = mean.steps[-1].inputs
        log_std = noise.log_std(hidden).detach()
        self._kept = _Kept(version, GaussianJacobian(mean, noise.jacobian(hidden), log_std, self._noise_span))
        return self._kept.jacobian

    def _rows_of(self, rows: slice) -> FeedForwardRows:
        jacobian = self._jacobian(rows)
        return FeedForwardRows(jacobian, lambda: self._score(jacobian.outputs, rows))

    def _score(self, outputs: th.Tensor, rows: slice) -> th.Tensor:
        """Return ∂log π(a|s)/∂z, shape (n, k)."""
        with th.enable_grad():
            leaf = outputs.detach().requires_grad_()
            (score,) = th.autograd.grad(self.metric.log_prob(leaf, self.actions[rows]).sum(), leaf)
        return score

    @cached_property
    def _noise_span(self) -> slice | None:
        return None if self.networks.noise is None else self.parameters.span_of(self.networks.noise.parameter)
