"""The value function on the rows of a rollout: any policy through autograd, or an MLP by hand."""

from collections.abc import Callable
from functools import cached_property

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_npg.actor import take_rows
from sb3_npg.fisher import (
    Acting,
    ActingModel,
    Jacobian,
    LayeredFisher,
    Linearization,
    MlpJacobian,
    MlpLayers,
    MlpModel,
    MlpRows,
    OutputModel,
    RolloutFisher,
    rows_within,
    split_rows,
)
from sb3_npg.networks import MlpNetworks
from sb3_npg.parameters import ParameterVector


class UnitMetric:
    """F_out of V as the mean of a Gaussian with standard deviation one: the identity."""

    def product_at(self, outputs: th.Tensor) -> Callable[[th.Tensor], th.Tensor]:
        """Return u ↦ u."""
        return lambda vectors: vectors

    def root(self, outputs: th.Tensor) -> th.Tensor:
        """Return ones, shape (n, 1, 1)."""
        return th.ones_like(outputs).unsqueeze(2)


class ValueProblem:
    """
    The regression of a value function on returns, seen from its present parameters θ₀.

    ::

        loss(θ) = mean_n (V_θ(s_n) − R_n)²
        F = (1/N) Σ_n J_nᵀ J_n,  J_n = ∂V(s_n)/∂θ   the Gauss–Newton matrix of half the loss: the Fisher of a
                                                    Gaussian with mean V and standard deviation one
        g = (1/N) Σ_n J_nᵀ (R_n − V(s_n))           minus the gradient of half the loss

    A :class:`~sb3_npg.solvers.base.Problem`: whatever solves (F + λI) x = g for a policy does it for a critic.

    Schulman et al. (2016), High-Dimensional Continuous Control Using Generalized Advantage Estimation, section 5.

    :param policy: SB3 actor-critic policy
    :param observations: n rows
    :param returns: R, shape (n,)
    :param parameters: θ, the parameters that the regression moves
    :param networks: the policy's, if its critic is to be computed by hand
    :param memory_budget: bytes that one chunk of rows may take while it is differentiated
    """

    scale = 1.0

    def __init__(
        self,
        policy: ActorCriticPolicy,
        observations: PyTorchObs,
        returns: th.Tensor,
        parameters: ParameterVector,
        networks: MlpNetworks | None = None,
        memory_budget: int = 2**28,
    ):
        self.policy = policy
        self.returns = returns.unsqueeze(1)
        self.vector = parameters
        self.n_rows = len(returns)
        self._networks = networks
        self._memory_budget = memory_budget
        self.observations = observations
        if networks is not None:
            with th.no_grad():
                self._features = networks.critic_features(observations)
        self._chunk_rows = self._rows_within(memory_budget)
        self._chunks = split_rows(self.n_rows, self._chunk_rows)
        self.refresh()

    def refresh(self) -> None:
        """Move θ₀ to the present parameters."""
        self._kept: tuple[slice, MlpJacobian] | None = None
        self._fisher = RolloutFisher(self._model, self._chunk_rows)
        self.__dict__.pop("layers", None)

    @th.no_grad()
    def loss(self) -> float:
        """Return mean (V − R)² at the present parameters."""
        total = sum(float((self._values(rows) - self.returns[rows]).square().sum()) for rows in self._chunks)
        return total / self.n_rows

    def gradient(self) -> th.Tensor:
        """Return g at θ₀, shape (p,)."""
        total = th.zeros_like(self.vector.get())
        for rows in self._chunks:
            jacobian = self._model.jacobian(rows)
            total += jacobian.pull(self.returns[rows] - jacobian.outputs.detach())
        return total / self.n_rows

    def fisher_vector_product(self, vector: th.Tensor) -> th.Tensor:
        """Return F v at θ₀, for v of shape (p,)."""
        return self._fisher.product(vector)

    def dense_fisher(self) -> th.Tensor:
        """Return F at θ₀, shape (p, p)."""
        return self._fisher.dense()

    @cached_property
    def layers(self) -> LayeredFisher | MlpLayers:
        """F at θ₀, layer by layer."""
        if self._networks is None:
            acting = ActingModel(self.policy, self._act, self._model, None, lambda rows: None)
            return LayeredFisher(acting, self._chunk_rows, self._memory_budget)
        return MlpLayers(MlpModel(self._seen, self._chunks, UnitMetric()))

    @property
    def _model(self) -> OutputModel:
        linearize = None if self._networks is None else self._jacobian
        return OutputModel(self._values, self.n_rows, self.vector, UnitMetric(), linearize)

    def _values(self, rows: slice) -> th.Tensor:
        if self._networks is not None:
            return self._networks.critic(self._features[rows])
        return self.policy.predict_values(take_rows(self.observations, rows))

    def _act(self, rows: slice) -> Acting:
        values = self._values(rows)
        # F_out has a single column, the number one: what stands for a sampled score is exact too.
        return Acting((values,), values.squeeze(1))

    def _jacobian(self, rows: slice) -> Jacobian:
        if self._kept is None or self._kept[0] != rows or not self._kept[1].is_current():
            self._kept = None  # free its memory first
            assert self._networks is not None
            self._kept = rows, MlpJacobian(self._networks.critic, self._features[rows], self.vector)
        return self._kept[1]

    def _seen(self, rows: slice) -> MlpRows:
        jacobian = self._jacobian(rows)
        assert isinstance(jacobian, MlpJacobian)
        return MlpRows(jacobian, jacobian.outputs, lambda: th.ones_like(jacobian.outputs), None)

    def _rows_within(self, budget: int) -> int:
        if self._networks is not None:
            return max(1, min(self.n_rows, budget // (self._networks.critic.bytes_per_row())))
        return rows_within(
            budget, self.n_rows, lambda rows: Linearization(self._values(rows), self.vector), self.policy.parameters()
        )
