"""The interface of an actor."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch as th

from sb3_npg.fisher import (
    FeedForwardLayers,
    LayeredFisher,
    RolloutFisher,
)
from sb3_npg.output_fisher import OutputFisher
from sb3_npg.parameters import ParameterVector


class ActingRows(NamedTuple):
    """
    The action distribution of some rows, as tensors.

    :param outputs: z, shape (n, k)
    :param log_prob: of the actions taken, shape (n,)
    :param entropy: computes the entropy in nats, shape (n,); returns None if it has no closed form
    """

    outputs: th.Tensor
    log_prob: th.Tensor
    entropy: Callable[[], th.Tensor | None]


#: Returns one number for each row, shape (n,); their sum is differentiated.
Objective = Callable[[ActingRows], th.Tensor]


class Actor(Protocol):
    """The action distribution on the rows of a rollout, as a function of the parameters θ."""

    metric: OutputFisher
    parameters: ParameterVector

    def act(self, rows: slice) -> ActingRows:
        """Return the action distribution at the present θ, with its graph where gradients are enabled."""
        ...

    def start(self, rows: slice) -> ActingRows:
        """Return the action distribution at θ_old, before the parameters move, without a graph."""
        ...

    def gradient(self, rows: slice, objective: Objective) -> th.Tensor:
        """Return the gradient of an objective with respect to θ, at the present θ, shape (p,)."""
        ...

    def rows_within(self, memory_budget: int) -> int:
        """Return how many rows can be differentiated at once within ``memory_budget`` bytes."""
        ...

    def fisher(self, chunk_rows: int) -> RolloutFisher:
        """Return F of all rows."""
        ...

    def layers(self, chunk_rows: int, memory_budget: int) -> "LayeredFisher | FeedForwardLayers":
        """Return F layer by layer."""
        ...

    def every(self, step: int) -> "Actor":
        """Return the same actor on every ``step``-th row."""
        ...
