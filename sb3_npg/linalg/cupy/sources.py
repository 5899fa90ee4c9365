"""The CUDA sources of the kernels, and the constants that they are compiled with."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import torch as th

from sb3_npg.precision import products_in_tf32

#: Constants by name, as they stand in the source.
Defines = Mapping[str, str | int]


@cache
def _text(name: str) -> str:
    return files("sb3_npg.linalg.cupy").joinpath("kernels", name).read_text(encoding="utf-8")


def kernel_source(name: str, defines: Defines, includes: tuple[str, ...] = ()) -> str:
    """
    Return the complete source of a kernel.

    :param name: of the file, without its extension
    :param defines: constants that it is compiled with
    :param includes: files that it needs besides those that all need, without their extension
    :return: CUDA C++17 of one translation unit
    """
    constants = "".join(f"#define {key} {value}\n" for key, value in defines.items())
    files_needed = ("common.cuh", *(f"{file}.cuh" for file in includes), f"{name}.cu")
    return constants + "".join(map(_text, files_needed))


def terms() -> int:
    """
    Return how many tensor-core products make one in single precision: three, or one in TF32.

    Kernels follow the same switch as torch's own matrix products.
    """
    return 1 if products_in_tf32() else 3


def real(dtype: th.dtype) -> str:
    """Return the kernels' type for numbers of a dtype."""
    return "float" if dtype == th.float32 else "double"


def by_block(values: Sequence[str]) -> str:
    """Return C code that selects a block's own value; an array would be copied to local memory."""
    *others, last = values
    return "(" + "".join(f"blockIdx.x == {i} ? {value} : " for i, value in enumerate(others)) + last + ")"


def c_list(numbers: "list[int] | tuple[int, ...]") -> str:
    """Return numbers as the contents of a C initialiser list."""
    return ", ".join(str(number) for number in numbers)


def rounded_up(n: int, unit: int) -> int:
    """Return the smallest multiple of ``unit`` that is not below n."""
    return -(-n // unit) * unit


def row_stride(n: int) -> int:
    """Return the length of a row of n numbers in shared memory, like the kernels' function of this name."""
    vectors = -(-n // 4)
    return 4 * (vectors + (vectors + 1) % 2)
