"""K-FAC: each layer's block of the Fisher as a Kronecker product."""

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import torch as th

from sb3_npg.checks import check_choice, check_integer
from sb3_npg.fisher import (
    Block,
    Columns,
    DenseBlock,
    LayerBlock,
    LayerRecord,
    WeightSharing,
    dense_blocks,
    kronecker_factors,
    layer_blocks,
)
from sb3_npg.linalg import (
    TORCH,
    DampedInverse,
    Eigen,
    FactoredChain,
    FisherChain,
    Gram,
    KroneckerSystem,
    damped_solve,
    factored_damping,
    factored_solve,
    symmetric_eigen,
)
from sb3_npg.solvers.base import Layers, Problem, fisher_chain, layer_chain
from sb3_npg.solvers.block_diagonal import BlockDiagonalSolver

#: Number of rows from which on a factor RᵀR is kept as R, if R has at most half as many rows.
SMALLEST_GRAM = 1024


class _Inverses(NamedTuple):
    """
    Inverses of the large layers' damped factors, by the layer's name.

    :param damping: λ
    :param factors: the A and G that were damped and inverted
    :param by_name: (A + λ_A I)⁻¹ and (G + λ_G I)⁻¹
    """

    damping: float
    factors: dict[str, tuple[th.Tensor | Gram, th.Tensor | Gram]]
    by_name: dict[str, tuple[DampedInverse, DampedInverse]]

    def belong_to(self, factors: dict[str, tuple[th.Tensor | Gram, th.Tensor | Gram]], damping: float) -> bool:
        """Tell whether these are the inverses of these very tensors at this damping."""
        return damping == self.damping and all(
            name in self.factors and all(map(operator.is_, pair, self.factors[name])) for name, pair in factors.items()
        )


