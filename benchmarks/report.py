"""What the benchmarks share: versions and machine, stored runs, a fresh process for each run, Markdown."""

import argparse
import hashlib
import json
import os
import platform
import shlex
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ParamSpec, Protocol, TypeVar

from rich.progress import track

import sb3_npg

P = ParamSpec("P")
R = TypeVar("R")
K = TypeVar("K")
SomeRun = TypeVar("SomeRun", bound="Run")

_PACKAGES = ("torch", "stable-baselines3", "sb3-contrib", "gymnasium", "mujoco", "numpy")


def environment() -> dict[str, str]:
    """Describe what a figure depends on besides the settings: versions and machine."""
    versions = {"python": platform.python_version(), "sb3-npg": sb3_npg.__version__}
    versions.update({package: _version(package) for package in _PACKAGES})
    return {
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Return the processor's model name; Python's own answer is the architecture alone on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Store:
    """
    Finished runs, one JSON file each, found by their settings, the versions and the machine.

    A change of any of these is a new run, so no table mixes two machines. A change of the source alone is
    not seen: delete the folder to measure again.

    :param folder: where the files lie
    :param any_machine: find runs by their settings alone; each file still tells where it was done
    """

    def __init__(self, folder: Path, any_machine: bool = False):
        self.folder = folder
        self.any_machine = any_machine

    def load(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """Return the figures of a finished run, or None."""
        path = self._path(settings)
        return json.loads(path.read_text())["figures"] if path.exists() else None

    def found(self, runs: Iterable[SomeRun], key: Callable[[SomeRun], K]) -> dict[K, list[dict[str, Any]]]:
        """
        Return the figures of the runs that are finished, by a key, in the order of the runs.

        :param runs: all runs
        :param key: of a run
        """
        found: dict[K, list[dict[str, Any]]] = {}
        for run in runs:
            figures = self.load(run.settings())
            if figures is not None:
                found.setdefault(key(run), []).append(figures)
        return found

    def environments(self) -> set[str]:
        """Return the versions and machines of all runs, a line for each."""
        runs = (json.loads(path.read_text())["environment"] for path in self.folder.glob("*.json"))
        return {f"- {run['versions']}; {run['machine']}" for run in runs}

    def save(self, settings: dict[str, Any], figures: dict[str, Any]) -> None:
        """Keep the figures of a run. The file appears whole or not at all."""
        path = self._path(settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        run = {"settings": settings, "environment": environment(), "figures": figures}
        unfinished.write_text(json.dumps(run, indent=1) + "\n")
        unfinished.replace(path)

    def _path(self, settings: dict[str, Any]) -> Path:
        key = json.dumps(settings if self.any_machine else [settings, environment()], sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def in_fresh_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """
    Call a function in a process of its own, so that no run leaves memory, threads or seeds to the next.

    :param function: importable by name, as its arguments and its answer must be picklable
    :return: its answer
    :raises BrokenProcessPool: if the process is killed
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as executor:
        return executor.submit(function, *args, **kwargs).result()


class Run(Protocol):
    """One run of a benchmark."""

    def settings(self) -> dict[str, Any]:
        """Return all that the run depends on."""
        ...


def measure_missing(
    store: Store, runs: Sequence[SomeRun], measure: Callable[[Store, SomeRun], None], processes: int
) -> None:
    """
    Do the runs that the store does not have, so many at once, each in a process of its own, and show progress.

    :param store: where finished runs are
    :param runs: all runs
    :param measure: does one run and keeps its figures; importable by name
    :param processes: runs at once
    """
    missing = [run for run in runs if store.load(run.settings()) is None]
    with ThreadPoolExecutor(processes) as threads:
        done = threads.map(lambda run: in_fresh_process(measure, store, run), missing)
        for _ in track(done, f"{len(missing)} of {len(runs)} runs to do", total=len(missing)):
            pass


def candidates_parser(name: str, description: str | None, candidates: Sequence[str]) -> argparse.ArgumentParser:
    """
    Return the arguments of a benchmark that compares candidates.

    :param name: of the benchmark, its folder of results and its document
    :param description: what it does
    :param candidates: by name
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--candidates", nargs="+", default=list(candidates), metavar="NAME")
    parser.add_argument("--processes", type=int, default=2, help="runs at once")
    parser.add_argument("--report", action="store_true", help="write the document from what there is")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results") / name)
    parser.add_argument("--out", type=Path, default=Path(f"docs/{name}.md"))
    return parser


def command_line(module: str, argv: Sequence[str]) -> str:
    """Return the command that repeats a benchmark."""
    return shlex.join(["python", "-m", module, *argv])


def preamble(title: str, command: str) -> str:
    """Return the head of a document: what wrote it, with which versions, on which machine."""
    lines = [f"- {name}: {value}" for name, value in environment().items()]
    return "\n".join([f"# {title}", "", f"Written by `{command}`.", "", *lines])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    Return a Markdown table, its first column to the left and figures to the right.

    :param header: titles of the columns
    :param rows: cells, as many as titles
    """
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def mean_and_spread(values: Sequence[float], digits: int = 0) -> str:
    """Return mean ± standard deviation; the value alone if there is one, a dash if there is none."""
    if not values:
        return "–"
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def write_document(path: Path, sections: Iterable[str]) -> None:
    """Write a Markdown document, a blank line between its sections."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(sections) + "\n")
