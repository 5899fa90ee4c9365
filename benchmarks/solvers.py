"""
The solvers side by side: returns in training, quality of the direction, cost and memory, in one document.

``python -m benchmarks.solvers`` does the runs that are missing in :mod:`benchmarks.solver_returns` and
:mod:`benchmarks.solver_cost`, and writes ``docs/solvers.md`` from them and from the stored figures of
:mod:`benchmarks.solver_quality`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import solver_cost, solver_quality, solver_returns
from benchmarks.report import Store, command_line, preamble, write_document

#: What the tables below it say, in the words of those who read them.
CONCLUSIONS = """\
## Which solver, when
"""


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers", description=__doc__)
    parser.add_argument("--processes", type=int, default=2, help="training runs at once")
    parser.add_argument("--out", type=Path, default=Path("docs/solvers.md"))
    arguments = parser.parse_args(argv)
    common = ["--processes", str(arguments.processes)]
    solver_returns.main(common)
    solver_cost.main([])
    returns, cost = Store(solver_returns.RESULTS), Store(solver_cost.RESULTS)
    quality = Store(Path("benchmarks/results/solver_quality"))
    picture = arguments.out.with_name("solver_cost.png")
    solver_cost.draw(cost, picture)
    write_document(
        arguments.out,
        [
            preamble("Fisher solvers side by side", command_line("benchmarks.solvers", argv)),
            CONCLUSIONS,
            "## Returns",
            *solver_returns.sections(returns, solver_returns.all_runs()),
            "## Quality of the direction",
            "All tables, those for relative damping and cheaper statistics too, are in "
            "[solver_quality.md](solver_quality.md).",
            solver_quality.sections(quality)[0],
            *solver_quality.verdicts(quality),
            "![quality over products with the Fisher](solver_quality.png)",
            "## Cost",
            *solver_cost.sections(cost),
            f"![seconds of one solve]({picture.name})",
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
