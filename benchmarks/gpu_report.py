"""Tables of the GPU benchmark, from what is stored."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from benchmarks.gpu_cases import GRADIENT, ONE_PRODUCT
from benchmarks.gpu_catalogue import CASES, ON_DEMAND, RATE
from benchmarks.gpu_timing import Row
from benchmarks.report import markdown_table

#: What is stored of one case.
Stored = Mapping[str, Any]

ABOUT = """\
Milliseconds are medians by the host's clock, from one synchronisation with the device to the next, with the quartiles
in brackets; *by events*: the same by the device's own events. Contestants take turns, each time with a new problem;
making the problem, its gradient and the graph that TRPO differentiates is not timed. TRPO's conjugate gradient makes
eleven products, the first of them for its random starting point. *× first*: the median divided by that of the first
line that ran. *floor*: the time of the arithmetic alone; *share*: the floor divided by the median. For multilayer
perceptrons the floor is the matrix products of ten products with F (40.2 kflop per row and product at 17–64–64–6) at
the rate that this device reaches in a float32 product of 8192 × 8192 matrices, without TF32. For NatureCNN it is ten
times the convolutions and matrix products of one F v, timed alone: for each layer two forward, one backward to the
inputs and one to the weights; for the first layer one forward less and none to the inputs. *from torch*: relative
difference from torch's solution on the same device. *first*: the first call, which compiles. Solves are in float32
without TF32; `train()` and Pong run with torch's defaults, which let convolutions use TF32. In `train()` NPG and TRPO
have the same δ and λ and 10 conjugate gradient steps; PPO has SB3's defaults, 10 epochs in batches of 64. Parameters
are reset before each turn. After a name: the KL of the last update, whether its line search succeeded, and how many of
NPG's updates failed numerically."""


#: What the tables of the NVIDIA H200 say.
CONCLUSIONS = """\
**Met.** An update of an MLP policy, `train()` as a whole, is 19 times as fast as TRPO's and 85 times as fast as PPO's;
an update of NatureCNN by conjugate gradient is 9.8 and 16 times as fast. The solve for 64 × 64 units and 2,048 rows
takes a fiftieth of TRPO's time. K-FAC on such a network is 13 times as fast as with torch, by Cholesky 12 times.
Conjugate gradient reaches 61 % of the rate of plain matrix products on 1024 × 1024 units, and 88 % of the rate of its
convolutions on NatureCNN, where the goal, 1.3 times their time, is 77 %. In float32 all solvers are within about 1e-6
of float64, with either backend. On Pong NPG makes half as many steps per second again as PPO, and a third more than
A2C.

**Missed.** The solve for 64 × 64 units takes 0.60 ms instead of 0.35. Its one kernel runs for 0.12 ms; the rest is the
host, where Python is slow after every wait (the same solve repeated takes 0.2 to 0.3 ms). Of the 0.48 ms until the host
waits for the kernel, half goes into making the layers plain tensors and looking up the kernel for them, half into
gathering its arguments and starting it. K-FAC takes 0.79 ms instead of 0.3, of which the eigendecompositions are 0.37;
by Cholesky it takes 0.47 ms, of which the device works for 0.09. With 65,536 rows the solve reaches 40 % of the
arithmetic's rate and the linear system alone 47 %, instead of half; queued one after the other, without waiting for the
host, it reaches 66 % (0.79 ms), with 262,144 rows 74 %. On NatureCNN a K-FAC update costs 6.1 gradients instead of
1.25: four eigendecompositions of 257 to 577 rows in double precision take 18 ms, 2.1 gradients. With one random column,
which learns as much on small games ([minatar.md](minatar.md)) but less on Pong ([pong.md](pong.md)), it costs 4.9
gradients; by Cholesky as well, which also learns less on Pong, 2.8. The cheapest form, ACKTR's, costs 1.7, but its
averaging over positions loses two fifths of the returns on small games. `train()` with K-FAC as in zoo_configs is 6.6
times as fast as TRPO's instead of 8. CuPy's kernels gain little or nothing on NatureCNN, where torch does the work.
(Times in this paragraph that are in no table are from profiles that were not kept.)

**Pong.** Three trainings at once were at 19.6, 17.1 and 18.3 points after 6.8 minutes and 1.13 million steps each,
short of the goal of 20; one of them stayed between 18 and 19 for most of the last two minutes. The environments are
ale-py's own vector, which returns clipped rewards; on Pong these are the game's own.

**What to run where.** A step of a rollout is one CUDA graph. With 16 environments a small network acts as fast on this
GPU as on its host's processor, with one a fifth slower, with 256 four times as fast. Acting for 128 steps of 16
environments takes 17 ms on the GPU and 16 on the processor, the update 16 and 40 ms. NatureCNN trains 46 times as fast
on the GPU, and acts two, three and ten times as fast there with 1, 16 and 256 environments.

**TF32.** On Pendulum the final policies are about as good with TF32 as without (one task, three seeds, each a little
lower). Solutions with it differ by 8e-5 to 6e-4 from torch's in float32. With 65,536 rows the linear system takes three
quarters of the time.

**Errors.** compute-sanitizer's memcheck finds none in the tests of the kernels that solve and of the recorded K-FAC.
Its racecheck was stopped after five of the six for lack of time and had reported nothing by then; that is no verdict.

**Not measured.** An H100, for which the goals are set: these figures are from an H200, which has the same processors
and faster memory. Pong to 20 points. Several devices. How much of the gain in acting is due to the graph. How much the
host has been relieved since these figures: a kernel is now started by one driver call, its arguments are packed at
once, and an update makes its Jacobian once. Whether NatureCNN's eigendecompositions are faster side by side or in one
batch (case `eigen`)."""


