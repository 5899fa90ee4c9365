"""
A policy's forward pass while it collects: actions are always finite, and SB3's per-step objects are avoided.

With few environments a step is mostly bookkeeping: preprocessing, modules that call modules, a distribution that
checks its arguments. SB3's own loop still collects; only ``policy.forward`` is replaced, by the same operations on the
same random numbers.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_npg.acting.forward import Acted, FastForward
from sb3_npg.acting.recorder import Recorder
from sb3_npg.numerics import NumericalFailure, refusals_as_failures
from sb3_npg.observations import examples, filled, finite_observations, zero_observation


@contextmanager
def acting(policy: ActorCriticPolicy, fast_paths: bool = True, recorder: Recorder | None = None) -> Iterator[None]:
    """
    Keep a policy's actions finite within the block, whatever it observes: it sees zeros instead of NaNs and infinities.

    Otherwise torch's distributions would end the run in the middle of a rollout. The buffer still receives what the
    environment sent, so the update sees it and is skipped. Feed-forward networks are computed by hand.

    :param policy: the policy that collects
    :param fast_paths: whether its networks may be computed by hand
    :param recorder: keeps a CUDA graph of the forward pass from one rollout to the next; None to record nothing
    """

    def choose() -> Callable[..., Acted]:
        fast = FastForward.of(policy) if fast_paths else None
        if fast is None:
            return FiniteForward(policy.forward, policy.observation_space)
        return fast if recorder is None else recorder.recorded(fast)

    forward = FirstStep(policy, choose)
    try:
        yield
    finally:
        forward.leave()


class FirstStep:
    """
    Stands in for a policy's forward pass until the first step, and chooses the actual one only then: a callback may
    change the policy when the rollout starts.

    :param policy: the policy, whose forward pass is replaced
    :param choose: returns the forward pass to collect with; called while the policy's own is in place
    """

    def __init__(self, policy: ActorCriticPolicy, choose: Callable[[], Callable[..., Acted]]):
        self._policy = policy
        self._choose = choose
        self._before = vars(policy).get("forward")  # an instance attribute, as a compiled policy may have
        self._own: Callable[..., Acted] = policy.forward
        self._put(self)

    @th.compiler.disable  # type: ignore[untyped-decorator]  # a policy that is compiled in place calls it
    def __call__(self, *args: Any, **kwargs: Any) -> Acted:
        """Act; see ``ActorCriticPolicy.forward``."""
        if not self._is_in_place():  # someone calls it from a wrapper of their own
            others: Acted = FiniteForward(self._own, self._policy.observation_space)(*args, **kwargs)
            return others
        self.leave()
        self._put(self._choose())
        acted: Acted = self._policy.forward(*args, **kwargs)
        return acted

    def __reduce__(self) -> tuple[Any, ...]:
        """Give a copy of the policy its own forward pass."""
        return _itself, (self._own,)

    def leave(self) -> None:
        """Restore the policy's own forward pass, unless someone has replaced it in the meantime."""
        if not self._is_in_place():
            return
        if self._before is None:
            vars(self._policy).pop("forward")
        else:
            self._policy.forward = self._before  # type: ignore[method-assign]

    def _put(self, forward: Callable[..., Acted]) -> None:
        self._in_place = forward
        self._policy.forward = forward  # type: ignore[method-assign]

    def _is_in_place(self) -> bool:
        return vars(self._policy).get("forward") is self._in_place


class FiniteForward:
    """
    A policy's own forward pass, tried on example observations if the observed ones lead to no finite action.

    The examples are zeros, then samples of the observation space.

    :param forward: the policy's own
    :param space: the observation space
    """

    def __init__(self, forward: Callable[..., Acted], space: spaces.Space[Any]):
        self._forward = forward
        self._space = space

    @th.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, obs: PyTorchObs, *others: Any, **more: Any) -> Acted:
        """Act; see ``ActorCriticPolicy.forward``."""
        observed = itertools.chain([finite_observations(obs)], (filled(obs, one) for one in examples(self._space)))
        for each in observed:
            with suppress(NumericalFailure), refusals_as_failures():
                acted = self._forward(each, *others, **more)
                if acted[0].isfinite().all():
                    return acted
        return self._forward(filled(obs, zero_observation(self._space)), *others, **more)

    def __reduce__(self) -> tuple[Any, ...]:
        """Give a copy of the policy its own forward pass."""
        return _itself, (self._forward,)


def _itself(forward: Callable[..., Acted]) -> Callable[..., Acted]:
    return forward
