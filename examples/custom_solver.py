"""
A Fisher solver of your own: register a class under a name, and agents can be trained, saved and loaded with it.

Importing this module registers the solver; a saved agent needs nothing else to be loaded.
"""

from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_npg import NPG
from sb3_npg.solvers import FISHER_SOLVERS, FisherSolver, Problem, Solution

ENV_ID = "CartPole-v1"


class NystromSolver(FisherSolver):
    """
    Approximates F by a matrix of low rank, (FΩ) (ΩᵀFΩ)⁺ (FΩ)ᵀ, with a random Ω of k orthonormal columns.

    Costs k Fisher-vector products per update. They do not depend on g or λ, so that retries with more damping are free.
    Conjugate gradient, which works for one g only, is as accurate with fewer products. Exact for k ≥ p.

    Frangella, Tropp & Udell (2023), Randomized Nyström Preconditioning, section 2.

    :param rank: k, the number of products
    :param seed: of Ω
    :raises ValueError: if ``rank`` < 1
    """

    def __init__(self, rank: int = 30, seed: int = 0):
        super().__init__()
        if rank < 1:
            raise ValueError(f"`fisher_solver_kwargs['rank']`={rank} must be at least 1.")
        self.rank = rank
        self.seed = seed
        self._sketch: tuple[th.Tensor, th.Tensor] | None = None  # not saved: the next update makes it anew

    def update(self, problem: Problem) -> None:
        """Forget the last rollout's sketch."""
        self._sketch = None

    def solve(self, problem: Problem, gradient: th.Tensor, damping: float) -> Solution:
        """Divide by λ + eigenvalue along the directions that the sketch has found, by λ elsewhere."""
        if damping <= 0.0:
            raise ArithmeticError("a matrix of low rank has no inverse without damping")  # asks for a retry with more
        if self._sketch is None:
            self._sketch = self._make_sketch(problem, gradient)
        vectors, values = self._sketch
        g = gradient.double()
        along = vectors.T @ g
        x = vectors @ (along / (values + damping)) + (g - vectors @ along) / damping
        return Solution(x.to(gradient.dtype), {"rank": float(len(values))})  # logged as train/solver_rank

    def _make_sketch(self, problem: Problem, like: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return eigenvectors and eigenvalues of the approximation, shapes (p, k) and (k,)."""
        generator = th.Generator().manual_seed(self.seed)  # torch's own generator belongs to the training
        p = len(like)
        omega, _ = th.linalg.qr(th.randn(p, min(self.rank, p), generator=generator, dtype=th.float64))
        omega = omega.to(like.device)
        sketch = th.stack([problem.fisher_vector_product(column.to(like.dtype)) for column in omega.T], dim=1).double()
        core = omega.T @ sketch
        values, rotation = th.linalg.eigh(0.5 * (core + core.T))
        kept = values > len(core) * th.finfo(like.dtype).eps * values.max()  # the others are rounding
        root = sketch @ rotation[:, kept] / values[kept].sqrt()
        vectors, singular_values, _ = th.linalg.svd(root, full_matrices=False)
        return vectors, singular_values.square()


FISHER_SOLVERS["nystrom"] = NystromSolver


def main(total_timesteps: int = 20_000, folder: str | Path = "runs", seed: int = 0) -> tuple[NPG, float]:
    """
    Train with the solver by its name, save, load and evaluate.

    :param total_timesteps: environment steps to train for
    :param folder: where the model goes
    :param seed: seed of the environments and the agent
    :return: the loaded model, and its mean return
    """
    path = Path(folder) / "npg_nystrom"
    env = make_vec_env(ENV_ID, n_envs=8, seed=seed)
    model = NPG(
        "MlpPolicy",
        env,
        n_steps=128,
        fisher_solver="nystrom",
        fisher_solver_kwargs={"rank": 20},
        seed=seed,
        device="cpu",
    )
    model.learn(total_timesteps)
    # The residual is computed with the true Fisher, whatever the solver's approximation.
    print(f"the last solve left {model.logger.name_to_value['train/solver_residual']:.2g} of the gradient unexplained")
    model.save(path)

    loaded = NPG.load(path, device="cpu")
    returns, _ = evaluate_policy(loaded, make_vec_env(ENV_ID, n_envs=8, seed=1_000_000), n_eval_episodes=16)
    return loaded, float(np.mean(returns))


if __name__ == "__main__":
    loaded, mean_return = main()
    print(f"the loaded model, with solver {loaded.fisher_solver!r}, has a mean return of {mean_return:.0f}")
