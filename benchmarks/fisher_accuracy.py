"""
How exact the Fisher is, for each action distribution and kind of policy, in float64.

``python -m benchmarks.fisher_accuracy`` prints a table and writes it to ``docs/fisher_accuracy.md``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch as th

from benchmarks.report import command_line, markdown_table, preamble, write_document
from tests import reference
from tests.cases import DISTRIBUTIONS, POLICIES, in_float64, make_problem

N_STATES = 6
LARGEST_ERROR = 1e-8


class Errors(NamedTuple):
    """Relative errors ‖a − b‖ / ‖b‖ of one policy's Fisher."""

    n_parameters: int
    product: float
    scores: float
    hessian: float


def measure(distribution: str, policy: str, seed: int = 0) -> Errors:
    """
    Compare F·v with the dense F, and the dense F with two definitions that share no code with it.

    :param distribution: a key of ``tests.cases.DISTRIBUTIONS``
    :param policy: a key of ``tests.cases.POLICIES``
    :param seed: of weights, states, actions and vectors
    :return: errors of F·v against the dense F, and of the dense F against E[∇log π ∇log πᵀ] and ∇² KL
    """
    problem = make_problem(distribution, policy, N_STATES, seed)
    dense = problem.dense_fisher()
    vectors = th.randn(5, len(dense), dtype=th.float64)
    products = th.stack([problem.fisher_vector_product(vector) for vector in vectors])
    scores = reference.score_fisher(problem.policy, problem.observations, N_STATES, problem.parameters)
    kl, _ = reference.mean_kls(problem.policy, problem.observations, N_STATES)
    return Errors(
        len(dense),
        reference.relative_error(products, vectors @ dense),
        reference.relative_error(dense, scores),
        reference.relative_error(dense, reference.hessian(kl, problem.parameters)),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """
    Measure all, print and write the table.

    :param argv: command line, by default the process's own
    :return: 0 if every error is within 1e-8, else 1
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/fisher_accuracy.md"), help="where the table goes")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    in_float64()
    results = {(d, p): measure(d, p, arguments.seed) for d in DISTRIBUTIONS for p in POLICIES}
    rows = [
        (d, p, str(e.n_parameters), f"{e.product:.1e}", f"{e.scores:.1e}", f"{e.hessian:.1e}")
        for (d, p), e in results.items()
    ]
    header = ("distribution", "policy", "p", "F·v / dense F", "dense F / E[∇log π ∇log πᵀ]", "dense F / ∇² KL")
    table = markdown_table(header, rows)
    largest = max(max(e.product, e.scores, e.hessian) for e in results.values())
    verdict = f"Largest error: {largest:.1e}; allowed: {LARGEST_ERROR:.0e}."
    about = (
        f"Relative errors in float64 on {N_STATES} states, seed {arguments.seed}. The first compares `F·v` "
        "(double-vjp) with the dense Fisher. The others compare the dense Fisher with the covariance of the scores, "
        "where every action is enumerated or integrated by quadrature through SB3's `log_prob`, and with the Hessian "
        "of torch's KL."
    )
    command = command_line("benchmarks.fisher_accuracy", sys.argv[1:] if argv is None else argv)
    write_document(arguments.out, [preamble("Accuracy of the Fisher", command), about, table, verdict])
    print(table, verdict, f"Written to {arguments.out}", sep="\n\n")
    return int(largest > LARGEST_ERROR)


if __name__ == "__main__":
    sys.exit(main())
