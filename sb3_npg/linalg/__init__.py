"""Numerical linear algebra on plain tensors, independent of policies."""

from sb3_npg.linalg.backend import BACKENDS, TORCH, FactoredChain, KroneckerSystem, LinearAlgebra, make_linalg
from sb3_npg.linalg.chain import ChainLayer, FisherChain, output_product
from sb3_npg.linalg.damped import DampedInverse, Gram, factored_damping, factored_solve
from sb3_npg.linalg.kronecker import (
    Eigen,
    damped_cholesky,
    damped_solve,
    rotate,
    rotate_back,
    symmetric_eigen,
)
from sb3_npg.linalg.krylov import conjugate_gradient

__all__ = [
    "BACKENDS",
    "TORCH",
    "ChainLayer",
    "DampedInverse",
    "Eigen",
    "FactoredChain",
    "FisherChain",
    "Gram",
    "KroneckerSystem",
    "LinearAlgebra",
    "conjugate_gradient",
    "damped_cholesky",
    "damped_solve",
    "factored_damping",
    "factored_solve",
    "make_linalg",
    "output_product",
    "rotate",
    "rotate_back",
    "symmetric_eigen",
]
