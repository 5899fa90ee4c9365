"""What a solver remembers from one update to the next, and how it is saved."""

from collections.abc import Iterable
from typing import Any

import torch as th
from torch import nn

from sb3_npg.linalg import Eigen


class Memory(nn.Module):
    """
    Named tensors and weighted moving averages of them.

    A module, so that it follows ``.to(device)``. The names are known only once the policy is, so the tensors cannot be
    buffers: the state is one dict, and whatever it holds is loaded.

    :param carries_over: whether an update uses what earlier ones measured; then the tensors are saved with the agent
    :param counts: whether an update depends on the number of earlier ones; then the count is saved in any case
    """

    def __init__(self, carries_over: bool, counts: bool = False):
        super().__init__()
        self.carries_over = carries_over
        self.counts = counts
        #: Whether the tensors are in the coordinates of :class:`~sb3_npg.solvers.scaling.ScaledProblem`.
        self.is_scaled = False
        self.tensors: dict[str, th.Tensor] = {}
        self.weights: dict[str, float] = {}
        #: Updates so far.
        self.count = 0

    def enter(self, is_scaled: bool) -> None:
        """Forget what was measured in other coordinates than those of the update to come."""
        if is_scaled != self.is_scaled:
            self.tensors, self.weights, self.is_scaled = {}, {}, is_scaled

    def clear(self) -> None:
        """Forget everything that later updates would use."""
        if self.carries_over:
            self.tensors, self.weights = {}, {}
        self.count = 0

    def has(self, name: str, *shape: int) -> bool:
        """Tell whether a tensor is remembered in this shape, which may change: layers may be frozen at any time."""
        return name in self.tensors and self.tensors[name].shape == shape

    def average(self, name: str, new: th.Tensor, decay: float) -> None:
        """
        Add a new measurement to a moving average: the mean of all so far, each weighted by ``decay`` to the
        power of its age. Unbiased from the first on, as the sum of the weights is kept too.

        :param name: of the average, which begins anew when the shape changes
        :param new: the measurement
        :param decay: in [0, 1); 0 keeps only the newest
        """
        old = self.tensors.get(name)
        before = decay * self.weights.get(name, 0.0)
        if old is None or old.shape != new.shape or before == 0.0:
            self.tensors[name], self.weights[name] = new, 1.0
            return
        self.tensors[name], self.weights[name] = old + (new - old) / (before + 1.0), before + 1.0

    def put_eigen(self, name: str, eigen: Eigen) -> None:
        """Remember an eigendecomposition."""
        self.tensors[f"{name}.values"], self.tensors[f"{name}.vectors"] = eigen

    def eigen(self, name: str) -> Eigen:
        """Return an eigendecomposition."""
        return Eigen(self.tensors[f"{name}.values"], self.tensors[f"{name}.vectors"])

    def forget(self, names: Iterable[str]) -> None:
        """Forget some tensors, if they are there."""
        for name in names:
            self.tensors.pop(name, None)
            self.weights.pop(name, None)

    def get_extra_state(self) -> dict[str, Any] | str:
        """Return what is to be saved."""
        if not (self.carries_over or self.counts):
            return "nothing"
        kept = (self.tensors, self.weights) if self.carries_over else ({}, {})
        return {
            "tensors": dict(kept[0]),
            "weights": dict(kept[1]),
            "is_scaled": self.is_scaled,
            "count": self.count,
        }

    def set_extra_state(self, state: dict[str, Any] | str) -> None:
        """Restore what was saved, as far as it will be used, and forget all else."""
        if isinstance(state, str):
            return
        kept = (state["tensors"], state["weights"]) if self.carries_over else ({}, {})
        self.tensors, self.weights = dict(kept[0]), dict(kept[1])
        self.is_scaled, self.count = state["is_scaled"], state["count"]

    def _apply(self, fn: Any, recurse: bool = True) -> "Memory":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.tensors = {name: fn(tensor) for name, tensor in self.tensors.items()}
        return self
