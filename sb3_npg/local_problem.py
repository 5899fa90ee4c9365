"""One policy update seen from the policy that collected the data."""

import functools
import math
from collections.abc import Callable
from functools import cached_property, partial

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_npg.actor import ActingRows, make_actor
from sb3_npg.fisher import FeedForwardLayers, LayeredFisher, memory_budget_of, split_rows
from sb3_npg.linalg import FisherChain
from sb3_npg.numerics import NumericalFailure, refusals_as_failures
from sb3_npg.policy_parts import PolicyParts, split_policy
from sb3_npg.trust_region import Evaluation


class LocalProblem:
    """
    The surrogate L, the mean KL and the Fisher F of one policy update, frozen at θ_old.

    ::

        L(θ) = mean_n[ π_θ(a_n|s_n) / π_old(a_n|s_n) · A_n ] + c · mean_n[ H(π_θ(·|s_n)) ]
        KL(θ) = mean_n[ KL(π_old(·|s_n) ‖ π_θ(·|s_n)) ],   summed over action dimensions
        F = mean_n[ J_nᵀ F_out,n J_n ] = ∇² KL(θ_old),        derivatives as autograd takes them

    With gSDE, SB3 detaches the features that the noise is made of: gradient and F leave that path out, the measured
    KL does not, so a step may cost more KL than F predicts. The line search uses the measured KL.

    θ_old is the policy at construction. The policy's train/eval flags are used as they are; they must make
    it deterministic (evaluation mode). All rows count in L, ∇L and KL; F may use a part of them. Rows are
    processed in chunks, so memory is bounded whatever their number.

    Schulman et al. (2015), Trust Region Policy Optimization, sections 4–6.

    ``vector`` holds the parameters that act, as one vector of shape (p,); ``scale`` = 1 says that they are not
    rescaled, unlike those of :class:`~sb3_npg.solvers.scaling.ScaledProblem`.

    :param policy: SB3 actor-critic policy
    :param observations: what the rollout buffer returns, n rows (a tensor or a dict of tensors)
    :param actions: shape (n, action_dim), or (n,) for a Discrete space
    :param advantages: A, shape (n,)
    :param ent_coef: c, weight of the entropy bonus
    :param sub_sampling_factor: k: F uses every k-th row, the same rows in each product
    :param parts: the policy's parts, whose acting parameters are θ; found if None
    :param memory_budget: bytes that one chunk of rows may take while it is differentiated; None for 256 MiB, or an
        eighth of a GPU's memory
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
        parts: PolicyParts | None = None,
        memory_budget: int | None = None,
    ):
        self.policy = policy
        self.observations = observations
        self.actions = actions
        self.advantages = advantages
        self.ent_coef = ent_coef
        self.n_rows = len(advantages)
        parts = split_policy(policy, observations) if parts is None else parts
        self.actor = make_actor(policy, observations, actions, parts.actor_parameters, parts.networks)
        self.metric = self.actor.metric
        self.vector = self.actor.parameters
        self._memory_budget = memory_budget_of(policy.device) if memory_budget is None else memory_budget
        self._chunk_rows = self.actor.rows_within(self._memory_budget)
        self._chunks = split_rows(self.n_rows, self._chunk_rows)
        start = [self.actor.start(rows) for rows in self._chunks]
        self._old_outputs = th.cat([rows.outputs for rows in start])
        self._old_log_prob = th.cat([rows.log_prob for rows in start])
        self._fisher_actor = self.actor.every(sub_sampling_factor)
        self.refresh()
        pairs = zip(start, self._chunks, strict=True)
        self._start_sums = [self._surrogate_of(now, rows).sum() for now, rows in pairs]

    def refresh(self) -> None:
        """Let F use the present parameters: those of θ_old, put back after a trial step."""
        self._fisher = self._fisher_actor.fisher(self._chunk_rows)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters that act, in flat order."""
        return self.vector.tensors

    def old_entropy(self) -> float:
        """Return mean H(π_old(·|s)) in nats; estimated from the actions taken if there is no closed form (tanh)."""
        entropy = self.metric.entropy(self._old_outputs)
        return float((-self._old_log_prob if entropy is None else entropy).mean())

    def surrogate(self) -> th.Tensor:
        """Return L at the policy's present parameters, shape (), with its graph."""
        return self._mean(self._surrogate_of)

    def mean_kl(self) -> th.Tensor:
        """Return mean KL(π_old ‖ π_θ) in nats at the policy's present parameters, shape (), with its graph."""
        return self._mean(self._kl_of)

    def evaluate(self) -> Evaluation:
        """Return L and mean KL at the policy's present parameters; NaN if the distribution is not defined there."""
        return Evaluation(*self.figures().tolist())

    @th.no_grad()
    def figures(self) -> th.Tensor:
        """Return the numbers of :meth:`evaluate`, shape (3,), without waiting for the device."""
        surrogates, kls = [], []
        try:
            with refusals_as_failures():
                for rows in self._chunks:
                    now = self.actor.act(rows)
                    surrogates.append(self._surrogate_of(now, rows).sum())
                    kls.append(self._kl_of(now, rows).sum())
        except NumericalFailure:
            surrogates = kls = [th.full_like(total, math.nan) for total in self._start_sums]
        sums = th.stack([*self._start_sums, *surrogates, *kls]).view(3, -1)
        return sums.sum(dim=1) / self.n_rows

    def surrogate_gradient(self) -> th.Tensor:
        """Return g = ∇L at the policy's present parameters, shape (p,)."""
        gradients = (self.actor.gradient(rows, partial(self._surrogate_of, rows=rows)) for rows in self._chunks)
        return functools.reduce(th.add, gradients) / self.n_rows

    def fisher_vector_product(self, vector: th.Tensor) -> th.Tensor:
        """
        Multiply by the Fisher of θ_old, undamped. Call it before the parameters move.

        :param vector: v, shape (p,)
        :return: F v, shape (p,)
        """
        return self._fisher.product(vector)

    def fisher_chain(self) -> FisherChain | None:
        """Return the Fisher of θ_old as a chain of layers, or None. Call it before the parameters move."""
        return self._fisher.chain()

    def dense_fisher(self) -> th.Tensor:
        """Form the Fisher of θ_old, undamped, shape (p, p). Call it before the parameters move."""
        return self._fisher.dense()

    @cached_property
    def layers(self) -> LayeredFisher | FeedForwardLayers:
        """The Fisher of θ_old layer by layer. Use it before the parameters move."""
        return self._fisher_actor.layers(self._chunk_rows, self._memory_budget)

    def _surrogate_of(self, now: ActingRows, rows: slice) -> th.Tensor:
        ratio = (now.log_prob - self._old_log_prob[rows]).exp()
        surrogate = ratio * self.advantages[rows]
        if self.ent_coef == 0.0:
            return surrogate
        # Squashed actions have no closed form: H = −E_old[ratio · log π], which has the right gradient too.
        entropy = now.entropy()
        return surrogate + self.ent_coef * (-ratio * now.log_prob if entropy is None else entropy)

    def _kl_of(self, now: ActingRows, rows: slice) -> th.Tensor:
        return self.metric.kl(self._old_outputs[rows], now.outputs)

    def _mean(self, per_row: Callable[[ActingRows, slice], th.Tensor]) -> th.Tensor:
        return th.stack([per_row(self.actor.act(rows), rows).sum() for rows in self._chunks]).sum() / self.n_rows
