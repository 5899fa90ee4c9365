"""The line to search: its first trial, the full step, is evaluated before the host reads the direction."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch as th

from sb3_npg.numerics import NumericalFailure
from sb3_npg.parameters import ParameterVector


class MovableProblem(Protocol):
    """A problem whose parameters can move along a line. ``LocalProblem`` is one."""

    @property
    def vector(self) -> ParameterVector:
        """The parameters θ as one vector."""
        ...

    def figures(self) -> th.Tensor:
        """Return the figures that the search needs, at the present θ: shape (m,), on the device; NaN if undefined."""
        ...

    def refresh(self) -> None:
        """Let F use the present parameters."""
        ...


class SearchLine:
    """
    The line θ₀ + cβx, where θ₀ are a problem's parameters at construction.

    The full step, c = 1, is taken on the device as soon as there is an x, before it is known to be usable, so that the
    figures of both are read in one transfer. Until then, entries of the step that are not finite count as zero.

    ``step`` is βx, shape (p,), once the full step is taken, and ``length`` β once it is read.

    :param problem: at θ₀
    :param length: xᵀFx ↦ β, both of shape ()
    """

    step: th.Tensor
    length: float

    def __init__(self, problem: MovableProblem, length: Callable[[th.Tensor], th.Tensor]):
        self.problem = problem
        self._length_of = length
        self._start = problem.vector.get()
        #: Where the parameters are, as a multiple of the step, and the figures there.
        self._coefficient, self._figures = 0.0, list[float]()

    def take(self, natural_gradient: th.Tensor, curvature: th.Tensor) -> th.Tensor:
        """
        Move to θ₀ + βx.

        :param natural_gradient: x, shape (p,)
        :param curvature: xᵀFx, shape ()
        :return: figures for :meth:`read`, shape (1 + m,)
        """
        length = self._length_of(curvature)
        self.step = th.nan_to_num(length * natural_gradient, nan=0.0, posinf=0.0, neginf=0.0)
        self._move(1.0)
        return th.cat([length.view(1), self.problem.figures()])

    def read(self, figures: Sequence[float], norm: float) -> None:
        """
        Take note of the full step's figures.

        :param figures: those of :meth:`take`, in the host's memory
        :param norm: ‖x‖
        :raises NumericalFailure: if the step is not finite
        """
        self.length, *self._figures = figures
        # No entry of a vector exceeds its norm.
        if not self.length * norm <= th.finfo(self.step.dtype).max:
            raise NumericalFailure("the step is not finite")

    def go(self, coefficient: float) -> list[float]:
        """
        Move to θ₀ + cβx, and return the figures there.

        :param coefficient: c > 0; 1 first, where the parameters are already
        :return: the problem's figures there
        """
        if coefficient != self._coefficient:
            self._move(coefficient)
            self._figures = self.problem.figures().tolist()
        return self._figures

    def back(self) -> None:
        """Move back to θ₀, bit for bit."""
        self.problem.vector.set(self._start)
        self.problem.refresh()
        self._coefficient = 0.0

    def _move(self, coefficient: float) -> None:
        self.problem.vector.set(self._start + coefficient * self.step)
        self._coefficient = coefficient
