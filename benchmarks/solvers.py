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

- **`"cg"` as it is**, 15 products, for any network and for short training. It asks nothing of the layers, and its final
  policies have the best mean place, though what separates it from the preconditioned form is less than its seeds
  differ. That is why it is the default.
- **`"cg"` with `preconditioner="kfac"` and 5 products** for long training of an MLP. It costs about the same, and the
  older the policy, the further 15 plain products are from the solution and the nearer 5 preconditioned ones stay. On
  CartPole and Catch, where plain products arrive by themselves, it gains nothing.
- **`"kfac"` and `"ekfac"`** give a rougher direction: far behind on Pendulum, and behind on HalfCheetah. Final policies
  of **`"woodbury"`** on a quarter of the rows are close to those of conjugate gradient, but on HalfCheetah it learns
  more slowly; it is for short rollouts and large networks.
  **`"identity"`** and **`"diagonal"`**, the plain gradient and little more, are far behind on Pendulum and HalfCheetah.

A tenth of the damping, which brings a direction nearer to F⁻¹g, does not return more, and on Hopper far less. Nor does
adaptive damping, which is free to fall that low. Relative damping of 0.1 is too little: it returns least on Hopper and
HalfCheetah. Factors that are a few updates old lose most of what the preconditioner gains on trained policies; one
random column of the outputs' Fisher is nearly as good as all columns, and cheaper.

Three seeds rank nothing that lies close together. Since the runs of the returns the critic takes fewer further steps.
Qualities were measured by autograd, before networks were computed by hand, which gives the same to rounding.
"""


def main(argv: Sequence[str]) -> None:
    """Do what is missing, then write the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(solver_returns.STUDY.seeds), help="of the returns")
    parser.add_argument("--processes", type=int, default=2, help="training runs at once")
    parser.add_argument("--out", type=Path, default=Path("docs/solvers.md"))
    arguments = parser.parse_args(argv)
    solver_returns.main(["--processes", str(arguments.processes), "--seeds", *map(str, arguments.seeds)])
    solver_cost.main([])
    returns, cost = Store(solver_returns.STUDY.results), Store(solver_cost.RESULTS)
    quality = Store(solver_quality.RESULTS)
    picture = arguments.out.with_name("solver_cost.png")
    solver_cost.draw(cost, picture)
    write_document(
        arguments.out,
        [
            preamble("Fisher solvers side by side", command_line("benchmarks.solvers", argv)),
            CONCLUSIONS,
            "## Returns",
            *solver_returns.sections(returns, solver_returns.STUDY.runs(arguments.seeds)),
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
