"""
A policy's forward pass while it collects: always to finite actions, and without the objects SB3 makes for each step.

With few environments a step is mostly bookkeeping: preprocessing, modules that call modules, a distribution that
checks its arguments. SB3's own loop stays what collects; within it ``policy.forward`` is replaced by the same
operations on the same random numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_npg.acting.forward import Acted, FastForward
from sb3_npg.acting.recorder import Recorder
from sb3_npg.numerics import NumericalFailure, refusals_as_failures
from sb3_npg.observations import finite_observations, zero_observations


@contextmanager
def acting(policy: ActorCriticPolicy, fast_paths: bool = True, recorder: Recorder | None = None) -> Iterator[None]:
    """
    Let a policy act within the block whatever it observes, as if by zeros where nothing finite follows from it.

    Without it torch's distributions end the run in the middle of a rollout. The buffer still receives what the
    environment sent, so the update sees it and is skipped. A policy of feed-forward networks acts by hand.

    :param policy: the policy that collects
    :param fast_paths: whether it may act by hand
    :param recorder: keeps what is recorded from one rollout to the next; None to record nothing
    """
    fast = FastForward.of(policy) if fast_paths else None
    before = vars(policy).get("forward")  # a compiled policy's own
    if fast is None:
        policy.forward = FiniteForward(policy.forward)  # type: ignore[method-assign]
    else:
        policy.forward = fast if recorder is None else recorder.recorded(fast)  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            vars(policy).pop("forward", None)
        else:
            policy.forward = before  # type: ignore[method-assign]


class FiniteForward:
    """
    A policy's own forward pass, on zeros where it finds no finite action for what it observes.

    :param forward: the policy's
    """

    def __init__(self, forward: Callable[..., Acted]):
        self._forward = forward

    def __call__(self, obs: PyTorchObs, *others: Any, **more: Any) -> Acted:
        """Act; see ``ActorCriticPolicy.forward``."""
        try:
            with refusals_as_failures():
                acted = self._forward(finite_observations(obs), *others, **more)
        except NumericalFailure:
            acted = None
        if acted is None or not acted[0].isfinite().all():
            acted = self._forward(zero_observations(obs), *others, **more)
        return acted

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a copy of the policy act by its own forward pass."""
        return _itself, (self._forward,)


def _itself(forward: Callable[..., Acted]) -> Callable[..., Acted]:
    return forward
