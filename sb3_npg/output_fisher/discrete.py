"""Categorical, multi-categorical and Bernoulli distributions."""

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch.nn import functional as F

from sb3_npg.output_fisher.base import OutputFisher, unknown_inside


class CategoricalFisher(OutputFisher):
    """Categorical with logits z and p = softmax(z): F_out = diag(p) − p pᵀ, of rank C − 1."""

    def parts(self, distribution: Distribution) -> tuple[th.Tensor, ...]:
        """Return the logits."""
        categorical = distribution.distribution
        if not isinstance(categorical, th.distributions.Categorical):
            raise unknown_inside(distribution, "Categorical")
        return (categorical.logits,)

    def log_prob(self, outputs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Return log p_a."""
        return outputs.log_softmax(dim=1).gather(1, actions.long().view(-1, 1)).squeeze(1)

    def entropy(self, outputs: th.Tensor) -> th.Tensor:
        """Return −Σ_a p log p."""
        log_p = _finite_log(outputs)
        return -(log_p.exp() * log_p).sum(dim=1)

    def sample(self, outputs: th.Tensor, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Draw from p: among exponential random numbers with rates p, the a-th is the smallest with probability p_a.

        ``torch.multinomial`` draws the same way, but first waits for the device to check p.
        """
        drawn = th.empty_like(outputs).exponential_() if noise is None else noise
        return (outputs.softmax(dim=1) / drawn).argmax(dim=1)

    def pieces(self, noise: th.Tensor) -> tuple[th.Tensor, ...]:
        """Return the parts of a buffer for random numbers: the whole of it, shape (n, C)."""
        return (noise,)

    def weights_at(self, outputs: th.Tensor) -> tuple[th.Tensor, tuple[int, ...]]:
        """Return p, as one group."""
        return outputs.softmax(dim=1), (outputs.shape[1],)

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
        old_log_p, new_log_p = _finite_log(old), _finite_log(new)
        return (old_log_p.exp() * (old_log_p - new_log_p)).sum(dim=1)


def _finite_log(logits: th.Tensor) -> th.Tensor:
    """Return log p, finite where an action is impossible, so that 0 · log 0 = 0."""
    return logits.log_softmax(dim=1).clamp_min(th.finfo(logits.dtype).min)


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
            raise unknown_inside(distribution, "list of Categorical")
        return tuple(categorical.logits for categorical in categoricals)  # type: ignore[attr-defined]

    def log_prob(self, outputs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Sum the log-probabilities of the categoricals."""
        pairs = zip(self._split(outputs), actions.unbind(dim=1), strict=True)
        return th.stack([self.block.log_prob(z, action) for z, action in pairs]).sum(dim=0)

    def entropy(self, outputs: th.Tensor) -> th.Tensor:
        """Sum the entropies of the categoricals."""
        return th.stack([self.block.entropy(z) for z in self._split(outputs)]).sum(dim=0)

    def sample(self, outputs: th.Tensor, noise: th.Tensor | None = None) -> th.Tensor:
        """Draw from each categorical."""
        logits = self._split(outputs)
        drawn = [None] * len(logits) if noise is None else self.pieces(noise)
        return th.stack([self.block.sample(z, e) for z, e in zip(logits, drawn, strict=True)], dim=1)

    def pieces(self, noise: th.Tensor) -> tuple[th.Tensor, ...]:
        """Return each categorical's part of a buffer for random numbers, shapes (n, C_i), consecutive in memory."""
        flat = th.split(noise.view(-1), [len(noise) * n for n in self.action_dims])
        return tuple(piece.view(len(noise), n) for piece, n in zip(flat, self.action_dims, strict=True))

    def weights_at(self, outputs: th.Tensor) -> tuple[th.Tensor, tuple[int, ...]]:
        """Return p of each categorical, as a group."""
        return th.cat([z.softmax(dim=1) for z in self._split(outputs)], dim=1), tuple(self.action_dims)

    def root(self, outputs: th.Tensor) -> th.Tensor:
        """Return the block-diagonal root, with Σ(C_i − 1) columns."""
        factor = outputs.new_zeros(len(outputs), sum(self.action_dims), sum(n - 1 for n in self.action_dims))
        row = column = 0
        for n, logits in zip(self.action_dims, self._split(outputs), strict=True):
            factor[:, row : row + n, column : column + n - 1] = self.block.root(logits)
            row, column = row + n, column + n - 1
        return factor

    def kl(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        """Sum the KL of the categoricals."""
        pairs = zip(self._split(old), self._split(new), strict=True)
        return th.stack([self.block.kl(p, q) for p, q in pairs]).sum(dim=0)

    def _split(self, rows: th.Tensor) -> tuple[th.Tensor, ...]:
        """Cut rows into the parts that belong to each categorical."""
        return th.split(rows, self.action_dims, dim=1)


class BernoulliFisher(OutputFisher):
    """Independent Bernoullis with logits z and p = sigmoid(z): F_out = diag(p (1 − p))."""

    def parts(self, distribution: Distribution) -> tuple[th.Tensor, ...]:
        """Return the logits."""
        bernoulli = distribution.distribution
        if not isinstance(bernoulli, th.distributions.Bernoulli):
            raise unknown_inside(distribution, "Bernoulli")
        return (bernoulli.logits,)

    def log_prob(self, outputs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Σ_d [a log p + (1 − a) log(1 − p)]."""
        return -F.binary_cross_entropy_with_logits(outputs, actions, reduction="none").sum(dim=1)

    def entropy(self, outputs: th.Tensor) -> th.Tensor:
        """Return −Σ_d [p log p + (1 − p) log(1 − p)]."""
        return F.binary_cross_entropy_with_logits(outputs, outputs.sigmoid(), reduction="none").sum(dim=1)

    def sample(self, outputs: th.Tensor, noise: th.Tensor | None = None) -> th.Tensor:
        """Draw each bit."""
        return outputs.sigmoid().bernoulli()

    def weights_at(self, outputs: th.Tensor) -> tuple[th.Tensor, tuple[int, ...]]:
        """Return p (1 − p)."""
        return outputs.sigmoid() * (-outputs).sigmoid(), ()

    def root(self, outputs: th.Tensor) -> th.Tensor:
        """Return diag(√(p (1 − p)))."""
        return th.diag_embed((0.5 * (F.logsigmoid(outputs) + F.logsigmoid(-outputs))).exp())

    def kl(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        """Σ_d [p (log p − log q) + (1 − p) (log(1 − p) − log(1 − q))], with p of the old and q of the new policy."""
        on = old.sigmoid() * (F.logsigmoid(old) - F.logsigmoid(new))
        off = (-old).sigmoid() * (F.logsigmoid(-old) - F.logsigmoid(-new))
        return (on + off).sum(dim=1)
