"""Attention that torch can differentiate twice, in a process where several agents may train at once."""

from contextlib import ContextDecorator, ExitStack
from threading import Lock
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel


class _TwiceDifferentiableAttention(ContextDecorator):
    """
    Makes torch compute attention by operations that it can differentiate twice, within a block or a function.

    Torch's switches apply to the whole process: the first thread to enter sets them, the last to leave restores them.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._n_inside = 0
        self._switched = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._switched.enter_context(sdpa_kernel(SDPBackend.MATH))
            self._n_inside += 1

    def __exit__(self, *_error: Any) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._switched.close()


twice_differentiable_attention = _TwiceDifferentiableAttention()
