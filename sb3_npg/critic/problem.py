"""The regression of a value function as a problem for the Fisher solvers."""

import functools

import torch as th

from sb3_npg.critic.values import Values
from sb3_npg.fisher import FeedForwardLayers, LayeredFisher, RolloutFisher, memory_budget_of, split_rows
from sb3_npg.linalg import FisherChain
from sb3_npg.parameters import ParameterVector
from sb3_npg.solvers import ScaledProblem


class ValueProblem:
    """
    The regression of a value function on returns, seen from its present parameters θ₀.

    ::

        loss(θ) = mean_n (V_θ(s_n) − R_n)²
        F = (1/N) Σ_n J_nᵀ J_n,  J_n = ∂V(s_n)/∂θ   the Gauss–Newton matrix of half the loss: the Fisher of a
                                                    Gaussian with mean V and standard deviation one
        g = (1/N) Σ_n J_nᵀ (R_n − V(s_n))           minus the gradient of half the loss

    A :class:`~sb3_npg.solvers.base.Problem`: any solver of (F + λI) x = g for a policy works for a critic too.

    Schulman et al. (2016), High-Dimensional Continuous Control Using Generalized Advantage Estimation, section 5.

    :param values: V on the n rows
    :param returns: R, shape (n,)
    :param memory_budget: bytes that one chunk of rows may take while it is differentiated; None for 256 MiB, or an
        eighth of a GPU's memory
    """

    scale = 1.0

    def __init__(self, values: Values, returns: th.Tensor, memory_budget: int | None = None):
        self.values = values
        self.returns = returns.unsqueeze(1)
        self.n_rows = values.n_rows
        self._memory_budget = memory_budget_of(returns.device) if memory_budget is None else memory_budget
        self._chunk_rows = values.rows_within(self._memory_budget)
        self._chunks = split_rows(self.n_rows, self._chunk_rows)
        self.refresh()

    @property
    def vector(self) -> ParameterVector:
        """The parameters θ as one vector."""
        return self.values.parameters

    def refresh(self) -> None:
        """Move θ₀ to the present parameters."""
        self._model = self.values.model()
        self._fisher = RolloutFisher(self._model, self._chunk_rows)
        self._layers: LayeredFisher | FeedForwardLayers | None = None

    @th.no_grad()
    def residuals(self) -> th.Tensor:
        """Return R − V at the present parameters, shape (n, 1)."""
        return self.returns - th.cat([self._model.outputs(rows) for rows in self._chunks])

    def loss(self) -> th.Tensor:
        """Return mean (V − R)² at the present parameters, shape ()."""
        return self.residuals().square().mean()

    def gradient(self) -> th.Tensor:
        """Return g at θ₀, shape (p,)."""
        return functools.reduce(th.add, map(self._gradient_of, self._chunks)) / self.n_rows

    def _gradient_of(self, rows: slice) -> th.Tensor:
        jacobian = self._model.jacobian(rows)
        return jacobian.pull(self.returns[rows] - jacobian.outputs.detach())

    def fisher_vector_product(self, vector: th.Tensor) -> th.Tensor:
        """Return F v at θ₀, for v of shape (p,)."""
        return self._fisher.product(vector)

    def fisher_chain(self) -> FisherChain | None:
        """Return F at θ₀ as a chain of layers; None if it is not one."""
        return self._fisher.chain()

    def dense_fisher(self) -> th.Tensor:
        """Return F at θ₀, shape (p, p)."""
        return self._fisher.dense()

    @property
    def layers(self) -> LayeredFisher | FeedForwardLayers:
        """F at θ₀, layer by layer."""
        if self._layers is None:
            self._layers = self.values.layers(self._chunk_rows, self._memory_budget)
        return self._layers


class ProximalProblem:
    """
    The regression held near its initial parameters θ₁: ½ loss(θ) + ½ λ‖S(θ − θ₁)‖².

    :param regression: the regression, at θ₁
    :param scale: diagonal of S, shape (p,)
    :param damping: λ
    """

    def __init__(self, regression: ValueProblem, scale: th.Tensor, damping: float):
        self.regression = regression
        #: The regression in the coordinates Sθ, in which λ damps all parameters alike.
        self.problem = ScaledProblem(regression, scale)
        self.damping = damping
        self._start = regression.vector.get()

    def value(self) -> float:
        """Return the objective at the present parameters."""
        loss, squared = th.stack([self.regression.loss(), self._moved().square().sum()]).tolist()
        return 0.5 * float(loss) + 0.5 * self.damping * float(squared)

    def gradient(self) -> th.Tensor:
        """Return minus the objective's gradient at the problem's θ₀, where the parameters must be, shape (p,)."""
        return self.regression.gradient() - self.damping * self.problem.scale * self._moved()

    def _moved(self) -> th.Tensor:
        """Return S(θ − θ₁)."""
        return self.problem.scale * (self.regression.vector.get() - self._start)
