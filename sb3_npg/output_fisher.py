"""
The Fisher information of an action distribution with respect to its own parameters, in closed form.

A policy maps a state to the *outputs* z of shape (k,): mean and log standard deviation of a Gaussian,
logits of a categorical or Bernoulli distribution. The Fisher of the policy's weights is then
F = E_s[Jᵀ F_out J] with J = ∂z/∂θ and F_out (k × k) the matrix of this module. This is the only file
that knows SB3's distributions.

Amari (1998), Natural Gradient Works Efficiently in Learning, section 2;
Martens (2020), New Insights and Perspectives on the Natural Gradient Method, section 9.
"""

from abc import ABC, abstractmethod

import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from torch.nn import functional as F


class OutputFisher(ABC):
    """F_out of one family of distributions, for n states at once. Rows are states."""

    @abstractmethod
    def parts(self, distribution: Distribution) -> tuple[th.Tensor, ...]:
        """
        Read the outputs from an SB3 distribution, with their graph, in the parts that have graphs of their own.

        SB3's policies hand back one mutable distribution object; the tensors returned here are values.

        :param distribution: of n states
        :return: tensors of shape (n, k_i)
        """

    def outputs(self, distribution: Distribution) -> th.Tensor:
        """
        Read the outputs z: all parts, joined.

        :param distribution: of n states
        :return: shape (n, k)
        """
        return th.cat(self.parts(distribution), dim=1)

    def noise_jacobian(self, distribution: Distribution, noise: th.Tensor) -> th.Tensor | None:
        """
        Differentiate the outputs by the parameter that scales SB3's exploration noise, in closed form.

        :param distribution: of n states
        :param noise: the policy's ``log_std``, which is read as a matrix of m rows and b columns
        :return: shape (n, m, b, r), where column j of the matrix moves r log standard deviations of its own;
            None if the distribution has no such parameter
        """
        return None

    @abstractmethod
    def product(self, outputs: th.Tensor, vectors: th.Tensor) -> th.Tensor:
        """
        Multiply by F_out, state by state.

        :param outputs: z, shape (n, k)
        :param vectors: u, shape (n, k)
        :return: F_out u, shape (n, k)
        """

    @abstractmethod
    def root(self, outputs: th.Tensor) -> th.Tensor:
        """
        Factorise F_out = B Bᵀ with as few columns as the rank of F_out.

        :param outputs: z, shape (n, k)
        :return: B, shape (n, k, r)
        """

    @abstractmethod
    def kl(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        """
        KL(π_old ‖ π_new) in nats, summed over action dimensions.

        :param old: outputs of the old policy, shape (n, k)
        :param new: outputs of the new policy, shape (n, k)
        :return: shape (n,)
        """


class GaussianFisher(OutputFisher):
    """
    Diagonal Gaussian with z = (μ, log σ): F_out = diag(1/σ², 2).

    Serves gSDE in every form, where σ depends on the state: the chain rule from its parameters to
    log σ is autograd's. SB3 stops the gradient at the features in σ(s) unless ``learn_features``; J stops there
    too. A tanh after the Gaussian is a bijection and changes neither Fisher nor KL.
    """

    def parts(self, distribution: Distribution) -> tuple[th.Tensor, ...]:
        """Return μ and log σ."""
        normal = _normal(distribution)
        return normal.mean, normal.stddev.log()

    def noise_jacobian(self, distribution: Distribution, noise: th.Tensor) -> th.Tensor | None:
        """
        Return ∂log σ / ∂log_std: 1 for a plain Gaussian. gSDE: h² σ(ls) dσ/dls / (h²ᵀσ(ls)² + ε), features h.

        Raffin, Kober & Stulp (2022), Smooth Exploration for Robotic Reinforcement Learning, section 3.
        """
        variance = _normal(distribution).variance.detach()
        if not isinstance(distribution, StateDependentNoiseDistribution):
            return th.ones_like(variance).view(len(variance), 1, -1, 1)
        features = distribution._latent_sde.detach()
        with th.enable_grad():
            log_std = noise.detach().expand(features.shape[1], variance.shape[1]).clone().requires_grad_()
            std = distribution.get_std(log_std)
            (slope,) = th.autograd.grad(std.sum(), log_std)
        jacobian = features.square().unsqueeze(2) * (std.detach() * slope) / variance.unsqueeze(1)
        # A column each has its own action; a single column has all of them.
        return jacobian.unsqueeze(3) if distribution.full_std else jacobian.unsqueeze(2)

    def product(self, outputs: th.Tensor, vectors: th.Tensor) -> th.Tensor:
        """Return (u_μ / σ², 2 u_logσ)."""
        log_std = outputs.chunk(2, dim=1)[1]
        mean_part, log_std_part = vectors.chunk(2, dim=1)
        return th.cat([mean_part * (-2.0 * log_std).exp(), 2.0 * log_std_part], dim=1)

    def root(self, outputs: th.Tensor) -> th.Tensor:
        """Return diag(1/σ, √2)."""
        log_std = outputs.chunk(2, dim=1)[1]
        return th.diag_embed(th.cat([(-log_std).exp(), th.full_like(log_std, 2.0**0.5)], dim=1))

    def kl(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        """Σ_d r + (e^(−2r) − 1)/2 + (Δμ)²/(2σ_new²), with r = log σ_new − log σ_old."""
        old_mean, old_log_std = old.chunk(2, dim=1)
        new_mean, new_log_std = new.chunk(2, dim=1)
        log_ratio = new_log_std - old_log_std
        # expm1 keeps the digits of a small KL that the textbook form cancels away.
        spread = log_ratio + 0.5 * th.expm1(-2.0 * log_ratio)
        shift = 0.5 * ((new_mean - old_mean) * (-new_log_std).exp()).square()
        return (spread + shift).sum(dim=1)


class CategoricalFisher(OutputFisher):
    """Categorical with logits z and p = softmax(z): F_out = diag(p) − p pᵀ, of rank C − 1."""

    def parts(self, distribution: Distribution) -> tuple[th.Tensor, ...]:
        """Return the logits."""
        categorical = distribution.distribution
        if not isinstance(categorical, th.distributions.Categorical):
            raise TypeError(f"expected a Categorical distribution, got {type(categorical).__name__}")
        return (categorical.logits,)

    def product(self, outputs: th.Tensor, vectors: th.Tensor) -> th.Tensor:
        """Return p∘u − p (pᵀu)."""
        probabilities = outputs.softmax(dim=1)
        weighted = probabilities * vectors
        return weighted - probabilities * weighted.sum(dim=1, keepdim=True)

    def root(self, outputs: th.Tensor) -> th.Tensor:
        """
        Return the Cholesky factor without its zero column, shape (n, C, C − 1).

        With q_j = Σ_{i>j} p_i: B_jj = √(p_j q_j / q_{j−1}), B_ij = −p_i √(p_j / (q_{j−1} q_j)) for i > j.
        Tanabe & Sagae (1992), An exact Cholesky decomposition and the generalized inverse of the
        variance–covariance matrix of the multinomial distribution.
        """
        probabilities = outputs.softmax(dim=1)
        # Tail sums from the end: no cancellation when one action has all the probability.
        from_here = probabilities.flip(1).cumsum(1).flip(1)
        tail, head = from_here[:, 1:], from_here[:, :-1]
        leading = probabilities[:, :-1]
        tiny = th.finfo(outputs.dtype).tiny
        diagonal = (leading / head.clamp_min(tiny)).sqrt() * tail.sqrt()
        below = (leading / head.clamp_min(tiny)).sqrt() / tail.clamp_min(tiny).sqrt()
        columns = -probabilities.unsqueeze(2) * below.unsqueeze(1)
        factor = columns.tril(-1)
        factor.diagonal(dim1=1, dim2=2).copy_(diagonal)
        return factor

    def kl(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        """Σ_a p_old(a) (log p_old(a) − log p_new(a))."""
        old_log_p, new_log_p = old.log_softmax(dim=1), new.log_softmax(dim=1)
        return (old_log_p.exp() * (old_log_p - new_log_p)).sum(dim=1)


class MultiCategoricalFisher(OutputFisher):
    """
    Independent categoricals side by side: F_out is block diagonal.

    :param action_dims: number of actions of each categorical
    """

    def __init__(self, action_dims: list[int]):
        self.action_dims = [int(n) for n in action_dims]
        self.block = CategoricalFisher()

    def parts(self, distribution: Distribution) -> tuple[th.Tensor, ...]:
        """Return the logits of each categorical."""
        categoricals = distribution.distribution
        if not isinstance(categoricals, list):
            raise TypeError(f"expected a list of Categorical distributions, got {type(categoricals).__name__}")
        return tuple(categorical.logits for categorical in categoricals)  # type: ignore[attr-defined]

    def product(self, outputs: th.Tensor, vectors: th.Tensor) -> th.Tensor:
        """Multiply block by block."""
        pairs = zip(th.split(outputs, self.action_dims, dim=1), th.split(vectors, self.action_dims, dim=1), strict=True)
        return th.cat([self.block.product(z, u) for z, u in pairs], dim=1)

    def root(self, outputs: th.Tensor) -> th.Tensor:
        """Return the block-diagonal root, with Σ(C_i − 1) columns."""
        factor = outputs.new_zeros(len(outputs), sum(self.action_dims), sum(n - 1 for n in self.action_dims))
        row = column = 0
        for n, logits in zip(self.action_dims, th.split(outputs, self.action_dims, dim=1), strict=True):
            factor[:, row : row + n, column : column + n - 1] = self.block.root(logits)
            row, column = row + n, column + n - 1
        return factor

    def kl(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        """Sum the KL of the categoricals."""
        pairs = zip(th.split(old, self.action_dims, dim=1), th.split(new, self.action_dims, dim=1), strict=True)
        return th.stack([self.block.kl(p, q) for p, q in pairs]).sum(dim=0)


class BernoulliFisher(OutputFisher):
    """Independent Bernoullis with logits z and p = sigmoid(z): F_out = diag(p (1 − p))."""

    def parts(self, distribution: Distribution) -> tuple[th.Tensor, ...]:
        """Return the logits."""
        bernoulli = distribution.distribution
        if not isinstance(bernoulli, th.distributions.Bernoulli):
            raise TypeError(f"expected a Bernoulli distribution, got {type(bernoulli).__name__}")
        return (bernoulli.logits,)

    def product(self, outputs: th.Tensor, vectors: th.Tensor) -> th.Tensor:
        """Return p (1 − p) ∘ u."""
        return outputs.sigmoid() * (-outputs).sigmoid() * vectors

    def root(self, outputs: th.Tensor) -> th.Tensor:
        """Return diag(√(p (1 − p)))."""
        return th.diag_embed((0.5 * (F.logsigmoid(outputs) + F.logsigmoid(-outputs))).exp())

    def kl(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        """Σ_d p (log p − log q) + (1 − p) (log(1 − p) − log(1 − q))."""
        on = old.sigmoid() * (F.logsigmoid(old) - F.logsigmoid(new))
        off = (-old).sigmoid() * (F.logsigmoid(-old) - F.logsigmoid(-new))
        return (on + off).sum(dim=1)


def _normal(distribution: Distribution) -> th.distributions.Normal:
    """Return the torch distribution inside a Gaussian one."""
    normal = distribution.distribution
    if not isinstance(normal, th.distributions.Normal):
        raise TypeError(f"expected a Normal distribution, got {type(normal).__name__}")
    return normal


def make_output_fisher(distribution: Distribution) -> OutputFisher:
    """
    Choose the closed form that belongs to an SB3 distribution.

    :param distribution: what ``policy.get_distribution`` returns
    :return: its output Fisher
    :raises ValueError: if the distribution is of a kind whose Fisher is not known here
    """
    if isinstance(distribution, (DiagGaussianDistribution, StateDependentNoiseDistribution)):
        return GaussianFisher()
    if isinstance(distribution, CategoricalDistribution):
        return CategoricalFisher()
    if isinstance(distribution, MultiCategoricalDistribution):
        return MultiCategoricalFisher(distribution.action_dims)
    if isinstance(distribution, BernoulliDistribution):
        return BernoulliFisher()
    raise ValueError(
        f"`policy` acts by a {type(distribution).__name__}, whose Fisher information is not known. NPG knows SB3's "
        "Gaussian (squashed or not), gSDE, categorical, multi-categorical and Bernoulli distributions: derive yours "
        "from one of them. For action masks use sb3_contrib.MaskablePPO, for recurrent policies "
        "sb3_contrib.RecurrentPPO."
    )