class KFACSolver(BlockDiagonalSolver):
    """
    Approximates each layer's block of F by a Kronecker product A ⊗ G of two second moments: of the layer's inputs, and
    of the derivatives propagated back to its outputs.

    Small factors are decomposed, and A ⊗ G + λI is inverted exactly. Larger ones are factorised by Cholesky, with
    the damping split between the factors, or inverted in the space of rows if these are few. Factorisations are
    computed in float64.

    Martens & Grosse (2015), Optimizing Neural Networks with Kronecker-factored Approximate Curvature, sections 3, 4.2
    and 6.3; Grosse & Martens (2016) for convolutions; Wu et al. (2017), Scalable trust-region method for deep
    reinforcement learning using Kronecker-factored approximation.

    :param columns: which columns of the outputs' Fisher are propagated backwards: "exact", all of them;
        "propagated", one random sum of them; "sampled", the score of the action taken
    :param decay: of the moving averages of A and G over updates; 0 uses only the newest rollout
    :param statistics_interval: number of updates from one measurement of A and G to the next
    :param inverse_interval: number of updates from one decomposition of A and G, if they are new, to the next
    :param weight_sharing: for a convolution, or a layer that is used more than once: "expand" treats its positions as
        independent, "reduce" as one application to the mean of its inputs
    :param largest_eigen: layers with a factor of more rows than this use Cholesky with the damping split
    :raises ValueError: if an argument is unknown or out of range
    """

    def __init__(
        self,
        columns: Columns = "exact",
        decay: float = 0.0,
        statistics_interval: int = 1,
        inverse_interval: int = 1,
        weight_sharing: WeightSharing = "expand",
        largest_eigen: int = 1024,
    ):
        super().__init__(columns, decay, statistics_interval, carries_over=inverse_interval != 1)
        check_integer("fisher_solver_kwargs['inverse_interval']", inverse_interval, minimum=1)
        check_choice("fisher_solver_kwargs['weight_sharing']", weight_sharing, get_args(WeightSharing))
        check_integer("fisher_solver_kwargs['largest_eigen']", largest_eigen, minimum=0)
        self.inverse_interval = inverse_interval
        self.weight_sharing = weight_sharing
        self.largest_eigen = largest_eigen
        self._inverses: _Inverses | None = None
        #: Factors of the last measurement that are kept as R, not multiplied out.
        self._grams: dict[str, Gram] = {}
        self._factored: FactoredChain | None = None

    def apply_inverse(self, vector: th.Tensor, damping: float) -> th.Tensor:
        """Multiply by the inverse of the damped approximation, after an update."""
        if self._factored is None or not self._is_updated:
            return super().apply_inverse(vector, damping)
        return self._factored.solve(vector, damping)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the graphs: a copy records its own at its next update."""
        return {**vars(self), "_factored": None, "_is_updated": self._is_updated and self._factored is None}

    def _look_at(self, problem: Problem) -> None:
        """Measure and decompose the factors, when that is due; all at once if the backend can."""
        chain = fisher_chain(problem) if self.linalg is not TORCH and self._is_forgetful() else None
        self._factored = None if chain is None else self._factored_like(chain, problem)
        if chain is None or self._factored is None:
            super()._look_at(problem)
        else:
            self._factored.update(chain)

    def _is_forgetful(self) -> bool:
        """Tell whether an update needs only the exact factors of its rollout; a subclass may need anything."""
        return type(self) is KFACSolver and self.columns == "exact" and not self.memory.carries_over

    def _factored_like(self, chain: FisherChain, problem: Problem) -> FactoredChain | None:
        """Return what the last update used, if it fits this chain too, else what the backend makes for it."""
        if self._factored is not None and self._factored.serves(chain):
            return self._factored
        made = self.linalg.factored_chain(chain, self.largest_eigen)
        if made is not None:
            self._blocks = problem.layers.blocks
            self._remember_factored(made)
        return made

    def _remember_factored(self, found: FactoredChain) -> None:
        """Enter the tensors, which are overwritten at each update, into the memory."""
        tensors = self.memory.tensors
        for i, (block, factors) in enumerate(zip(layer_blocks(self._blocks), found.factors, strict=True)):
            for name, factor, eigen in zip("AG", factors, found.eigens.get(i, (None, None)), strict=True):
                tensors[f"{block.name}.{name}"] = factor
                if eigen is None:
                    tensors[f"{block.name}.{name}.decomposed"] = factor
                else:
                    self.memory.put_eigen(f"{block.name}.{name}", eigen)
        for noise in dense_blocks(self._blocks):
            if found.noise is not None:
                self.memory.put_eigen(f"{noise.name}.F", found.noise)

    def _update_blocks(self, layers: Layers) -> None:
        known = all(self._is_known(block) for block in self._blocks)
        if self._due(self.statistics_interval) or not known:
            measured = self._factors(layers)
            self._grams = {name: factor for name, factor in measured.items() if isinstance(factor, Gram)}
            self._remember({name: factor for name, factor in measured.items() if not isinstance(factor, Gram)})
        # What was measured last may have been decomposed already.
        is_new = self.memory.count % self.statistics_interval < self.inverse_interval
        if (self._due(self.inverse_interval) and is_new) or not known:
            self._decompose()

    def _factors(self, layers: Layers) -> dict[str, th.Tensor | Gram]:
        """Measure A and G of each layer, and form the blocks of parameters that are in no layer."""
        others: dict[str, th.Tensor | Gram] = {
            f"{block.name}.F": layers.dense_block(block) for block in dense_blocks(self._blocks)
        }
        pairs = self.linalg.kronecker_factors(partial(layer_chain, layers)) if self.columns == "exact" else None
        if pairs is not None:
            for block, (a, g) in zip(layer_blocks(self._blocks), pairs, strict=True):
                # They are views of one tensor, all of which would be saved with each of them.
                others[f"{block.name}.A"], others[f"{block.name}.G"] = (
                    (a.clone(), g.clone()) if self.memory.carries_over else (a, g)
                )
            return others

        factors = partial(self._factors_of, n_rows=layers.n_rows)
        return self._measure(layers, factors, self.weight_sharing) | others

    def _factors_of(self, record: LayerRecord, n_rows: int) -> dict[str, th.Tensor | Gram]:
        """Return A and G of a layer, summed over a record's rows; ``n_rows`` is N, in all records."""
        block, inputs, deltas = record
        if self.memory.carries_over or inputs.shape[1] > 1 or not self._is_large(block):
            return dict(zip("AG", kronecker_factors(record), strict=True))
        sides = {"A": (inputs[:, 0], n_rows), "G": (deltas[:, :, 0].flatten(0, 1), len(deltas) * n_rows)}
        return {name: _gram(rows, n_all) for name, (rows, n_all) in sides.items()}

    def _decompose(self) -> None:
        """Decompose the present factors; large ones are kept for Cholesky, which needs the damping."""
        tensors = self.memory.tensors
        self._inverses = None
        small = [f"{dense.name}.F" for dense in dense_blocks(self._blocks)]
        for block in layer_blocks(self._blocks):
            factors = [f"{block.name}.A", f"{block.name}.G"]
            if self._is_large(block):
                kept = [factor for factor in factors if factor not in self._grams]
                tensors.update({f"{factor}.decomposed": tensors[factor] for factor in kept})
            else:
                small += factors
        for name, eigen in zip(small, self.linalg.symmetric_eigens([tensors[name] for name in small]), strict=True):
            self.memory.put_eigen(name, eigen)

    def _solve_blocks(self, rights: Sequence[th.Tensor], damping: float) -> list[th.Tensor]:
        """Solve the blocks whose eigenbasis is known all at once, and then the others."""
        by_name = {block.name: (block, right) for block, right in zip(self._blocks, rights, strict=True)}
        layers = {name: (block, right) for name, (block, right) in by_name.items() if isinstance(block, LayerBlock)}
        small = {name: self._system(*layer) for name, layer in layers.items() if not self._is_large(layer[0])}
        solutions = dict(zip(small, self.linalg.kronecker_solves(list(small.values()), damping), strict=True))
        large = {name: right for name, (_, right) in layers.items() if name not in small}
        solutions.update(zip(large, self._large_solutions(large, damping), strict=True))
        return [
            solutions[name] if name in solutions else self._solve_block(block, right, damping)
            for name, (block, right) in by_name.items()
        ]

    def _solve_block(self, block: Block, right: th.Tensor, damping: float) -> th.Tensor:
        return damped_solve(self.memory.eigen(f"{block.name}.F"), right, damping)

    def _large_solutions(self, rights: dict[str, th.Tensor], damping: float) -> list[th.Tensor]:
        """Solve the layers whose factors are factorised by Cholesky."""
        if not rights:
            return []
        if not self._grams:
            tensors = self.memory.tensors
            pairs = [(tensors[f"{name}.A.decomposed"], tensors[f"{name}.G.decomposed"]) for name in rights]
            at_once = self.linalg.factored_solves(pairs, list(rights.values()), damping)
            if at_once is not None:
                return at_once
        known = self._damped_inverses(list(rights), damping)
        return [factored_solve(*known[name], right) for name, right in rights.items()]

    def _system(self, block: LayerBlock, right: th.Tensor) -> KroneckerSystem:
        a, g = self._eigenbasis(block)
        return KroneckerSystem(g, a, None, right)

    def _damped_inverses(self, names: Sequence[str], damping: float) -> dict[str, tuple[DampedInverse, DampedInverse]]:
        """Return the inverses of A + λ_A I and G + λ_G I of large layers, made once for their factors and a damping."""
        pairs = {name: (self._factor(name, "A"), self._factor(name, "G")) for name in names}
        # Factors also change when a state is loaded, or moved to another device.
        if self._inverses is None or not self._inverses.belong_to(pairs, damping):
            found: dict[str, tuple[DampedInverse, DampedInverse]] = {}
            succeeded: list[th.Tensor] = []
            for name, factors in pairs.items():
                dampings = factored_damping(*factors, damping)
                (a, a_is_good), (g, g_is_good) = map(DampedInverse.of, factors, dampings)
                found[name] = a, g
                succeeded += [a_is_good, g_is_good]
            # One read from the device for all of them.
            if not bool(th.stack(succeeded).all()):
                raise ArithmeticError(f"a factor of a layer is not positive definite at damping {damping:g}")
            self._inverses = _Inverses(damping, pairs, found)
        return self._inverses.by_name

    def _factor(self, name: str, factor: str) -> th.Tensor | Gram:
        """Return a large layer's A or G, as it was when the others were decomposed."""
        gram = self._grams.get(f"{name}.{factor}")
        return self.memory.tensors[f"{name}.{factor}.decomposed"] if gram is None else gram

    def _eigenvalues_of(self, block: Block) -> th.Tensor:
        if isinstance(block, DenseBlock):
            return self.memory.eigen(f"{block.name}.F").values
        if self._is_large(block):
            a, g = (symmetric_eigen(_matrix(self._factor(block.name, factor))).values for factor in "AG")
        else:
            a, g = (eigen.values for eigen in self._eigenbasis(block))
        return th.outer(g, a)

    def _is_decomposed(self, block: Block) -> bool:
        return isinstance(block, DenseBlock) or not self._is_large(block)

    def _eigenbasis(self, block: LayerBlock) -> tuple[Eigen, Eigen]:
        return self.memory.eigen(f"{block.name}.A"), self.memory.eigen(f"{block.name}.G")

    def _is_large(self, block: LayerBlock) -> bool:
        return max(block.shape) > self.largest_eigen

    def _is_known(self, block: Block) -> bool:
        if isinstance(block, DenseBlock):
            return self.memory.has(f"{block.name}.F.values", *block.shape)
        g, a = block.shape
        if self._is_large(block):
            sizes = ((f"{block.name}.A", a), (f"{block.name}.G", g))
            return all(name in self._grams or self.memory.has(f"{name}.decomposed", n, n) for name, n in sizes)
        return self.memory.has(f"{block.name}.A.values", a) and self.memory.has(f"{block.name}.G.values", g)


def _gram(rows: th.Tensor, n_all: int) -> th.Tensor | Gram:
    """Return RᵀR, or R if there will be few rows in all."""
    n_columns = rows.shape[1]
    return Gram(rows) if n_columns >= SMALLEST_GRAM and 2 * n_all <= n_columns else rows.T @ rows


def _matrix(factor: th.Tensor | Gram) -> th.Tensor:
    return factor.matrix() if isinstance(factor, Gram) else factor
