"""A process that measures cases on a device, and is given up when the device is lost or does not answer."""

import warnings
from importlib.metadata import packages_distributions, version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch as th

from benchmarks.gpu_catalogue import CASES, ON_DEMAND, Case
from benchmarks.gpu_timing import DeviceLost, Row, Setting, reason_of

#: Seconds without a word after which a contestant counts as hanging: a kernel whose blocks wait for each other may.
PATIENCE = 45.0


class CaseFailed(RuntimeError):
    """A case could not even be set up."""


class Worker:
    """
    Starts the process.

    :param setting: where its cases run
    """

    def __init__(self, setting: Setting):
        context = get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=serve, args=(far, setting))
        self._process.start()
        far.close()
        #: The device and what drives it.
        self.description: dict[str, str] = self._read("")[1]

    def measure(self, case: str, without: dict[str, str]) -> list[Row]:
        """
        Do a case.

        :param case: its name
        :param without: contestants to leave out, and why
        :return: a row for each contestant
        :raises CaseFailed: if it cannot be set up
        :raises DeviceLost: if this worker is of no use any more
        """
        self._pipe.send((case, without))
        culprit = ""
        while True:
            kind, content = self._read(culprit)
            if kind == "starting":
                culprit = content
            elif kind == "lost":
                raise DeviceLost(*content)
            elif kind == "failed":
                raise CaseFailed(content)
            else:
                rows: list[Row] = content
                return rows

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _read(self, culprit: str) -> tuple[str, Any]:
        try:
            if not self._pipe.poll(PATIENCE):
                raise DeviceLost(culprit, f"no answer in {PATIENCE:.0f} s")
            message: tuple[str, Any] = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(PATIENCE)
            raise DeviceLost(culprit, f"its process ended with {self._process.exitcode}") from error
        return message


def serve(pipe: Connection, setting: Setting) -> None:
    """Describe the device, then do the cases that are asked for."""
    warnings.simplefilter("ignore")
    pipe.send(("ready", describe(setting.device)))
    while True:
        try:
            name, without = pipe.recv()
        except EOFError:
            return
        pipe.send(_answer((CASES | ON_DEMAND)[name], setting, pipe, without))


def _answer(case: Case, setting: Setting, pipe: Connection, without: dict[str, str]) -> tuple[str, Any]:
    th.backends.cuda.matmul.allow_tf32 = False
    th.backends.cudnn.allow_tf32 = case.tf32
    if setting.device.type == "cuda":
        th.cuda.empty_cache()  # of the case before
    try:
        return "rows", case.measure(setting, lambda name: pipe.send(("starting", name)), without)
    except DeviceLost as lost:
        return "lost", (lost.culprit, lost.reason)
    except Exception as error:
        return "failed", reason_of(error)


def describe(device: th.device) -> dict[str, str]:
    """Return the device's name and the versions of what drives it."""
    if device.type != "cuda":
        return {"device": device.type}
    found = th.cuda.get_device_properties(device)
    return {
        "device": found.name,
        "processors": str(found.multi_processor_count),
        "memory": f"{found.total_memory / 2**30:.0f} GiB",
        "cuda": str(th.version.cuda),
        "cudnn": str(th.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "cupy": _cupy_version(),
    }


def _cupy_version() -> str:
    packages = packages_distributions().get("cupy", [])
    return ", ".join(f"{package} {version(package)}" for package in dict.fromkeys(packages)) or "not installed"
