"""Backends for the linear algebra of the solvers: torch is the reference, CuPy is faster on a GPU."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch as th

from sb3_npg.linalg.chain import FisherChain
from sb3_npg.linalg.kronecker import Eigen, rotate, rotate_back, symmetric_eigen
from sb3_npg.linalg.krylov import ConjugateGradientResult, Operator, conjugate_gradient
from sb3_npg.user_warnings import warn_user

#: Values of ``backend``.
BACKENDS = ("auto", "cupy", "torch")


class KroneckerSystem(NamedTuple):
    """
    (A ⊗ G + λI) x = v in the eigenbasis of A ⊗ G.

    :param left: eigendecomposition of G, shape (g, g)
    :param right: eigendecomposition of A, shape (a, a)
    :param values: the eigenvalues of the system, shape (g, a); None for the products of those of G and A
    :param matrix: v, shape (g, a)
    """

    left: Eigen
    right: Eigen
    values: th.Tensor | None
    matrix: th.Tensor


class FactoredChain(Protocol):
    """K-FAC of a chain of layers, measured at once and solved at once. An update overwrites earlier results."""

    #: A and G of each layer that is trained.
    factors: list[tuple[th.Tensor, th.Tensor]]

    @property
    def eigens(self) -> dict[int, tuple[Eigen, Eigen]]:
        """The decompositions of A and G by layer number, for the layers that are decomposed."""
        ...

    @property
    def noise(self) -> Eigen | None:
        """The decomposition of the noise's blocks; None if there is no noise."""
        ...

    def serves(self, chain: FisherChain) -> bool:
        """Tell whether a chain differs from the one that this was made for only in its numbers."""
        ...

    def update(self, chain: FisherChain) -> None:
        """Measure and decompose."""
        ...

    def solve(self, vector: th.Tensor, damping: float) -> th.Tensor:
        """Return the damped inverse times v, shape (p,); not finite if there is no inverse."""
        ...


class LinearAlgebra:
    """The linear algebra of the solvers by torch, on any device; other backends agree up to rounding."""

    name = "torch"

    def __deepcopy__(self, memo: object) -> "LinearAlgebra":
        """Return the backend itself: solvers can share it."""
        return self

    def __reduce__(self) -> tuple[Callable[..., "LinearAlgebra"], tuple[str, th.device]]:
        """Let pickled solvers continue with torch, wherever they are loaded."""
        return make_linalg, ("torch", th.device("cpu"))

    def conjugate_gradient(
        self,
        matvec: Operator,
        b: th.Tensor,
        max_steps: int,
        rtol: float = 0.0,
        preconditioner: Operator | None = None,
        x0: th.Tensor | None = None,
        shift: float = 0.0,
        chain: Callable[[], FisherChain | None] | None = None,
    ) -> ConjugateGradientResult:
        """
        Solve (A + σI) x = b; see :func:`~sb3_npg.linalg.conjugate_gradient`.

        :param chain: returns A as a chain of layers, None if it is not one; a backend may use it instead of ``matvec``
        """
        return conjugate_gradient(matvec, b, max_steps, rtol, preconditioner, x0, shift)

    def symmetric_eigens(self, matrices: Sequence[th.Tensor]) -> list[Eigen]:
        """
        Decompose several matrices; see :func:`~sb3_npg.linalg.symmetric_eigen`.

        :param matrices: symmetric positive semi-definite, of any sizes
        :return: their eigendecompositions
        :raises ArithmeticError: if one cannot be decomposed; a backend may leave NaN in its place instead
        """
        return [symmetric_eigen(matrix) for matrix in matrices]

    def kronecker_solves(self, systems: Sequence[KroneckerSystem], damping: float) -> list[th.Tensor]:
        """
        Solve several damped Kronecker systems.

        :param systems: of any sizes
        :param damping: λ ≥ 0
        :return: x for each, of the shape of its ``matrix``
        """
        return [_kronecker_solve(system, damping) for system in systems]

    def kronecker_factors(self, chain: Callable[[], FisherChain | None]) -> list[tuple[th.Tensor, th.Tensor]] | None:
        """
        Measure K-FAC's factors of all layers of a chain at once, with all columns of F_out's root.

        :param chain: returns F as a chain of layers, or None if it is not one
        :return: A = 1/N Σ_n ã ãᵀ and G = 1/N Σ_n Σ_c δ δᵀ of each layer that is trained; None if this backend cannot
            measure such a chain
        """
        return None

    def factored_chain(self, chain: FisherChain, largest_eigen: int) -> FactoredChain | None:
        """
        Prepare K-FAC for chains of one kind, for a single solver's use.

        :param chain: an example of the chains to come
        :param largest_eigen: layers with a factor of more rows than this use Cholesky with the damping split
        :return: K-FAC of such chains; None if this backend has nothing better for them than the separate steps
        """
        return None

    def factored_solves(
        self, factors: Sequence[tuple[th.Tensor, th.Tensor]], matrices: Sequence[th.Tensor], damping: float
    ) -> list[th.Tensor] | None:
        """
        Solve (A + λ_A I) ⊗ (G + λ_G I) x = v of several layers at once, with λ split as in ``factored_damping``.

        :param factors: A of shape (a, a) and G of shape (g, g)
        :param matrices: v, shape (g, a)
        :param damping: λ ≥ 0
        :return: x for each, NaN if a factor is not positive definite; None if this backend cannot solve such sizes
        """
        return None


def _kronecker_solve(system: KroneckerSystem, damping: float) -> th.Tensor:
    left, right, values, matrix = system
    values = th.outer(left.values, right.values) if values is None else values
    return rotate_back(left, rotate(left, matrix, right) / (values + damping), right)


TORCH = LinearAlgebra()


def make_linalg(backend: str, device: th.device) -> LinearAlgebra:
    """
    Choose the backend for the linear algebra.

    :param backend: "torch"; "cupy"; "auto", which is CuPy on a CUDA device, or torch with a warning if CuPy fails there
    :param device: where the policy is
    :return: the linear algebra
    :raises ValueError: if "cupy" is asked for and cannot be used
    """
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return TORCH
    if device.type != "cuda":
        raise ValueError(
            f"`backend`={backend!r} needs the policy on a CUDA device, but it is on {str(device)!r}. "
            "Pass device='cuda', or backend='torch'."
        )
    from sb3_npg.linalg.cupy import CupyLinearAlgebra  # CuPy is optional, and slow to import

    try:
        return CupyLinearAlgebra.on(device)
    except (ImportError, RuntimeError) as error:
        advice = f"{error}. Install it: {install_command()}"
        if backend == "cupy":
            raise ValueError(f"`backend`='cupy' cannot be had: {advice}, or pass backend='torch'.") from error
        warn_user(f"NPG's solves run on torch, not on CuPy: {advice}.")
        return TORCH


def install_command() -> str:
    """Return the command that installs the CuPy for this torch."""
    major = (th.version.cuda or "13").split(".")[0]
    return f"pip install cupy-cuda{major}x"
