"""
What an update and a rollout cost: NPG with each solver compared with sb3-contrib's TRPO, SB3's PPO and A2C, SBX's PPO
and tianshou's NPG and TRPO.

Each algorithm runs in a process of its own, on one core; they take turns iteration by iteration, so that a slow moment
of the machine affects all of them. Algorithms that cannot share our virtual environment get one each under ``.peers``.
``python -m benchmarks.update_speed`` measures what is missing and writes ``docs/performance.md``; it needs an
otherwise idle machine.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks import speed_products, speed_report
from benchmarks.report import Store, command_line, in_fresh_process, write_document
from benchmarks.speed_peers import (
    A2C,
    ADAM,
    CG,
    GENERIC,
    PPO,
    REQUIREMENTS,
    SBX,
    SOLVERS,
    TIANSHOU,
    TRPO,
    Peer,
    Size,
    Worker,
    make_environments,
)

RESULTS = Path("benchmarks/results/update_speed")
ROWS = (512, 2048, 8192, 32_768)
WIDTHS = (64, 256, 1024)
#: Largest rollout and network that PPO is measured on: it takes minutes beyond.
PPO_ROWS, PPO_WIDTH = 8192, 256


@dataclass(frozen=True)
class Group:
    """
    Algorithms that take turns.

    :param title: what they show
    :param size: what they are run on
    :param peers: the algorithms
    :param rounds: iterations of each, after one that warms up
    """

    title: str
    size: Size
    peers: tuple[Peer, ...]
    rounds: int

    def settings(self) -> dict[str, Any]:
        """Return all that the figures depend on."""
        peers = [asdict(peer) for peer in self.peers]
        needed = {peer.home: REQUIREMENTS[peer.home] for peer in self.peers if peer.home}
        return {"title": self.title, **asdict(self.size), "peers": peers, "rounds": self.rounds, "elsewhere": needed}


def groups(rounds: int = 15, quick: bool = False) -> list[Group]:
    """
    Return all groups.

    :param rounds: iterations of each algorithm in the groups of the standard size
    :param quick: only what our own virtual environment has, at the smallest sizes, as the tests do
    """
    if quick:
        return [Group("8 environments", Size(rows=128), (CG, TRPO), rounds)]
    few = max(3, rounds // 3)
    main = (CG, *ADAM, GENERIC, TRPO, PPO, A2C, SBX, *TIANSHOU)
    return [
        Group("8 environments", Size(), main, rounds),
        Group("1 environment", Size(n_envs=1), (CG, TRPO, PPO, SBX), few),
        Group("8 environments, 2 threads", Size(threads=2), (CG, TRPO, PPO), few),
        Group("solvers", Size(env_id="vectors"), (*SOLVERS, TRPO), rounds),
        *(Group("rows", Size(env_id="vectors", rows=rows), _affordable(Size(rows=rows)), few) for rows in ROWS),
        *(
            Group("width", Size(env_id="vectors", width=width), _affordable(Size(width=width)), few)
            for width in WIDTHS[1:]
        ),
        Group("images", Size(env_id="images", rows=512), (CG, SOLVERS[1], GENERIC, TRPO, PPO, A2C), few),
    ]


def _affordable(size: Size) -> tuple[Peer, ...]:
    """Return the algorithms that do not take minutes at a size."""
    ppo = (PPO,) if size.rows <= PPO_ROWS and size.width <= PPO_WIDTH else ()
    woodbury = tuple(peer for peer in SOLVERS if "woodbury" not in peer.name or size.rows <= PPO_ROWS)
    return (*(peer for peer in woodbury if peer.name != "NPG, EKFAC"), TRPO, *ppo)


def measure(store: Store, group: Group) -> None:
    """Let the algorithms of a group take turns, and keep what each iteration took."""
    make_environments(sorted({peer.home for peer in group.peers if peer.home}))
    workers = [Worker(peer, group.size) for peer in group.peers]
    figures: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in group.peers}
    try:
        for _ in track(range(group.rounds + 1), f"{group.title}, {group.size.rows} rows", transient=True):
            for worker in workers:
                figures[worker.peer.name].append(worker.iterate())
    finally:
        for worker in workers:
            worker.quit()
    store.save(group.settings(), {name: iterations[1:] for name, iterations in figures.items()})


def products_settings(rounds: int) -> dict[str, Any]:
    """Return all that the figures of single products depend on."""
    return {"title": "products", "width": 64, "rows": 2048, "rounds": rounds, "threads": 1}


def main(argv: Sequence[str]) -> None:
    """Measure what is missing, then write the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="iterations of each algorithm")
    parser.add_argument("--quick", action="store_true", help="only NPG and TRPO, at a small size")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"))
    arguments = parser.parse_args(argv)
    store = Store(arguments.results)
    wanted = groups(arguments.rounds, arguments.quick)
    for group in wanted:
        if store.load(group.settings()) is None:
            measure(store, group)
    settings = products_settings(10 * arguments.rounds)
    if store.load(settings) is None:
        store.save(settings, in_fresh_process(speed_products.measure, 64, 2048, 10 * arguments.rounds))
    picture = arguments.out.with_suffix(".png")
    found = {group: figures for group in wanted if (figures := store.load(group.settings())) is not None}
    products = store.load(settings)
    speed_report.draw(found, picture)
    command = command_line("benchmarks.update_speed", argv)
    write_document(arguments.out, speed_report.sections(found, products or {}, command, picture.name))


if __name__ == "__main__":
    main(sys.argv[1:])
