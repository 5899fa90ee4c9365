"""Any policy as an actor, through autograd."""

from contextlib import suppress
from copy import copy

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_npg.actor.base import ActingRows, Objective
from sb3_npg.fisher import (
    LayeredFisher,
    LayeredModel,
    Linearization,
    OutputModel,
    RolloutFisher,
    RowOutputs,
    rows_within,
)
from sb3_npg.numerics import NumericalFailure, refusals_as_failures
from sb3_npg.observations import examples, take_rows, uneven_observations
from sb3_npg.output_fisher import make_output_fisher
from sb3_npg.parameters import ParameterVector, reached_parameters

#: Squared norms of gradients below this are meaningless in single precision.
_LEAST_SQUARE = 1e-24
#: Norms of gradients below this many rounding errors of the largest one count as zero.
_ROUNDINGS = 32.0
#: Largest total error that may be rounding, about 0.001 per tensor in TF32; a tensor whose derivative is lost adds 1.
_MOST_MISSING = 0.3


class PolicyActor:
    """
    Any SB3 policy: its own computation, differentiated by autograd.

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
        # A copy, as SB3 reuses the same object in the next call.
        distribution = copy(self.policy.get_distribution(take_rows(self.observations, rows)))
        outputs = self.metric.outputs(distribution)
        return ActingRows(outputs, distribution.log_prob(self.actions[rows]), distribution.entropy)

    @th.no_grad()
    def start(self, rows: slice) -> ActingRows:
        """Return the action distribution at the present θ, without a graph."""
        return self.act(rows)

    def gradient(self, rows: slice, objective: Objective) -> th.Tensor:
        """Return the gradient of an objective with respect to θ, at the present θ, shape (p,)."""
        with th.enable_grad():
            total = objective(self.act(rows)).sum()
            return self.parameters.flatten(th.autograd.grad(total, self.parameters.tensors, materialize_grads=True))

    def rows_within(self, memory_budget: int) -> int:
        """Return for how many rows the autograd graphs fit into ``memory_budget`` bytes."""
        return rows_within(memory_budget, self.n_rows, self._model().jacobian, self.policy.parameters())

    def fisher(self, chunk_rows: int) -> RolloutFisher:
        """Return F of all rows."""
        return RolloutFisher(self._model(), chunk_rows)

    def layers(self, chunk_rows: int, memory_budget: int) -> LayeredFisher:
        """Return F layer by layer."""
        model = LayeredModel(
            module=self.policy,
            of_rows=self._parts,
            whole=self._model(),
            noise=getattr(self.policy, "log_std", None),
            noise_jacobian=self._noise_jacobian,
        )
        return LayeredFisher(model, chunk_rows, memory_budget)

    def every(self, step: int) -> "PolicyActor":
        """Return the same actor on every ``step``-th row."""
        if step == 1:
            return self
        rows = slice(None, None, step)
        return PolicyActor(self.policy, take_rows(self.observations, rows), self.actions[rows], self.parameters)

    def _model(self) -> OutputModel:
        return OutputModel(lambda rows: self.act(rows).outputs, self.n_rows, self.parameters, self.metric)

    def _parts(self, rows: slice) -> RowOutputs:
        distribution = self.policy.get_distribution(take_rows(self.observations, rows))
        return RowOutputs(self.metric.parts(distribution), distribution.log_prob(self.actions[rows]))

    def _noise_jacobian(self, rows: slice) -> th.Tensor | None:
        distribution = self.policy.get_distribution(take_rows(self.observations, rows))
        return self.metric.noise_jacobian(distribution, self.policy.log_std)


def actor_parameters(policy: ActorCriticPolicy, observations: PyTorchObs) -> list[nn.Parameter]:
    """
    Find the parameters that the action distribution depends on.

    :param policy: SB3 actor-critic policy
    :param observations: at least one row
    :return: the trained ones that the outputs of at least one row depend on, in the policy's order
    """
    with th.enable_grad():
        return reached_parameters(_outputs(policy, observations), policy.parameters())


@th.no_grad()
def known_observation(policy: ActorCriticPolicy) -> PyTorchObs:
    """
    Return an observation that a policy has an action distribution for, without asking an environment.

    :param policy: SB3 actor-critic policy
    :return: one row: zeros if possible, else a sample of the policy's observation space
    :raises ValueError: if the distribution is NaN for all observations that are tried
    """
    for example in examples(policy.observation_space):
        observations, _ = policy.obs_to_tensor(example)
        with suppress(NumericalFailure), refusals_as_failures():
            if not _outputs(policy, observations).isnan().any():
                return observations
    raise ValueError(
        f"`policy`={type(policy).__name__} has no action distribution for observations of zeros, nor for those drawn "
        "from its observation space, which it is tried on. Let it have one, of equally likely actions where a mask "
        "that is observed excludes all, say."
    )


def require_products(policy: ActorCriticPolicy, observations: PyTorchObs, parameters: ParameterVector) -> None:
    """
    Check that a policy's outputs can be differentiated twice, as products with F through autograd require.

    :param policy: SB3 actor-critic policy
    :param observations: at least one row
    :param parameters: those that act
    :raises ValueError: if torch cannot do so, or an operation's backward pass cannot be differentiated itself
    """
    if any(parameter.is_complex() for parameter in parameters.tensors):
        raise ValueError(
            f"`policy`={type(policy).__name__} has complex parameters that act, and the Fisher is that of real ones. "
            "Keep real and imaginary parts as two parameters."
        )
    try:
        _try_products(policy, observations, parameters)
    except RuntimeError as error:
        try:
            # Zeros may lie on a kink, where prelu takes its first and second derivatives from different sides.
            _try_products(policy, uneven_observations(observations), parameters)
        except RuntimeError:
            raise ValueError(
                f"`policy`={type(policy).__name__} computes something that torch cannot differentiate twice, and "
                f"products with the Fisher are second derivatives: {error}. Write it in operations that it can, such "
                "as th.linalg.vector_norm of differences in the place of th.cdist."
            ) from error
    with th.no_grad():  # a policy that keeps its last outputs could not be copied with their graph
        _outputs(policy, observations)


def _try_products(policy: ActorCriticPolicy, observations: PyTorchObs, parameters: ParameterVector) -> None:
    """Raise a RuntimeError if J cannot be computed, or lacks derivatives that Jᵀ has."""
    with th.enable_grad():
        _require_whole(Linearization(_outputs(policy, observations), parameters))


def _require_whole(linearization: Linearization) -> None:
    """
    Check that J has all derivatives that Jᵀ has: if a backward pass leaves torch, J silently lacks some.

    With w = Jᵀu, and v made of w_l / ‖w_l‖² for each tensor l of θ, uᵀJv is their number, whatever their scales.

    :param linearization: of the outputs
    :raises RuntimeError: if J lacks something, or torch refuses
    """
    outputs, parameters = linearization.outputs, linearization.parameters
    with th.no_grad():
        u = th.cos(th.arange(outputs.numel(), dtype=th.float64, device=outputs.device)).to(outputs).view_as(outputs)
    pulled = [part.double() for part in parameters.split(linearization.pull(u))]
    squares = th.stack([part.square().sum() for part in pulled])
    squares = th.where(squares.isfinite(), squares, 0.0)
    # A gradient that is zero up to rounding, such as that of the keys' bias in attention, is no evidence either.
    rounding = (_ROUNDINGS * th.finfo(outputs.dtype).eps) ** 2 * squares.max()
    reached = squares > rounding.clamp_min(_LEAST_SQUARE)
    parts = [
        th.where(known, part / square, 0.0).flatten()
        for part, square, known in zip(pulled, squares, reached, strict=True)
    ]
    tangent = linearization.push(th.cat(parts).to(outputs))
    missing = float(reached.sum() - (u.double() * tangent.double()).sum())
    if abs(missing) > _MOST_MISSING:
        raise RuntimeError("a part of the derivatives is lost")


def _outputs(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor:
    """Return the outputs of n rows, shape (n, k), with their graph where gradients are enabled."""
    distribution = policy.get_distribution(observations)
    return make_output_fisher(distribution).outputs(distribution)
