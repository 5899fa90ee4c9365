"""How many rows may be differentiated at once, so that memory stays bounded whatever the rollout's size."""

import itertools
from collections.abc import Callable, Iterable

import torch as th

#: Largest number of entries of a temporary that has one for each row and parameter.
LARGEST_TEMPORARY = 2**24
#: Number of rows on which the memory of a graph is measured.
_PROBE_ROWS = 8


def memory_budget_of(device: th.device) -> int:
    """Return the bytes that one chunk of rows may take during differentiation: 1/8 of a GPU's memory, or 256 MiB."""
    return th.cuda.get_device_properties(device).total_memory // 8 if device.type == "cuda" else 2**28


def split_rows(n_rows: int, largest: int) -> list[slice]:
    """Cut rows 0 … n_rows − 1 into consecutive slices of nearly equal length, none above ``largest``."""
    n_slices = -(-n_rows // largest)
    bounds = [n_rows * i // n_slices for i in range(n_slices + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def saved_bytes(compute: Callable[[], object], parameters: Iterable[th.Tensor]) -> int:
    """
    Measure what autograd keeps for the backward pass of a computation.

    :param compute: builds a graph
    :param parameters: tensors that exist anyway and do not count
    :return: bytes of the distinct storages that the graph holds
    """
    storages = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    total = 0

    def pack(tensor: th.Tensor) -> th.Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor.detach()  # the tensor itself would form a cycle with its graph, and never be freed

    with th.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # The graph stays alive until all is counted: a freed storage's address would be used again.
        graph = compute()
    del graph
    return total


def rows_within(budget: int, n_rows: int, compute: Callable[[slice], object], parameters: Iterable[th.Tensor]) -> int:
    """
    Find how many rows can be differentiated at once within a memory budget.

    Memory that a graph keeps whatever its number of rows does not count, as fewer rows would not save it: observations
    that are views of the rollout keep the whole rollout.

    :param budget: bytes that autograd may keep for rows
    :param n_rows: number of rows available
    :param compute: builds the graph of some rows
    :param parameters: the tensors of the policy, which do not count
    :return: number of rows, from 1 to ``n_rows``
    """
    parameters = list(parameters)
    few, more = (
        (n, saved_bytes(lambda n=n: compute(slice(0, n)), parameters))  # type: ignore[misc]
        for n in (min(_PROBE_ROWS // 2, n_rows), min(_PROBE_ROWS, n_rows))
    )
    per_row = (more[1] - few[1]) / (more[0] - few[0]) if more[0] > few[0] else more[1] / more[0]
    return max(1, min(n_rows, int(budget / max(per_row, 1.0))))
