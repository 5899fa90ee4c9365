"""Contestants of the GPU benchmark, timed in turn."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch as th

from benchmarks.speed_products import quartiles

#: Rounds of a case at most, those that are made whatever they take, and those before them that warm up.
ROUNDS, LEAST_ROUNDS, WARM_UPS = 50, 3, 3
#: A row of a table: the contestant's name and its figures, or why there are none.
Row = dict[str, Any]


class Setting(NamedTuple):
    """
    Where a case runs.

    :param device: of policies and rollouts
    :param quick: the smallest sizes, to check the script
    :param seconds: after which a case begins no further round
    """

    device: th.device
    quick: bool
    seconds: float

    @property
    def backends(self) -> tuple[str, ...]:
        """Who runs the linear algebra; the first is ours."""
        return ("cupy", "torch") if self.device.type == "cuda" else ("torch",)

    def size(self, full: int, quick: int) -> int:
        """Return a size, or what stands for it in a check of the script."""
        return quick if self.quick else full


class Contestant(NamedTuple):
    """
    Something to time.

    :param name: in the tables
    :param prepare: does what is not timed, anew for each round, and returns what is timed; if that returns a tensor, it
        is compared with that of the contestant ``like``
    :param like: name of another contestant that computes the same
    :param remark: tells at the end what its time depends on, if there is something to tell
    """

    name: str
    prepare: Callable[[], Callable[[], object]]
    like: str = ""
    remark: Callable[[], str] = str


class DeviceLost(RuntimeError):
    """
    The device no longer answers, and only a new process can use it again.

    :param culprit: name of the contestant that was running
    :param reason: what it said
    """

    def __init__(self, culprit: str, reason: str):
        super().__init__(culprit, reason)
        self.culprit = culprit
        self.reason = reason


def reason_of(error: BaseException) -> str:
    """Return an error in one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def synchronize(device: th.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        th.cuda.synchronize(device)


def require_alive(device: th.device, culprit: str, error: BaseException) -> None:
    """Raise :class:`DeviceLost` if an error left the device useless."""
    try:
        synchronize(device)
        float(th.ones(8, device=device).sum())
    except RuntimeError as lost:
        raise DeviceLost(culprit, reason_of(error)) from lost


def timed(run: Callable[[], object], device: th.device) -> tuple[float, float, object]:
    """Return the seconds that a run takes, by the host's clock and by the device's events, and what it returns."""
    synchronize(device)
    if device.type != "cuda":
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
        return seconds, seconds, result
    first, last = (th.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start = time.perf_counter()
    first.record()
    result = run()
    last.record()
    synchronize(device)
    return time.perf_counter() - start, 1e-3 * first.elapsed_time(last), result


class Race:
    """
    Times contestants in turn, so that a slow moment of the machine affects all of them.

    :param contestants: in the order of their turns
    :param setting: where they run
    :param starting: told the name of each contestant before its turn
    """

    def __init__(self, contestants: Iterable[Contestant], setting: Setting, starting: Callable[[str], None]):
        self.contestants = list(contestants)
        self._setting = setting
        self._starting = starting
        self._failures: dict[str, str] = {}
        self._results: dict[str, object] = {}
        self._first: dict[str, float] = {}
        self._seconds: dict[str, list[tuple[float, float]]] = {one.name: [] for one in self.contestants}

    def run(self, without: dict[str, str]) -> list[Row]:
        """
        Warm up, and take turns until time or rounds are used up.

        :param without: contestants that do not run, and why
        :return: a row for each contestant
        """
        self._failures.update(without)
        for one in self._standing():
            self._warm_up(one)
        deadline = time.perf_counter() + self._setting.seconds
        for done in range(self._setting.size(ROUNDS, LEAST_ROUNDS)):
            if done >= LEAST_ROUNDS and time.perf_counter() > deadline:
                break
            for one in self._standing():
                if (turn := self._turn(one)) is not None:
                    self._seconds[one.name].append(turn[:2])
        return [self._row(one) for one in self.contestants]

    def _standing(self) -> Sequence[Contestant]:
        return [one for one in self.contestants if one.name not in self._failures]

    def _warm_up(self, one: Contestant) -> None:
        """Compile and load what is compiled and loaded at first use; the first time is told apart."""
        deadline = time.perf_counter() + self._setting.seconds
        for done in range(WARM_UPS):
            turn = self._turn(one)
            if turn is None:
                return
            if done == 0:
                self._first[one.name], _, self._results[one.name] = turn
            if time.perf_counter() > deadline:
                return

    def _turn(self, one: Contestant) -> tuple[float, float, object] | None:
        """Let a contestant run; one that fails is out."""
        device = self._setting.device
        self._starting(one.name)
        try:
            return timed(one.prepare(), device)
        except Exception as error:
            self._failures[one.name] = reason_of(error)
            require_alive(device, one.name, error)
            return None

    def _row(self, one: Contestant) -> Row:
        if one.name in self._failures:
            return {"name": one.name, "failed": self._failures[one.name]}
        host, events = (quartiles(list(column)) for column in zip(*self._seconds[one.name], strict=True))
        row: Row = {"name": one.name, "seconds": host, "events": events, "rounds": len(self._seconds[one.name])}
        row["first"] = self._first[one.name]
        row["remark"] = one.remark()
        mine, other = self._results[one.name], self._results.get(one.like)
        if isinstance(mine, th.Tensor) and isinstance(other, th.Tensor):
            row["difference"] = float((mine - other).norm() / other.norm())
        return row
