"""The acting half of a policy on the rows of a rollout: any policy through autograd, or an MLP by hand."""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, Protocol

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_npg.fisher import (
    Acting,
    ActingModel,
    GaussianJacobian,
    Jacobian,
    LayeredFisher,
    Linearization,
    MlpJacobian,
    MlpLayers,
    MlpModel,
    MlpRows,
    NoiseJacobian,
    OutputModel,
    RolloutFisher,
    rows_within,
    split_rows,
)
from sb3_npg.networks import MlpNetworks
from sb3_npg.output_fisher import OutputFisher, make_output_fisher
from sb3_npg.parameters import ParameterVector, reached_parameters


class ActingRows(NamedTuple):
    """
    The action distribution of some rows, as tensors.

    :param outputs: z, shape (n, k)
    :param log_prob: of the actions taken, shape (n,)
    :param entropy: makes the entropy in nats, shape (n,); None where it has no closed form
    """

    outputs: th.Tensor
    log_prob: th.Tensor
    entropy: Callable[[], th.Tensor | None]


#: What is summed over rows to be differentiated.
Objective = Callable[[ActingRows], th.Tensor]


class Actor(Protocol):
    """How the rows of a rollout are acted on, and how that depends on the parameters θ."""

    metric: OutputFisher
    parameters: ParameterVector
    n_rows: int

    def act(self, rows: slice) -> ActingRows:
        """Return the action distribution at the present θ, with its graph where gradients are enabled."""
        ...

    def start(self, rows: slice) -> ActingRows:
        """Return the action distribution at θ_old, before the parameters move, without a graph."""
        ...

    def gradient(self, rows: slice, objective: Objective) -> th.Tensor:
        """Return the derivative of an objective by the present θ, shape (p,)."""
        ...

    def rows_within(self, memory_budget: int) -> int:
        """Return how many rows can be differentiated at once within so many bytes."""
        ...

    def fisher(self, chunk_rows: int) -> RolloutFisher:
        """Return F of all rows."""
        ...

    def layers(self, chunk_rows: int, memory_budget: int) -> "LayeredFisher | MlpLayers":
        """Return F layer by layer."""
        ...

    def every(self, step: int) -> "Actor":
        """Return the same on every so-many-th row."""
        ...


class PolicyActor:
    """
    Any SB3 policy: what it computes, differentiated by autograd.

    :param policy: SB3 actor-critic policy
    :param observations: what the rollout buffer returns, n rows
    :param actions: shape (n, action_dim), or (n,) for a Discrete space
    :param parameters: θ
    :raises ValueError: if the policy's distribution is of a kind whose Fisher is not known
    """

    def __init__(
        self, policy: ActorCriticPolicy, observations: PyTorchObs, actions: th.Tensor, parameters: ParameterVector
    ):
        self.policy = policy
        self.observations = observations
        self.actions = actions
        self.parameters = parameters
        self.n_rows = len(actions)
        with th.no_grad():
            self.metric = make_output_fisher(policy.get_distribution(take_rows(observations, slice(0, 1))))

    def act(self, rows: slice) -> ActingRows:
        """Return the action distribution at the present θ, with its graph where gradients are enabled."""
        distribution = self.policy.get_distribution(take_rows(self.observations, rows))
        outputs = self.metric.outputs(distribution)
        return ActingRows(outputs, distribution.log_prob(self.actions[rows]), distribution.entropy)

    @th.no_grad()
    def start(self, rows: slice) -> ActingRows:
        """Return the action distribution at the present θ, without a graph."""
        return self.act(rows)

    def gradient(self, rows: slice, objective: Objective) -> th.Tensor:
        """Return the derivative of an objective by the present θ, shape (p,)."""
        with th.enable_grad():
            total = objective(self.act(rows)).sum()
            return self.parameters.flatten(th.autograd.grad(total, self.parameters.tensors, materialize_grads=True))

    def rows_within(self, memory_budget: int) -> int:
        """Return how many rows' graphs fit into so many bytes."""
        return rows_within(
            memory_budget,
            self.n_rows,
            lambda rows: Linearization(self.act(rows).outputs, self.parameters),
            self.policy.parameters(),
        )

    def fisher(self, chunk_rows: int) -> RolloutFisher:
        """Return F of all rows."""
        return RolloutFisher(self._model(), chunk_rows)

    def layers(self, chunk_rows: int, memory_budget: int) -> LayeredFisher:
        """Return F layer by layer."""
        acting = ActingModel(
            module=self.policy,
            act=self._parts,
            model=self._model(),
            noise=getattr(self.policy, "log_std", None),
            noise_jacobian=self._noise_jacobian,
        )
        return LayeredFisher(acting, chunk_rows, memory_budget)

    def every(self, step: int) -> "PolicyActor":
        """Return the same on every so-many-th row."""
        if step == 1:
            return self
        rows = slice(None, None, step)
        return PolicyActor(self.policy, take_rows(self.observations, rows), self.actions[rows], self.parameters)

    def _model(self) -> OutputModel:
        return OutputModel(lambda rows: self.act(rows).outputs, self.n_rows, self.parameters, self.metric)

    def _parts(self, rows: slice) -> Acting:
        distribution = self.policy.get_distribution(take_rows(self.observations, rows))
        return Acting(self.metric.parts(distribution), distribution.log_prob(self.actions[rows]))

    def _noise_jacobian(self, rows: slice) -> th.Tensor | None:
        distribution = self.policy.get_distribution(take_rows(self.observations, rows))
        return self.metric.noise_jacobian(distribution, self.policy.log_std)