def table(name: str, stored: Mapping[str, Stored]) -> str:
    """
    Return the table of a case.

    :param name: of the case
    :param stored: what there is of it, and of the device's rate, by name
    """
    rows: list[Row] = stored[name]["rows"]
    for key, make in (("errors", _errors), ("steps per second", _frames), ("returns", _returns), ("looks", _looks)):
        if any(key in row for row in rows):
            return make(rows)
    counted = CASES[RATE].flop if name == RATE and not stored[name]["quick"] else 0.0
    return _times(rows, _floor(name, stored), counted)


def _times(rows: list[Row], floor: float, counted: float) -> str:
    first = next((row["seconds"][1] for row in rows if "seconds" in row), 0.0)
    cells = [_cells(row, first, floor, counted) for row in rows]
    header = ["contestant", "ms", "by events, ms", "× first", "floor, ms", "share", "from torch", "first, ms"]
    return markdown_table([*header, *(["TFLOP/s"] if counted else [])], cells)


def _cells(row: Row, first: float, floor: float, counted: float) -> list[str]:
    if "failed" in row:
        return [row["name"], _failure(row), *["–"] * (7 if counted else 6)]
    if row["name"] in (GRADIENT, ONE_PRODUCT):
        floor = 0.0
    low, middle, high = (1e3 * seconds for seconds in row["seconds"])
    remark = f" ({row['remark']})" if row.get("remark") else ""
    cells = [
        row["name"] + remark,
        f"{_number(middle)} ({_number(low)}–{_number(high)})",
        _number(1e3 * row["events"][1]),
        f"{row['seconds'][1] / first:.2f}",
        _number(1e3 * floor) if floor else "–",
        f"{floor / row['seconds'][1]:.0%}" if floor else "–",
        f"{row['difference']:.0e}" if "difference" in row else "–",
        _number(1e3 * row["first"]),
    ]
    return [*cells, f"{counted / row['seconds'][1] / 1e12:.1f}"] if counted else cells


def _floor(name: str, stored: Mapping[str, Stored]) -> float:
    """Return the seconds that a case cannot do without, or 0 if they are not known."""
    case = (CASES | ON_DEMAND)[name]
    if case.floor is not None:
        row, times = case.floor
        return next((times * one["seconds"][1] for one in stored[name]["rows"] if _has(one, row)), 0.0)
    if not case.flop or stored[name]["quick"] or name == RATE or RATE not in stored or stored[RATE]["quick"]:
        return 0.0
    seconds = next((one["seconds"][1] for one in stored[RATE]["rows"] if "seconds" in one), 0.0)
    return case.flop / CASES[RATE].flop * seconds


