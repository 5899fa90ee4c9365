"""What an actor is: how the rows of a rollout are acted on, and how that depends on the parameters."""

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
    :param entropy: makes the entropy in nats, shape (n,); None where it has no closed form
    """

    outputs: th.Tensor
    log_prob: th.Tensor
    entropy: Callable[[], th.Tensor | None]


#: What is summed over rows to be differentiated.
Objective = Callable[[ActingRows], th.Tensor]


class Actor(Protocol):
    """How the rows of a rollout are acted on, and how that depends on the parameters θ."""

    metric: OutputFisher
    parameters: ParameterVector

    def act(self, rows: slice) -> ActingRows:
        """Return the action distribution at the present θ, with its graph where gradients are enabled."""
        ...

    def start(self, rows: slice) -> ActingRows:
        """Return the action distribution at θ_old, before the parameters move, without a graph."""
        ...

    def gradient(self, rows: slice, objective: Objective) -> th.Tensor:
        """Return the derivative of an objective by the present θ, shape (p,)."""
        ...

    def rows_within(self, memory_budget: int) -> int:
        """Return how many rows can be differentiated at once within so many bytes."""
        ...

    def fisher(self, chunk_rows: int) -> RolloutFisher:
        """Return F of all rows."""
        ...

    def layers(self, chunk_rows: int, memory_budget: int) -> "LayeredFisher | FeedForwardLayers":
        """Return F layer by layer."""
        ...

    def every(self, step: int) -> "Actor":
        """Return the same on every so-many-th row."""
        ...
