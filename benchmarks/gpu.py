"""
What NPG's solves and updates cost on a GPU: CuPy's kernels compared with torch's, with sb3-contrib's TRPO and SB3's
PPO, and with the time of the necessary arithmetic alone.

``python -m benchmarks.gpu`` measures and prints tables, two to three minutes on a device that is otherwise idle, and
stores the figures of each case as soon as it is done. If a contestant fails, hangs or crashes the device, its row says
so and the others continue. ``--report`` writes ``docs/gpu.md`` from the stored figures and measures nothing.
``--device cpu --quick`` checks the script without a GPU.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch as th

from benchmarks import gpu_report
from benchmarks.gpu_catalogue import ATARI, CASES, ON_DEMAND, PONG, PRECISION
from benchmarks.gpu_timing import DeviceLost, Row, Setting
from benchmarks.gpu_worker import CaseFailed, Worker
from benchmarks.report import command_line, environment, write_document

RESULTS, DOCUMENT = Path("benchmarks/results/gpu"), Path("docs/gpu.md")
#: Where the figures of a check of the script go: they say nothing.
QUICK_RESULTS = Path("runs/gpu")


class Bench:
    """
    Measures cases by workers, a new one after each that was lost.

    :param setting: where the cases run
    """

    def __init__(self, setting: Setting):
        self._setting = setting
        self._worker = Worker(setting)
        self.description = self._worker.description

    def rows(self, case: str) -> list[Row]:
        """Do a case; who fails has a row that says so."""
        return self._rows(case, {})

    def _rows(self, case: str, without: dict[str, str]) -> list[Row]:
        try:
            return self._worker.measure(case, without)
        except CaseFailed as failed:
            return [{"name": "all", "failed": str(failed)}]
        except DeviceLost as lost:
            self._worker.end()
            self._worker = Worker(self._setting)
            if not lost.culprit or lost.culprit in without:
                return [{"name": lost.culprit or "all", "failed": lost.reason}]
            return self._rows(case, {**without, lost.culprit: lost.reason})

    def end(self) -> None:
        """End the worker."""
        self._worker.end()


def load(path: Path) -> dict[str, Any]:
    """Return the cases that a file keeps."""
    cases: dict[str, Any] = json.loads(path.read_text())["cases"] if path.exists() else {}
    return cases


def save(path: Path, stored: dict[str, Any]) -> None:
    """Keep the cases. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"cases": stored}, indent=1) + "\n")
    unfinished.replace(path)


def measure(names: Sequence[str], setting: Setting, folder: Path, command: str) -> None:
    """Do cases, and keep and print each as soon as it is done."""
    bench = Bench(setting)
    path = folder / f"{re.sub('[^a-z0-9]+', '-', bench.description['device'].lower())}.json"
    stored = load(path)
    about = {**bench.description, **environment()}
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    try:
        for name in names:
            start = time.perf_counter()
            rows = bench.rows(name)
            stored[name] = {
                "rows": rows,
                "quick": setting.quick,
                "environment": about,
                "command": command,
                "date": datetime.now(timezone.utc).date().isoformat(),
                "wall_seconds": time.perf_counter() - start,
            }
            save(path, stored)
            print("\n" + "\n\n".join(gpu_report.case_sections(name, stored, "#")), flush=True)
    finally:
        bench.end()
    print(f"\nkept in {path}; seconds of each case: " + _walls({name: stored[name] for name in names}))


def _walls(stored: dict[str, Any]) -> str:
    return ", ".join(f"{name} {one['wall_seconds']:.0f}" for name, one in stored.items())


def report(folder: Path, document: Path, command: str) -> None:
    """Write the document from what a folder keeps."""
    files = {path.stem: load(path) for path in sorted(folder.glob("*.json"))}
    if not files:
        raise SystemExit(f"{folder} keeps no figures. Run `python -m benchmarks.gpu` on a machine with a GPU first.")
    write_document(document, gpu_report.sections(files, command))


def _without_folder(argv: Sequence[str]) -> list[str]:
    """Leave out the folder of the figures, which does not affect them."""
    words = list(argv)
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return words


def main(argv: Sequence[str]) -> None:
    """Measure, or write the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help=f"folder of the figures; {RESULTS}, or {QUICK_RESULTS} with --quick")
    parser.add_argument("--report", type=Path, nargs="?", const=DOCUMENT, help=f"write {DOCUMENT}, or this file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, to check the script")
    parser.add_argument("--seconds", type=float, default=4.0, help="after which a case begins no further round")
    parser.add_argument("--atari", action="store_true", help="let NPG, PPO and A2C play Pong; needs ale-py")
    parser.add_argument("--precision", action="store_true", help="train in float32 and in TF32")
    parser.add_argument("--pong", action="store_true", help="train on Pong to 20 points, for minutes; needs ale-py")
    parser.add_argument("--only", nargs="+", choices=[*CASES, *ON_DEMAND], help="only these cases")
    arguments = parser.parse_args(argv)
    folder = arguments.out or (QUICK_RESULTS if arguments.quick else RESULTS)
    command = command_line("benchmarks.gpu", _without_folder(argv))
    if arguments.report is not None:
        report(folder, arguments.report, command)
        return
    if th.device(arguments.device).type == "cuda" and not th.cuda.is_available():
        raise SystemExit("torch finds no CUDA device. Pass --device cpu --quick to check the script without one.")
    on_demand = {ATARI: arguments.atari, PRECISION: arguments.precision, PONG: arguments.pong}
    names = arguments.only or [*CASES, *(name for name, wanted in on_demand.items() if wanted)]
    measure(names, Setting(th.device(arguments.device), arguments.quick, arguments.seconds), folder, command)


if __name__ == "__main__":
    main(sys.argv[1:])
