"""A kernel's arguments in memory, as a driver reads them."""

import ctypes
import struct
from collections.abc import Sequence

import numpy as np
import torch as th

from sb3_npg.linalg.cupy.device import Argument

_BYTES = 8
_FORMATS: dict[type, str] = {np.int32: "i4x", np.float32: "f4x", np.float64: "d"}
_ADDRESS = "Q"


class PackedArguments:
    """
    Room for the arguments of a kernel, eight bytes each, and their addresses.

    Packing them takes one call, whereas CuPy makes an object for each argument.

    :param like: example arguments of the kernel; a tensor may later be a null pointer, and the other way round
    """

    def __init__(self, like: Sequence[Argument]):
        formats = [_FORMATS.get(type(argument), _ADDRESS) for argument in like]
        self._struct = struct.Struct("<" + "".join(formats))
        self._values = ctypes.create_string_buffer(self._struct.size)
        begin = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * len(like))(*range(begin, begin + self._struct.size, _BYTES))
        #: Address of the array that holds the arguments' addresses.
        self.address = ctypes.addressof(self._pointers)

    def pack(self, arguments: Sequence[Argument]) -> None:
        """Write arguments into their places."""
        self._struct.pack_into(self._values, 0, *map(_value, arguments))


def _value(argument: Argument) -> int | np.generic:
    if isinstance(argument, th.Tensor):
        return argument.data_ptr()
    return 0 if argument is None else argument
