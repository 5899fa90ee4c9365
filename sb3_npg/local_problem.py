"""One policy update seen from the policy that collected the data."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_npg.fisher import (
    Acting,
    ActingModel,
    AutogradFisher,
    LayeredFisher,
    Linearization,
    OutputModel,
    rows_within,
    split_rows,
)
from sb3_npg.output_fisher import make_output_fisher
from sb3_npg.parameters import ParameterVector, reached_parameters
from sb3_npg.trust_region import Evaluation

#: Bytes that autograd may keep for one chunk of rows. Chunks are cut so that their graph fits.
MEMORY_BUDGET = 2**28


class _Rows(NamedTuple):
    """The action distribution of some rows, as tensors with their graph: (n, k), (n,) and (n,)."""

    outputs: th.Tensor
    log_prob: th.Tensor
    entropy: th.Tensor | None


class LocalProblem:
    """
    The surrogate L, the mean KL and the Fisher F of one policy update, frozen at θ_old.

    ::

        L(θ) = mean_n[ π_θ(a_n|s_n) / π_old(a_n|s_n) · A_n ] + c · mean_n[ H(π_θ(·|s_n)) ]
        KL(θ) = mean_n[ KL(π_old(·|s_n) ‖ π_θ(·|s_n)) ],   summed over action dimensions
        F = mean_n[ J_nᵀ F_out,n J_n ] = ∇² KL(θ_old),        derivatives as autograd takes them

    With gSDE, SB3 detaches the features that the noise is made of: gradient and F leave that path out, the measured
    KL does not, so a step may cost more KL than F predicts. The line search measures it.

    θ_old is the policy at construction. The policy's train/eval flags are used as they are; they must make
    it deterministic (evaluation mode). All rows count in L, ∇L and KL; F may use a part of them. Rows are
    processed in chunks, so memory is bounded whatever their number.

    Schulman et al. (2015), Trust Region Policy Optimization, sections 4–6.

    ``vector`` holds the parameters that act, as one vector of shape (p,); ``scale`` says that the coordinates are
    these parameters themselves.

    :param policy: SB3 actor-critic policy
    :param observations: what the rollout buffer returns, n rows (a tensor or a dict of tensors)
    :param actions: shape (n, action_dim), or (n,) for a Discrete space
    :param advantages: A, shape (n,)
    :param ent_coef: c, weight of the entropy bonus
    :param sub_sampling_factor: F uses every so-many-th row; the same rows in each product
    :param parameters: θ, the parameters that act; found by following the graph if not given
    :param memory_budget: bytes that autograd may keep for one chunk of rows
    :raises ValueError: if the policy's distribution is of a kind whose Fisher is not known
    """

    scale = 1.0

    def __init__(
        self,
        policy: ActorCriticPolicy,
        observations: PyTorchObs,
        actions: th.Tensor,
        advantages: th.Tensor,
        *,
        ent_coef: float = 0.0,
        sub_sampling_factor: int = 1,
        parameters: ParameterVector | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ):
        self.policy = policy
        self.observations = observations
        self.actions = actions
        self.advantages = advantages
        self.ent_coef = ent_coef
        self.n_rows = len(advantages)
        with th.no_grad():
            self.metric = make_output_fisher(policy.get_distribution(take_rows(observations, slice(0, 1))))
        self.vector = acting_parameters(policy, observations) if parameters is None else parameters
        chunk_rows = rows_within(
            memory_budget,
            self.n_rows,
            lambda rows: Linearization(self._forward(rows).outputs, self.vector),
            policy.parameters(),
        )
        self._chunks = split_rows(self.n_rows, chunk_rows)
        self._old_outputs, self._old_log_prob = self._snapshot()
        fisher_rows = slice(None, None, sub_sampling_factor)
        self._fisher_observations = take_rows(observations, fisher_rows)
        self._fisher_actions = actions[fisher_rows]
        self._fisher = AutogradFisher(
            OutputModel(
                outputs=lambda rows: self.metric.outputs(policy.get_distribution(self._seen_in(rows))),
                n_rows=len(self._fisher_actions),
                parameters=self.vector,
                metric=self.metric,
            ),
            chunk_rows,
        )
        self._chunk_rows, self._memory_budget = chunk_rows, memory_budget

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters that act, in flat order."""
        return self.vector.tensors

    def surrogate(self) -> th.Tensor:
        """Return L at the policy's present parameters, shape (), with its graph."""
        return self._mean(self._surrogate_of)

    def mean_kl(self) -> th.Tensor:
        """Return mean KL(π_old ‖ π_θ) in nats at the policy's present parameters, shape (), with its graph."""
        return self._mean(self._kl_of)

    def evaluate(self) -> Evaluation:
        """Return L and mean KL at the policy's present parameters; NaN where the policy has none."""
        surrogate = mean_kl = 0.0
        with th.no_grad():
            for rows in self._chunks:
                try:
                    now = self._forward(rows)
                except ValueError:  # torch's distributions refuse NaN
                    return Evaluation(math.nan, math.nan)
                surrogate += float(self._surrogate_of(now, rows).sum())
                mean_kl += float(self._kl_of(now, rows).sum())
        return Evaluation(surrogate / self.n_rows, mean_kl / self.n_rows)

    def surrogate_gradient(self) -> th.Tensor:
        """Return g = ∇L at the policy's present parameters, shape (p,)."""
        total = th.zeros_like(self.vector.get())
        for rows in self._chunks:
            with th.enable_grad():
                surrogate = self._surrogate_of(self._forward(rows), rows).sum()
                gradients = th.autograd.grad(surrogate, self.parameters, materialize_grads=True)
            total += self.vector.flatten(gradients)
        return total / self.n_rows

    def fisher_vector_product(self, vector: th.Tensor) -> th.Tensor:
        """
        Multiply by the Fisher of θ_old, undamped. Call it before the parameters move.

        :param vector: v, shape (p,)
        :return: F v, shape (p,)
        """
        return self._fisher.product(vector)

    def dense_fisher(self) -> th.Tensor:
        """Form the Fisher of θ_old, undamped, shape (p, p). Call it before the parameters move."""
        return self._fisher.dense()

    @cached_property
    def layers(self) -> LayeredFisher:
        """The Fisher of θ_old layer by layer. Use it before the parameters move."""
        acting = ActingModel(
            module=self.policy,
            act=self._act,
            model=self._fisher.model,
            noise=getattr(self.policy, "log_std", None),
            noise_jacobian=self._noise_jacobian,
        )
        return LayeredFisher(acting, self._chunk_rows, self._memory_budget)

    def _act(self, rows: slice) -> Acting:
        distribution = self.policy.get_distribution(self._seen_in(rows))
        return Acting(self.metric.parts(distribution), distribution.log_prob(self._fisher_actions[rows]))

    def _noise_jacobian(self, rows: slice) -> th.Tensor | None:
        distribution = self.policy.get_distribution(self._seen_in(rows))
        return self.metric.noise_jacobian(distribution, self.policy.log_std)

    def _seen_in(self, rows: slice) -> PyTorchObs:
        """Return the observations of some of the Fisher's rows."""
        return take_rows(self._fisher_observations, rows)

    def _forward(self, rows: slice) -> _Rows:
        distribution = self.policy.get_distribution(take_rows(self.observations, rows))
        log_prob = distribution.log_prob(self.actions[rows])
        entropy = distribution.entropy() if self.ent_coef != 0.0 else None
        return _Rows(self.metric.outputs(distribution), log_prob, entropy)

    @th.no_grad()
    def _snapshot(self) -> tuple[th.Tensor, th.Tensor]:
        """Evaluate π_old, shapes (n, k) and (n,)."""
        chunks = [self._forward(rows) for rows in self._chunks]
        return th.cat([chunk.outputs for chunk in chunks]), th.cat([chunk.log_prob for chunk in chunks])

    def _surrogate_of(self, now: _Rows, rows: slice) -> th.Tensor:
        ratio = (now.log_prob - self._old_log_prob[rows]).exp()
        surrogate = ratio * self.advantages[rows]
        if self.ent_coef == 0.0:
            return surrogate
        # Squashed actions have no closed form: H = −E_old[ratio · log π], which has the right gradient too.
        entropy = -ratio * now.log_prob if now.entropy is None else now.entropy
        return surrogate + self.ent_coef * entropy

    def _kl_of(self, now: _Rows, rows: slice) -> th.Tensor:
        return self.metric.kl(self._old_outputs[rows], now.outputs)

    def _mean(self, per_row: Callable[[_Rows, slice], th.Tensor]) -> th.Tensor:
        return th.stack([per_row(self._forward(rows), rows).sum() for rows in self._chunks]).sum() / self.n_rows


def take_rows(observations: PyTorchObs, rows: slice) -> PyTorchObs:
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