def _has(row: Row, name: str) -> bool:
    return row["name"] == name and "seconds" in row


def _errors(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.get("errors", {})))
    cells = [
        [row["name"], _failure(row), *["–"] * (len(names) - 1)]
        if "failed" in row
        else [row["name"], *(f"{row['errors'][name]:.0e}" if name in row["errors"] else "–" for name in names)]
        for row in rows
    ]
    return markdown_table(["policy, backend", *names], cells)


def _frames(rows: list[Row]) -> str:
    cells = [
        [row["name"], _failure(row), "–"]
        if "failed" in row
        else [row["name"], f"{row['steps per second']:,.0f}", f"{4 * row['steps per second']:,.0f}"]
        for row in rows
    ]
    return markdown_table(["algorithm", "steps/s", "frames/s"], cells)


def _returns(rows: list[Row]) -> str:
    cells = [
        [row["name"], _failure(row), "–"]
        if "failed" in row
        else [row["name"], f"{fmean(row['returns']):,.0f}", ", ".join(f"{one:,.0f}" for one in row["returns"])]
        for row in rows
    ]
    return markdown_table(["products", "mean return", "by seed"], cells)


def _looks(rows: list[Row]) -> str:
    minutes = max((int(row["looks"][-1]["seconds"] / 60.0) for row in rows if "looks" in row), default=1)
    cells = [
        [row["name"], _failure(row), *["–"] * (minutes + 1)] if "failed" in row else _training(row, minutes)
        for row in rows
    ]
    return markdown_table(["training", *(f"{i + 1} min" for i in range(minutes)), "end", "steps"], cells)


def _training(row: Row, minutes: int) -> list[str]:
    """Return the returns after each minute, and that of the end with when it was."""
    *looks, end = row["looks"]
    by_minute = {round(look["seconds"] / 60.0): look for look in looks if round(look["seconds"] / 30.0) % 2 == 0}
    points = [f"{by_minute[i + 1]['return']:.1f}" if i + 1 in by_minute else "–" for i in range(minutes)]
    return [
        row["name"],
        *points,
        f"{end['return']:.1f} after {end['seconds'] / 60.0:.1f} min",
        f"{end['steps']:,.0f}",
    ]


def _failure(row: Row) -> str:
    return f"failed: {row['failed']}".replace("|", "\\|")


def _number(milliseconds: float) -> str:
    """Return milliseconds with three figures or more."""
    digits = 3 if milliseconds < 1.0 else 2 if milliseconds < 10.0 else 1 if milliseconds < 100.0 else 0
    return f"{milliseconds:.{digits}f}"


def sections(files: Mapping[str, Mapping[str, Stored]], command: str) -> list[str]:
    """
    Write the document.

    :param files: by device, what is stored of each case
    :param command: that repeats the writing
    :return: Markdown
    """
    parts = ["# Updates on a GPU", f"Written by `{command}`.", ABOUT, "## What this says", CONCLUSIONS]
    for stored in files.values():
        first = next(iter(stored.values()))
        parts += [f"## {first['environment']['device']}", _measured(stored)]
        for name in [name for name in (*CASES, *ON_DEMAND) if name in stored]:
            parts += case_sections(name, stored, "###")
    return parts


def case_sections(name: str, stored: Mapping[str, Stored], level: str) -> list[str]:
    """Return a case's heading, its goal and its table."""
    case = (CASES | ON_DEMAND)[name]
    goal = [f"Goal: {case.goal}."] if case.goal else []
    return [f"{level} {case.title}", *goal, table(name, stored)]


def _measured(stored: Mapping[str, Stored]) -> str:
    """Return how the cases were measured, a line for each way."""
    ways: dict[str, list[str]] = {}
    for name, one in stored.items():
        environment = "; ".join(f"{key} {value}" for key, value in one["environment"].items())
        ways.setdefault(f"- `{one['command']}`, {one['date']}: {environment}", []).append(name)
    if len(ways) == 1:
        return next(iter(ways))
    return "\n".join(f"{way}; cases {', '.join(names)}" for way, names in ways.items())
