"""How many rows fit into a budget."""

import gc
import weakref

import pytest
import torch as th
from torch import nn

from sb3_npg.fisher import FeedForward, KeptJacobian, Linearization, rows_within, split_rows
from sb3_npg.fisher.chunks import saved_bytes
from sb3_npg.parameters import ParameterVector

WIDTH, N_ROWS = 300, 1000


@pytest.mark.parametrize("wanted", [1, 10, 400])
def test_rows_do_not_pay_for_what_they_share(wanted):
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2))
    vector, inputs = ParameterVector(list(network.parameters())), th.randn(N_ROWS, WIDTH)

    def compute(rows: slice) -> Linearization:
        return Linearization(network(inputs[rows]), vector)  # a view keeps the rollout's storage alive

    def kept(n: int) -> int:
        return saved_bytes(lambda: compute(slice(0, n)), network.parameters())

    shared = inputs.numel() * inputs.element_size()
    assert shared > 10 * (kept(16) - kept(8))  # what would make an estimate on eight rows far too large
    budget = kept(wanted) - shared
    assert rows_within(budget, N_ROWS, compute, network.parameters()) == pytest.approx(wanted, abs=1, rel=0.02)


@pytest.mark.parametrize("n_rows", [1, 3, 4, 5, 9])
def test_few_rows_are_measured_too(n_rows):
    network = nn.Linear(3, 2)
    vector = ParameterVector(list(network.parameters()))
    compute = lambda rows: Linearization(network(th.ones(n_rows, 3)[rows]), vector)  # noqa: E731
    assert rows_within(2**20, n_rows, compute, network.parameters()) == n_rows
    assert rows_within(1, n_rows, compute, network.parameters()) == 1


@pytest.mark.parametrize("shared", [True, False])
def test_what_exists_anyway_does_not_count(shared):
    network = nn.Linear(WIDTH, 2)
    inputs = th.randn(1, WIDTH)
    storages = [*network.parameters(), inputs] if shared else network.parameters()
    kept = saved_bytes(lambda: network(inputs.requires_grad_()).sum(), storages)  # whose derivatives need both
    assert kept == (0 if shared else inputs.nbytes)


@pytest.mark.parametrize(("n_rows", "largest"), [(10, 3), (10, 10), (10, 100), (1, 1), (7, 2)])
def test_rows_are_cut_evenly(n_rows, largest):
    slices = split_rows(n_rows, largest)
    lengths = [rows.stop - rows.start for rows in slices]
    assert sum(lengths) == n_rows
    assert max(lengths) <= largest
    assert max(lengths) - min(lengths) <= 1


def test_a_graph_that_was_measured_is_freed():
    made = []

    def compute() -> th.Tensor:
        made.append(parameter.exp())  # whose own result is what the backward pass needs
        return made[0]

    parameter = nn.Parameter(th.ones(3))
    saved_bytes(compute, [parameter])
    left = weakref.ref(made.pop())
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_records_of_layers_are_made_of_no_more_rows_than_are_differentiated_at_once(chunk_rows):
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    read = FeedForward.read(network, [network])
    kept = KeptJacobian(read, th.randn(10, 3), ParameterVector([*network.parameters()]))
    chunks = kept.record_chunks(chunk_rows, 2**28)
    assert max(rows.stop - rows.start for rows in chunks) <= chunk_rows
    assert sum(rows.stop - rows.start for rows in chunks) == 10


def test_jacobian_of_other_rows_is_made_anew():
    network = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    inputs, vector = th.randn(6, 3), ParameterVector(list(network.parameters()))
    kept = KeptJacobian(FeedForward.read(network, [network]), inputs, vector)
    for rows in (slice(0, 3), slice(0, 5), slice(2, 5)):
        assert not kept.holds(rows)
        th.testing.assert_close(kept.of(rows).outputs, network(inputs[rows]).detach())
        assert kept.holds(rows)
