"""What every test runs under: one thread, a fixed seed, no figure window."""

import importlib

import matplotlib
import pytest
import torch as th

from sb3_npg.solvers import FISHER_SOLVERS, FisherSolver
from tests.cases import in_float64


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    matplotlib.use("Agg")
    th.set_num_threads(1)
    th.manual_seed(0)


@pytest.fixture
def float64(monkeypatch):
    """Let SB3's policies see observations in float64."""
    in_float64(monkeypatch.setattr)


@pytest.fixture
def custom_solver(monkeypatch):
    """Return the example's module, its solver registered for this test only: others ask for every solver there is."""
    monkeypatch.setitem(FISHER_SOLVERS, "nystrom", FisherSolver)
    module = importlib.import_module("examples.custom_solver")
    monkeypatch.setitem(FISHER_SOLVERS, "nystrom", module.NystromSolver)
    return module
