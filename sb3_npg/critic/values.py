"""The value function on the rows of a rollout: any policy through autograd, or a feed-forward network by hand."""

from typing import Protocol

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_npg.fisher import (
    FeedForward,
    FeedForwardLayers,
    FeedForwardModel,
    FeedForwardRows,
    KeptJacobian,
    LayeredFisher,
    LayeredModel,
    OutputModel,
    RowOutputs,
    UnitMetric,
    rows_within,
)
from sb3_npg.networks import CriticNetwork
from sb3_npg.observations import count_rows, take_rows
from sb3_npg.parameters import ParameterVector


class Values(Protocol):
    """V on the rows of a rollout as a function of the parameters θ."""

    parameters: ParameterVector
    n_rows: int

    def model(self) -> OutputModel:
        """Return the model of V, shape (n, 1), that F is computed from."""
        ...

    def rows_within(self, memory_budget: int) -> int:
        """Return how many rows can be differentiated at once within ``memory_budget`` bytes."""
        ...

    def layers(self, chunk_rows: int, memory_budget: int) -> LayeredFisher | FeedForwardLayers:
        """Return F layer by layer."""
        ...


class PolicyValues:
    """
    The values of any SB3 policy: its own computation, differentiated by autograd.

    :param policy: SB3 actor-critic policy
    :param observations: n rows
    :param parameters: θ
    """

    def __init__(self, policy: ActorCriticPolicy, observations: PyTorchObs, parameters: ParameterVector):
        self.policy = policy
        self.observations = observations
        self.parameters = parameters
        self.n_rows = count_rows(observations)

    def model(self) -> OutputModel:
        """Return the model of V, shape (n, 1), that F is computed from."""
        return OutputModel(self._values, self.n_rows, self.parameters, UnitMetric())

    def rows_within(self, memory_budget: int) -> int:
        """Return for how many rows the autograd graphs fit into ``memory_budget`` bytes."""
        return rows_within(memory_budget, self.n_rows, self.model().jacobian, self.policy.parameters())

    def layers(self, chunk_rows: int, memory_budget: int) -> LayeredFisher:
        """Return F layer by layer."""
        model = LayeredModel(self.policy, self._outputs, self.model(), None, lambda rows: None)
        return LayeredFisher(model, chunk_rows, memory_budget)

    def _values(self, rows: slice) -> th.Tensor:
        return self.policy.predict_values(take_rows(self.observations, rows)).reshape(-1, 1)

    def _outputs(self, rows: slice) -> RowOutputs:
        values = self._values(rows)
        # F_out is the number one, and so is its root: V in place of log π makes "sampled" columns exact too.
        return RowOutputs((values,), values.squeeze(1))


class FeedForwardValues:
    """
    The values of a policy whose critic is a feed-forward network, by hand.

    :param network: the policy's critic
    :param inputs: inputs of the critic, n rows
    :param parameters: θ
    """

    def __init__(self, network: FeedForward, inputs: th.Tensor, parameters: ParameterVector):
        self.inputs = inputs
        self.parameters = parameters
        self.n_rows = len(inputs)
        self._jacobian = KeptJacobian(network, inputs, parameters)

    def model(self) -> OutputModel:
        """Return the model of V, shape (n, 1), that F is computed from."""
        return OutputModel(self._values, self.n_rows, self.parameters, UnitMetric(), self._jacobian.of)

    def rows_within(self, memory_budget: int) -> int:
        """Return for how many rows the activations fit into ``memory_budget`` bytes."""
        return self._jacobian.rows_within(memory_budget)

    def layers(self, chunk_rows: int, memory_budget: int) -> FeedForwardLayers:
        """Return F layer by layer."""
        chunks = self._jacobian.record_chunks(chunk_rows, memory_budget)
        return FeedForwardLayers(FeedForwardModel(self._rows_of, chunks, UnitMetric()))

    def _values(self, rows: slice) -> th.Tensor:
        if not th.is_grad_enabled() and self._jacobian.holds(rows):
            return self._jacobian.of(rows).outputs
        return self._jacobian.network(self.inputs[rows])

    def _rows_of(self, rows: slice) -> FeedForwardRows:
        jacobian = self._jacobian.of(rows)
        return FeedForwardRows(jacobian, lambda: th.ones_like(jacobian.outputs))


def make_values(
    policy: ActorCriticPolicy,
    observations: PyTorchObs,
    parameters: ParameterVector,
    critic: CriticNetwork | None = None,
) -> Values:
    """
    Choose how a policy's values are computed on the rows of a rollout.

    :param policy: SB3 actor-critic policy
    :param observations: n rows
    :param parameters: θ, the parameters that the regression moves
    :param critic: the policy's critic, if it is to be computed by hand; None to use autograd
    :return: the values
    """
    if critic is None:
        return PolicyValues(policy, observations, parameters)
    return FeedForwardValues(critic.network, critic.inputs(observations), parameters)
