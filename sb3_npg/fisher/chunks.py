"""How many rows may be differentiated at once, so that memory stays bounded whatever the rollout's size."""

import itertools
from collections.abc import Callable, Iterable

import torch as th

#: Numbers that a temporary with an entry for each row and parameter may hold.
LARGEST_TEMPORARY = 2**24
#: Rows that a graph is measured on.
_PROBE_ROWS = 8


def memory_budget_of(device: th.device) -> int:
    """Return the bytes that one chunk of rows may take while it is differentiated: of a GPU's memory, an eighth."""
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
        return tensor.detach()  # itself would be held by the graph that made it, for ever

    with th.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # The graph stays alive until all is counted: a freed storage's address would be used again.
        graph = compute()
    del graph
    return total


def rows_within(budget: int, n_rows: int, compute: Callable[[slice], object], parameters: Iterable[th.Tensor]) -> int:
    """
    Find how many rows can be differentiated at once within a memory budget.

    What a graph keeps whatever the number of its rows does not count, as fewer rows would not spare it: observations
    that are views of the rollout keep all of it.

    :param budget: bytes that autograd may keep for rows
    :param n_rows: rows there are
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
