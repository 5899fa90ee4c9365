"""Numerical failure: never the end of a run, never a step on a NaN."""

import torch as th


class NumericalFailure(ArithmeticError):
    """An update that cannot be made in this precision. Caught by ``NPG.train``, which skips the update."""


def all_finite(*tensors: th.Tensor) -> bool:
    """Tell whether no tensor holds a NaN or an infinity. Integers always do well."""
    return all(bool(th.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point())


def require_finite(what: str, *tensors: th.Tensor) -> None:
    """
    Stop an update whose figures are not finite.

    :param what: words for the log, such as ``"the surrogate's gradient"``
    :param tensors: the figures
    :raises NumericalFailure: if one is NaN or infinite
    """
    if not all_finite(*tensors):
        raise NumericalFailure(f"{what} is not finite")