class MlpActor:
    """
    A policy whose actor is a multilayer perceptron: features once, Jacobians by hand, densities in closed form.

    :param networks: the policy's
    :param features: what its actor sees of the observations, shape (n, d)
    :param actions: shape (n, action_dim), or (n,) for a Discrete space
    :param parameters: θ
    """

    def __init__(self, networks: MlpNetworks, features: th.Tensor, actions: th.Tensor, parameters: ParameterVector):
        self.networks = networks
        self.features = features
        self.actions = actions
        self.parameters = parameters
        self.n_rows = len(actions)
        self.metric = networks.metric
        self._kept: tuple[slice, MlpJacobian] | None = None

    def act(self, rows: slice) -> ActingRows:
        """Return the action distribution at the present θ, with its graph where gradients are enabled."""
        network, noise = self.networks.actor, self.networks.noise
        hidden = network.hidden(self.features[rows])
        outputs = network.head(hidden)
        if noise is not None:
            outputs = th.cat([outputs, noise.log_std(hidden)], dim=1)
        if not self.metric.is_defined(outputs):
            raise ValueError("the policy's outputs are not those of a distribution")  # as torch's distributions do
        return self._known(outputs, rows)

    @th.no_grad()
    def start(self, rows: slice) -> ActingRows:
        """Return the action distribution at the present θ, without a graph."""
        return self._known(self._jacobian(rows).outputs, rows)

    def gradient(self, rows: slice, objective: Objective) -> th.Tensor:
        """Return the derivative of an objective by the present θ, shape (p,): one pass backwards."""
        jacobian = self._jacobian(rows)
        with th.enable_grad():
            outputs = jacobian.outputs.detach().requires_grad_()
            (cotangent,) = th.autograd.grad(objective(self._known(outputs, rows)).sum(), outputs)
        return jacobian.pull(cotangent)

    def rows_within(self, memory_budget: int) -> int:
        """Return how many rows' activations fit into so many bytes."""
        return max(1, min(self.n_rows, memory_budget // self.networks.actor.bytes_per_row()))

    def fisher(self, chunk_rows: int) -> RolloutFisher:
        """Return F of all rows."""
        model = OutputModel(
            lambda rows: self.act(rows).outputs, self.n_rows, self.parameters, self.metric, self._jacobian
        )
        return RolloutFisher(model, chunk_rows)

    def layers(self, chunk_rows: int, memory_budget: int) -> MlpLayers:
        """Return F layer by layer."""
        n_columns = self.networks.actor.layers[-1].linear.out_features
        numbers = sum(
            layer.linear.in_features + n_columns * layer.linear.out_features for layer in self.networks.actor.layers
        )
        at_once = memory_budget // (numbers * self.features.element_size())
        chunks = split_rows(self.n_rows, max(1, min(chunk_rows, at_once)))
        names = {id(parameter): name for name, parameter in self.networks.policy.named_parameters()}
        name = "" if self.networks.noise is None else names[id(self.networks.noise.parameter)]
        return MlpLayers(MlpModel(self._seen, chunks, self.metric, name, self._noise_span))

    def every(self, step: int) -> "MlpActor":
        """Return the same on every so-many-th row."""
        if step == 1:
            return self
        return MlpActor(self.networks, self.features[::step].contiguous(), self.actions[::step], self.parameters)

    def _known(self, outputs: th.Tensor, rows: slice) -> ActingRows:
        log_prob = self.metric.log_prob(outputs, self.actions[rows])
        return ActingRows(outputs, log_prob, lambda: self.metric.entropy(outputs))

    def _jacobian(self, rows: slice) -> Jacobian:
        """Return J of z; the last one is kept, so that snapshot, gradient and products share a forward pass."""
        mean = self._mean_jacobian(rows)
        noise = self.networks.noise
        if noise is None:
            return mean
        hidden = mean.steps[-1].inputs
        return GaussianJacobian(mean, noise.jacobian(hidden), noise.log_std(hidden).detach(), self._noise_span)

    def _mean_jacobian(self, rows: slice) -> MlpJacobian:
        if self._kept is None or self._kept[0] != rows or not self._kept[1].is_current():
            self._kept = None  # free its memory first
            self._kept = rows, MlpJacobian(self.networks.actor, self.features[rows], self.parameters)
        return self._kept[1]

    def _seen(self, rows: slice) -> MlpRows:
        mean = self._mean_jacobian(rows)
        outputs = self._jacobian(rows).outputs
        return MlpRows(mean, outputs, lambda: self._score(outputs, rows), self._noise_of(mean))

    def _noise_of(self, mean: MlpJacobian) -> NoiseJacobian | None:
        noise = self.networks.noise
        return None if noise is None else noise.jacobian(mean.steps[-1].inputs)

    def _score(self, outputs: th.Tensor, rows: slice) -> th.Tensor:
        """Return ∂log π(a|s)/∂z, shape (n, k)."""
        with th.enable_grad():
            leaf = outputs.detach().requires_grad_()
            (score,) = th.autograd.grad(self.metric.log_prob(leaf, self.actions[rows]).sum(), leaf)
        return score

    @cached_property
    def _noise_span(self) -> slice | None:
        noise = self.networks.noise
        pairs = zip(self.parameters.tensors, self.parameters.spans(), strict=True)
        return next((span for tensor, span in pairs if noise is not None and tensor is noise.parameter), None)


def make_actor(
    policy: ActorCriticPolicy,
    observations: PyTorchObs,
    actions: th.Tensor,
    parameters: ParameterVector | None = None,
    networks: MlpNetworks | None = None,
) -> Actor:
    """
    Choose how a policy is computed on the rows of a rollout.

    :param policy: SB3 actor-critic policy
    :param observations: what the rollout buffer returns, n rows
    :param actions: shape (n, action_dim), or (n,) for a Discrete space
    :param parameters: θ, the parameters that act; found if not given
    :param networks: the policy's, if it is made of multilayer perceptrons and they are to be computed by hand
    :return: an actor
    :raises ValueError: if the policy's distribution is of a kind whose Fisher is not known
    """
    if networks is None:
        return PolicyActor(policy, observations, actions, parameters or acting_parameters(policy, observations))
    with th.no_grad():
        features = networks.actor_features(observations)
    return MlpActor(networks, features, actions, parameters or ParameterVector(networks.acting_parameters()))


def take_rows(observations: PyTorchObs, rows: slice | th.Tensor) -> PyTorchObs:
    """Return some rows of a batch of observations, a tensor or a dict of tensors."""
    if isinstance(observations, dict):
        return {key: tensor[rows] for key, tensor in observations.items()}
    return observations[rows]


def acting_parameters(policy: ActorCriticPolicy, observations: PyTorchObs) -> ParameterVector:
    """
    Find the parameters that the action distribution depends on.

    :param policy: SB3 actor-critic policy
    :param observations: at least one row
    :return: those parameters, in the policy's order
    :raises ValueError: if there are none
    """
    with th.enable_grad():
        distribution = policy.get_distribution(take_rows(observations, slice(0, 1)))
        outputs = make_output_fisher(distribution).outputs(distribution)
        reached = reached_parameters(outputs, policy.parameters())
    if not reached:
        raise ValueError(
            f"`policy`={type(policy).__name__} has no parameter that the action distribution depends on "
            "and that requires a gradient. Check `requires_grad` and that the policy does not detach its outputs."
        )
    return ParameterVector(reached)
