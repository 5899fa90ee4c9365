"""
A policy's forward pass while it collects: on finite observations, and without the objects SB3 makes for each step.

With few environments a step is mostly bookkeeping: preprocessing, modules that call modules, a distribution that
checks its arguments. SB3's own loop stays what collects; within it ``policy.forward`` is replaced by the same
operations on the same random numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_npg.acting.forward import FastForward
from sb3_npg.acting.recorder import Recorder
from sb3_npg.observations import finite_observations


@contextmanager
def acting(policy: ActorCriticPolicy, fast_paths: bool = True, recorder: Recorder | None = None) -> Iterator[None]:
    """
    Let a policy act on zeros within the block where an observation is NaN or infinite.

    Without it torch's distributions end the run in the middle of a rollout. The buffer still receives what the
    environment sent, so the update sees it and is skipped. A policy of feed-forward networks acts by hand.

    :param policy: the policy that collects
    :param fast_paths: whether it may act by hand
    :param recorder: keeps what is recorded from one rollout to the next; None to record nothing
    """
    forward = FastForward.of(policy) if fast_paths else None
    if forward is None:
        handle = policy.register_forward_pre_hook(_replace_non_finite)
        try:
            yield
        finally:
            handle.remove()
        return
    policy.forward = forward if recorder is None else recorder.recorded(forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(policy).pop("forward", None)


def _replace_non_finite(_policy: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    observations, *others = inputs
    return (finite_observations(observations), *others)
