"""Solvers that approximate F as block-diagonal: one block for each layer, approximated in some way."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import get_args

import torch as th

from sb3_npg.checks import check_choice, check_integer, check_number
from sb3_npg.fisher import Block, Columns, LayerRecord, WeightSharing, dense_blocks
from sb3_npg.numerics import require_finite
from sb3_npg.solvers.base import FisherSolver, Layers, LazyFigures, Problem, S, Solution, means_over_rows
from sb3_npg.solvers.memory import Memory
from sb3_npg.user_warnings import warn_user


class BlockDiagonalSolver(FisherSolver):
    """
    Measures the curvature of each layer once per update, averages it over updates, and inverts block by block.

    Parameters that belong to no Linear or Conv2d layer get a block that is formed, or its diagonal; a warning
    names them once. The scale of a Gaussian's noise, gSDE's too, has a closed form.

    :param columns: which columns of the outputs' Fisher are propagated backwards: "exact", all of them;
        "propagated", one random sum of them; "sampled", the score of the action taken
    :param decay: of the moving averages over updates; 0 uses only the newest rollout
    :param statistics_interval: number of updates from one measurement to the next
    :param carries_over: whether the solver keeps more from one update to the next than averages
    :raises ValueError: if an argument is unknown or out of range
    """

    def __init__(self, columns: Columns, decay: float, statistics_interval: int, carries_over: bool = False):
        super().__init__()
        check_choice("fisher_solver_kwargs['columns']", columns, get_args(Columns))
        check_number("fisher_solver_kwargs['decay']", decay, minimum=0.0, below=1.0)
        check_integer("fisher_solver_kwargs['statistics_interval']", statistics_interval, minimum=1)
        self.columns: Columns = columns
        self.decay = decay
        self.statistics_interval = statistics_interval
        carries_over = carries_over or decay > 0.0 or statistics_interval > 1
        self.memory = Memory(carries_over, counts=columns == "propagated")  # random signs, drawn anew for each update
        self._blocks: Sequence[Block] = ()
        self._is_updated = False
        self._announced: set[str] = set()

    def update(self, problem: Problem) -> None:
        """Measure and average the curvature, when that is due."""
        self._is_updated = False
        self.memory.enter(is_scaled=isinstance(problem.scale, th.Tensor))
        self._look_at(problem)
        self.memory.count += 1
        self._is_updated = True

    def solve(self, problem: Problem, gradient: th.Tensor, damping: float) -> Solution:
        """Solve block by block. The condition number is computed when it is read, from the last update at that time."""
        x = self.apply_inverse(gradient, damping)
        return Solution(x, LazyFigures(lambda: {"condition": self._condition(damping)}))

    def apply_inverse(self, vector: th.Tensor, damping: float) -> th.Tensor:
        """
        Multiply by the inverse of the damped approximation, after an update.

        :param vector: v, shape (p,)
        :param damping: λ ≥ 0
        :return: (F̂ + λI)⁻¹ v, shape (p,)
        :raises ArithmeticError: if there was no update, or it failed
        """
        if not self._is_updated:
            raise ArithmeticError("the curvature is not known: update() was not called, or failed")
        x = th.empty_like(vector)
        rights = [block.gather(vector) for block in self._blocks]
        for block, solution in zip(self._blocks, self._solve_blocks(rights, damping), strict=True):
            block.scatter(solution, x)
        return x

    def eigenvalues(self) -> dict[str, th.Tensor]:
        """
        Return the eigenvalues of the approximation, undamped, after an update.

        :return: by the block's name, in no particular order, shape (size of the block,)
        """
        return {block.name: self._eigenvalues_of(block).flatten() for block in self._blocks}

    def _look_at(self, problem: Problem) -> None:
        """Find the blocks, and update the memory from the rollout."""
        layers = problem.layers
        self._blocks = layers.blocks
        self._announce([block.note for block in dense_blocks(self._blocks) if block.note])
        self._update_blocks(layers)

    @abstractmethod
    def _update_blocks(self, layers: Layers) -> None:
        """Update the memory from the rollout."""

    def _solve_blocks(self, rights: Sequence[th.Tensor], damping: float) -> list[th.Tensor]:
        """Solve the damped blocks, each for a right-hand side as its ``gather`` gives it."""
        pairs = zip(self._blocks, rights, strict=True)
        return [self._solve_block(block, right, damping) for block, right in pairs]

    @abstractmethod
    def _solve_block(self, block: Block, right: th.Tensor, damping: float) -> th.Tensor:
        """Solve the damped block for a right-hand side as ``block.gather`` gives it."""

    @abstractmethod
    def _eigenvalues_of(self, block: Block) -> th.Tensor:
        """Return the eigenvalues of a block."""

    def _is_decomposed(self, block: Block) -> bool:
        """Tell whether the eigenvalues of a block are at hand."""
        return True

    def _condition(self, damping: float) -> float:
        """Return the condition number of the blocks whose eigenvalues are at hand; ∞ without any, or if singular."""
        known = [self._eigenvalues_of(block).flatten() for block in self._blocks if self._is_decomposed(block)]
        if not known:
            return math.inf
        smallest, largest = th.stack(th.aminmax(th.cat(known))).tolist()
        return (largest + damping) / (smallest + damping) if smallest + damping > 0.0 else math.inf

    def _due(self, interval: int) -> bool:
        return self.memory.count % interval == 0

    def _measure(
        self,
        layers: Layers,
        statistic: Callable[[LayerRecord], dict[str, S]],
        weight_sharing: WeightSharing = "expand",
    ) -> dict[str, S]:
        """Measure with this solver's columns; random ones are drawn anew at each update."""
        return means_over_rows(layers, statistic, self.columns, self.memory.count, weight_sharing)

    def _remember(self, measured: dict[str, th.Tensor]) -> None:
        """
        Add measurements to their averages, all of them or, if one is not finite, none.

        Those that are used for a single update are not checked: a NaN in them leads to one in the solution, which is.
        """
        if self.memory.carries_over:
            require_finite("the curvature of a layer", *measured.values())
        for name, new in measured.items():
            self.memory.average(name, new, self.decay)

    def _announce(self, notes: list[str]) -> None:
        new = [note for note in notes if note not in self._announced]
        self._announced.update(new)
        if new:
            warn_user(
                f"{type(self).__name__} treats what is not in a plain Linear or Conv2d layer more coarsely or at more "
                f"cost: {'; '.join(new)}. fisher_solver='cg' uses the whole Fisher of any network.",
            )
