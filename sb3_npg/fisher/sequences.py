"""Recognises modules that apply others one after the other."""

import itertools
import pickle
import random
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from threading import get_ident
from typing import Any

import numpy as np
import torch as th
from torch import nn
from torch.overrides import TorchFunctionMode

from sb3_npg.fisher.feed_forward import ELEMENTWISE, is_plain

#: Modules that may be applied, and how many dimensions their inputs must have (rows included), or None for any.
_LEAVES: dict[type[nn.Module], int | None] = {
    nn.Conv2d: 4, nn.Linear: 2, nn.Flatten: None, nn.Identity: None, **dict.fromkeys(ELEMENTWISE)
}  # fmt: skip


class _NoSequence(Exception):
    """The module does not just apply layers one after the other."""


def sequence_of(module: nn.Module, example: Callable[[], th.Tensor]) -> list[nn.Module] | None:
    """
    Tell which layers a module applies one after the other, by watching it.

    The example passes through the module's own ``forward``. Every layer must be applied to the output of the one
    before, the same tensor, unmodified, and no torch function may be called in between, not even to decide what to do
    next. The module must do the same in training and in evaluation mode, with gradients and without, and draw no random
    number. A module that holds anything but deterministic layers without buffers is not tried.

    :param module: any module
    :param example: makes its input, one row
    :return: layers in the order of their use; None if it does anything else
    """
    leaves = [leaf for leaf in module.modules() if not any(True for _ in leaf.children())]
    known = all(type(leaf) in _LEAVES for leaf in leaves) and all(map(is_plain, module.modules()))
    if not known or any(True for _ in module.buffers()):
        return None
    states = _states_of_chance()
    watched = [
        _watched(module, mode, leaves, example(), grad) for mode, grad in itertools.product((True, False), repeat=2)
    ]
    if _states_of_chance() != states:  # it draws random numbers: the next call may differ
        random.setstate(states[0])
        np.random.set_state(pickle.loads(states[1]))
        return None
    return watched[0] if all(layers == watched[0] for layers in watched) else None


def _states_of_chance() -> tuple[Any, bytes]:
    """Return the states of Python's and NumPy's random generators; draws from torch's are seen by :class:`_Watch`."""
    return random.getstate(), pickle.dumps(np.random.get_state())


def _watched(
    module: nn.Module, mode: bool, leaves: Iterable[nn.Module], example: th.Tensor, grad: bool
) -> list[nn.Module] | None:
    """Return the layers that are applied in training or evaluation mode; None if anything else is done."""
    watch = _Watch(example)
    with ExitStack() as hooks, th.set_grad_enabled(grad):
        for part in module.modules():
            hooks.callback(setattr, part, "training", part.training)
            part.training = mode
        for leaf in leaves:
            hooks.enter_context(leaf.register_forward_pre_hook(watch.enter))
            hooks.enter_context(leaf.register_forward_hook(watch.leave))
        try:
            with watch:
                made = module(watch.last)
            watch.require_last(made)
        except Exception:  # not only _NoSequence: a module may reject the example
            return None
    return watch.applied


class _Watch(TorchFunctionMode):
    """Follows one tensor from layer to layer, in its own thread only: others may use the layers at the same time."""

    def __init__(self, example: th.Tensor):
        super().__init__()
        self.applied: list[nn.Module] = []
        self._inside = False
        self._thread = get_ident()
        self.last, self._version = example, example._version

    def enter(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Check what a layer is applied to."""
        if get_ident() != self._thread:
            return
        self._inside = True
        self.require_last(*inputs)
        if _LEAVES[type(layer)] not in (None, self.last.dim()):
            raise _NoSequence

    def leave(self, layer: nn.Module, inputs: tuple[Any, ...], output: th.Tensor) -> None:
        """Note the layer and its output."""
        if get_ident() != self._thread:
            return
        self.last, self._version = output, output._version
        self.applied.append(layer)
        self._inside = False

    def require_last(self, *tensors: object) -> None:
        """Give up unless there is exactly one tensor: the last layer's output, unmodified."""
        if len(tensors) != 1 or tensors[0] is not self.last or self.last._version != self._version:
            raise _NoSequence

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self._inside:
            raise _NoSequence
        return func(*args, **(kwargs or {}))
