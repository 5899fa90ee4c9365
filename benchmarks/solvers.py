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

- **`"cg"` as it is**, 15 products at damping 0.1, for any network and for short training. It asks nothing of the
  layers, and on the four tasks below the spread over seeds is larger than what separates it from the preconditioned
  form. That is why it is the default.
- **`"cg"` with `preconditioner="kfac"` and 5 products** for long training of an MLP. It costs about the same, and the
  older the policy, the further 15 plain products are from the solution and the nearer 5 preconditioned ones stay. On
  CartPole and Catch, where plain products arrive by themselves, it gains nothing.
- **`"kfac"` and `"ekfac"` alone** give a rougher direction that can still train well or badly; **`"woodbury"`** serves
  short rollouts and large networks; **`"exact"`, `"diagonal"` and `"identity"`** are there to compare with.

Less damping brings a direction nearer to F⁻¹g, and returns that are lower or spread more: 0.1 stays the default.
Relative damping of 0.1 is too little on Pendulum and Hopper: the step leaves the region in which F holds, and the KL
reached stays below what was predicted. Adaptive damping was run with one seed only; these figures say nothing for or
against it. Factors that are a few updates old lose most of what the preconditioner gains on trained policies; one
random column of the outputs' Fisher is nearly as good as all columns, and cheaper.

Cost is that of networks computed by hand. Returns and qualities were measured before there was that, by autograd, which
gives the same to rounding.
"""


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers", description=__doc__)
    parser.add_argument("--processes", type=int, default=2, help="training runs at once")
    parser.add_argument("--out", type=Path, default=Path("docs/solvers.md"))
    arguments = parser.parse_args(argv)
    solver_returns.main(["--processes", str(arguments.processes)])
    solver_cost.main([])
    returns, cost = Store(Path("benchmarks/results") / solver_returns.STUDY.name), Store(solver_cost.RESULTS)
    quality = Store(solver_quality.RESULTS)
    picture = arguments.out.with_name("solver_cost.png")
    solver_cost.draw(cost, picture)
    write_document(
        arguments.out,
        [
            preamble("Fisher solvers side by side", command_line("benchmarks.solvers", argv)),
            CONCLUSIONS,
            "## Returns",
            *solver_returns.sections(returns, solver_returns.STUDY.runs()),
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
