"""Numerical failure, which must neither end a run nor lead to a step on a NaN."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import compress
from typing import Any

import torch as th
from torch import nn


class NumericalFailure(ArithmeticError):
    """An update that cannot be made in this precision. Caught by ``NPG.train``, which skips the update."""


def all_finite(*tensors: th.Tensor) -> bool:
    """Tell whether no tensor holds a NaN or an infinity. Integer tensors count as finite. Reads the device once."""
    floats = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel() > 0]
    return not floats or bool(nn.utils.get_total_norm(floats, math.inf).isfinite())


def require_finite(what: str, *tensors: th.Tensor) -> None:
    """
    Stop an update whose figures are not finite.

    :param what: words for the log, such as ``"the surrogate's gradient"``
    :param tensors: the figures
    :raises NumericalFailure: if one is NaN or infinite
    """
    if not all_finite(*tensors):
        raise NumericalFailure(f"{what} is not finite")


@contextmanager
def kept_finite(what: str, modules: Iterable[nn.Module]) -> Iterator[None]:
    """
    Stop an update in which buffers that are finite when the block begins are not when it ends.

    Buffers that are not finite at the beginning are ignored: a mask may be infinite on purpose.

    :param what: words for the log, such as ``"what a module remembers"``
    :param modules: whose own buffers the block writes to, or replaces
    :raises NumericalFailure: if one becomes NaN or infinite
    """
    floats = {place: buffer for place, buffer in _buffers(modules).items() if buffer.is_floating_point()}
    were_finite = th.stack([buffer.isfinite().all() for buffer in floats.values()]).tolist() if floats else []
    yield
    now = _buffers(module for module, _ in floats)
    require_finite(what, *(now[place] for place in compress(floats, were_finite) if place in now))


#: How torch's distributions and random generators begin their messages about a NaN.
_REFUSALS = (
    "Expected parameter", "Expected value argument", "Expected p_in", "probability tensor", "invalid multinomial",
    "normal expects",
)  # fmt: skip


@contextmanager
def refusals_as_failures() -> Iterator[None]:
    """
    Turn errors of torch's distributions and random generators about a NaN into numerical failures, within the block.

    :raises NumericalFailure: if they refuse their parameters
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not str(error).startswith(_REFUSALS):
            raise
        raise NumericalFailure("the policy's distribution is not finite on the rollout") from error


@contextmanager
def restored_on_failure(module: nn.Module, optimizer: th.optim.Optimizer) -> Iterator[None]:
    """
    Restore a module and its optimizer bit for bit, in place, if the block raises.

    After a numerical failure training can go on; after anything else, such as an interrupt by the user, the agent can
    be saved.

    :param module: whose parameters and buffers are restored
    :param optimizer: whose state is restored
    """
    buffers = _buffers(module.modules())
    tensors = [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]
    before = [th.empty_like(tensor) for tensor in tensors]
    th._foreach_copy_(before, tensors)
    optimizer_before = _copied(optimizer.state_dict())
    try:
        yield
    except BaseException:
        for (owner, name), buffer in buffers.items():
            if getattr(owner, name) is not buffer:  # a module may have put another tensor in its place
                setattr(owner, name, buffer)
        for tensor, value in zip(tensors, before, strict=True):
            if not th.equal(tensor, value):  # one that overlaps itself cannot be written to
                tensor.copy_(value)
        optimizer.load_state_dict(optimizer_before)
        raise


def _buffers(modules: Iterable[nn.Module]) -> dict[tuple[nn.Module, str], th.Tensor]:
    """Return the modules' own buffers, by module and name."""
    return {(module, name): buffer for module in modules for name, buffer in module.named_buffers(recurse=False)}


def _copied(state: Any) -> Any:
    """Copy the tensors of a state dict, and the containers around them; ``copy.deepcopy`` takes ten times as long."""
    if isinstance(state, th.Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_copied(value) for value in state)
    return state
