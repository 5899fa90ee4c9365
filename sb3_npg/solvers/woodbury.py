"""The Fisher of the actions taken, inverted in the space of samples."""

from functools import reduce
from itertools import chain

import torch as th

from sb3_npg.checks import check_integer
from sb3_npg.fisher import LARGEST_TEMPORARY, LayerRecord, dense_blocks, jacobians
from sb3_npg.linalg import damped_cholesky
from sb3_npg.solvers.base import FisherSolver, Layers, Problem, Solution


class WoodburySolver(FisherSolver):
    """
    Approximates F by JᵀJ/N, with the scores ∇log π(a_n|s_n) of the actions taken as rows of J, and inverts
    JᵀJ/N + λI exactly through an N × N matrix.

    With the Woodbury identity (F + λI)⁻¹ g = (g − Jᵀ(JJᵀ + NλI)⁻¹ J g) / λ. For g = JᵀÂ/N, the gradient of
    the surrogate, this is Jᵀ(JJᵀ + NλI)⁻¹ Â: ridge regression of the advantages on the scores, Kakade's
    compatible function approximation. J is never formed: inner products of scores are products of inner products
    of what each layer saw and what came back to it.

    For few rows and large networks: costs O(N² p^½ + N³) operations, and beside four matrices of N × N, 32N² bytes
    whatever the number of parameters p, what each layer saw and what came back to it of all rows, in float64; for a
    convolution that is each patch of each row. The Fisher is that of a sample, of rank N at most; all other solvers
    but "sampled" ones use the expectation over actions.

    Kakade (2001), section 3; Ren & Goldfarb (2019), Efficient Subsampled Gauss-Newton and Natural Gradient Methods
    for Training Neural Networks, section 3.

    :param max_rows: refuse rollouts if the Fisher uses more rows of them than this
    :raises ValueError: if ``max_rows`` < 1
    """

    def __init__(self, max_rows: int = 4096):
        super().__init__()
        check_integer("fisher_solver_kwargs['max_rows']", max_rows, minimum=1)
        self.max_rows = max_rows
        self._system: tuple[Scores, th.Tensor] | None = None

    def check_size(self, n_parameters: int, n_rows: int) -> None:
        """Refuse a rollout whose Gram matrix would not fit."""
        if n_rows > self.max_rows:
            raise ValueError(
                f"`fisher_solver`='woodbury' factorises a matrix of {n_rows:,} × {n_rows:,} rows of the rollout "
                f"({8 * n_rows**2 / 2**30:.1f} GiB, and three more of its size), more than its limit of "
                f"{self.max_rows:,}. Use a smaller `n_steps`, a larger `sub_sampling_factor`, or raise "
                "fisher_solver_kwargs={'max_rows': ...}."
            )

    def update(self, problem: Problem) -> None:
        """Form JJᵀ."""
        self._system = None  # frees its memory first; a failure must not leave the last rollout's
        self._system = _sampled(problem)

    def solve(self, problem: Problem, gradient: th.Tensor, damping: float) -> Solution:
        """Factorise JJᵀ + NλI and solve."""
        scores, gram = self._system or _sampled(problem)
        if damping <= 0.0:
            raise ArithmeticError("the sampled Fisher has no inverse without damping")
        g = gradient.double()
        factor = damped_cholesky(gram, len(gram) * damping)
        coefficients = th.cholesky_solve(scores.push(g).unsqueeze(1), factor).squeeze(1)
        x = (g - scores.pull(coefficients)) / damping
        diagonal = factor.diagonal()
        return Solution(x.to(gradient.dtype), {"condition": float((diagonal.max() / diagonal.min()) ** 2)})


class Scores:
    """
    J, the scores of N rows with respect to p parameters, stored as each layer's inputs and derivatives. In float64, as
    the Woodbury identity divides a difference by λ.

    :param layers: the policy update, layer by layer
    """

    def __init__(self, layers: Layers):
        self.n_rows = layers.n_rows
        chunks = list(layers.records("sampled"))
        self._records = [_joined(chunk_records) for chunk_records in zip(*chunks, strict=True)]
        self._dense = [(block, layers.scores(block).double()) for block in dense_blocks(layers.blocks)]
        self._size = sum(block.size for block in layers.blocks)

    def gram(self) -> th.Tensor:
        """Return JJᵀ, shape (N, N)."""
        grams = chain(map(_layer_gram, self._records), (scores @ scores.T for _, scores in self._dense))
        return reduce(th.Tensor.add_, grams)  # one after the other: each is a matrix of N × N

    def push(self, vector: th.Tensor) -> th.Tensor:
        """Return J v, shape (N,), for v of shape (p,)."""
        total = th.zeros(self.n_rows, dtype=vector.dtype, device=vector.device)
        for dense, scores in self._dense:
            total += scores @ vector[dense.span]
        for block, inputs, deltas in self._records:
            total += ((inputs @ block.gather(vector).T) * deltas[0]).sum(dim=(1, 2))
        return total

    def pull(self, coefficients: th.Tensor) -> th.Tensor:
        """Return Jᵀ y, shape (p,), for y of shape (N,)."""
        total = th.zeros(self._size, dtype=coefficients.dtype, device=coefficients.device)
        for dense, scores in self._dense:
            total[dense.span] = scores.T @ coefficients
        for block, inputs, deltas in self._records:
            weighted = (coefficients.view(-1, 1, 1) * deltas[0]).flatten(0, 1)
            block.scatter(weighted.T @ inputs.flatten(0, 1), total)
        return total


def _sampled(problem: Problem) -> tuple[Scores, th.Tensor]:
    """Return J and JJᵀ."""
    scores = Scores(problem.layers)
    return scores, scores.gram()


def _joined(chunks: tuple[LayerRecord, ...]) -> LayerRecord:
    """Join a layer's records of several chunks of rows, in float64."""
    inputs = th.cat([chunk.inputs for chunk in chunks])
    deltas = th.cat([chunk.deltas for chunk in chunks], dim=1)
    return LayerRecord(chunks[0].block, inputs.double(), deltas.double())


def _layer_gram(record: LayerRecord) -> th.Tensor:
    """Return the inner products of the rows' Jacobians with respect to one layer, shape (n, n)."""
    _, inputs, deltas = record
    _, n, n_positions, g = deltas.shape
    if n_positions == 1:
        return (inputs[:, 0] @ inputs[:, 0].T).mul_(deltas[0, :, 0] @ deltas[0, :, 0].T)
    # Over many positions, Jacobians of a few of the layer's outputs at a time are cheaper than all pairs of positions.
    total = inputs.new_zeros(n, n)
    at_once = max(1, LARGEST_TEMPORARY // (n * inputs.shape[2]))
    for start in range(0, g, at_once):
        part = jacobians(inputs, deltas[..., start : start + at_once])[0].flatten(1)
        total.addmm_(part, part.T)
    return total
