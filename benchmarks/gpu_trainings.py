"""Whole trainings on a GPU, several at once, each in a process of its own."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any, NamedTuple

from benchmarks.gpu_timing import reason_of

#: Seconds after which the others are told that trainings go on.
_NEWS = 10.0


class Outcome(NamedTuple):
    """
    What became of the trainings of one name.

    :param found: what they returned
    :param failed: why one of them did not; empty if all did
    """

    found: list[Any]
    failed: str = ""


def at_once(
    train: Callable[..., Any],
    jobs: Mapping[str, Sequence[tuple[Any, ...]]],
    starting: Callable[[str], None],
    without: Mapping[str, str],
) -> dict[str, Outcome]:
    """
    Train all at once.

    :param train: importable by name, as its arguments and its answer must be picklable
    :param jobs: its arguments, for each training of a name
    :param starting: told the names that are still training, every few seconds
    :param without: names that are left out, and why
    :return: what became of them, by name
    """
    standing = {name: some for name, some in jobs.items() if name not in without}
    n_processes = max(1, sum(map(len, standing.values())))
    with ProcessPoolExecutor(n_processes, get_context("spawn")) as processes:
        runs = {name: [processes.submit(train, *job) for job in some] for name, some in standing.items()}
        while wait([run for some in runs.values() for run in some], _NEWS).not_done:
            starting(", ".join(runs))
    outcomes = {name: Outcome([], reason) for name, reason in without.items()}
    for name, some in runs.items():
        error = next((error for run in some if (error := run.exception()) is not None), None)
        outcomes[name] = Outcome([run.result() for run in some]) if error is None else Outcome([], reason_of(error))
    return outcomes
