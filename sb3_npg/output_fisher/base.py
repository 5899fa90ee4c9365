"""The closed forms of a family of action distributions."""

from abc import ABC, abstractmethod

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn


class OutputFisher(ABC):
    """F_out of one family of distributions, for n states at once. Rows are states."""

    @abstractmethod
    def parts(self, distribution: Distribution) -> tuple[th.Tensor, ...]:
        """
        Read the outputs from an SB3 distribution, with their graphs, in parts that have separate graphs.

        SB3's policies return the same mutable distribution object each time; the tensors returned here do not change.

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

    def is_defined(self, outputs: th.Tensor) -> th.Tensor:
        """Tell whether outputs, shape (n, k), are those of a distribution: no NaN, no infinity. A boolean, shape ()."""
        return th.isfinite(outputs).all()

    @abstractmethod
    def log_prob(self, outputs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Evaluate log π(a|s) of a plain SB3 distribution, from its outputs.

        :param outputs: z, shape (n, k)
        :param actions: shape (n, action_dim), or (n,) for a Discrete space
        :return: shape (n,)
        """

    @abstractmethod
    def entropy(self, outputs: th.Tensor) -> th.Tensor | None:
        """
        Evaluate the entropy of a plain SB3 distribution, from its outputs.

        :param outputs: z, shape (n, k)
        :return: in nats, shape (n,); None if it has no closed form
        """

    @abstractmethod
    def sample(self, outputs: th.Tensor, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Draw actions as a plain SB3 distribution does: the same random numbers, the same actions.

        :param outputs: z, shape (n, k)
        :param noise: random numbers drawn beforehand: those of gSDE, which always are, shape (n, action_dim), or of
            categoricals, shape (n, k)
        :return: shape (n, action_dim), or (n,) for a Discrete space
        """

    def noise_jacobian(self, distribution: Distribution, noise: nn.Parameter) -> th.Tensor | None:
        """
        Differentiate log σ with respect to the parameter that scales SB3's exploration noise, in closed form.

        :param distribution: of n states
        :param noise: the policy's ``log_std``, which is read as a matrix of m rows and b columns
        :return: shape (n, m, b, r), where column j of the matrix moves r log standard deviations of its own;
            None if the distribution has no such parameter
        """
        return None

    @abstractmethod
    def weights_at(self, outputs: th.Tensor) -> tuple[th.Tensor, tuple[int, ...]]:
        """
        Return the numbers that define F_out, state by state.

        :param outputs: z, shape (n, k)
        :return: the diagonal d of F_out = diag(d), shape (n, k), and no groups; or probabilities p and the sizes of
            the groups for which F_out = diag(p) − p pᵀ
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


def unknown_inside(distribution: Distribution, expected: str) -> ValueError:
    """
    Return the error that an SB3 distribution holds another torch distribution than its closed form is of.

    :param distribution: SB3's
    :param expected: what it should hold
    """
    return ValueError(
        f"`policy` acts by a {type(distribution).__name__} whose `distribution` is a "
        f"{type(distribution.distribution).__name__}, and the Fisher information is known for a {expected} there. Let "
        "it hold one, as SB3's own do."
    )
