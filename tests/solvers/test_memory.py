"""Moving averages, what is saved of them, and how much they hold."""

import io

import hypothesis.strategies as st
import pytest
import torch as th
from hypothesis import given, settings

from sb3_npg.linalg import Eigen
from sb3_npg.solvers import make_fisher_solver
from sb3_npg.solvers.memory import Memory


@settings(max_examples=40, deadline=None, derandomize=True)
@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12), decay=st.floats(0.0, 0.999))
def test_average_is_the_mean_weighted_by_age_from_the_first_on(values, decay):
    memory = Memory(carries_over=True)
    for n, value in enumerate(values, start=1):
        memory.average("one", th.tensor([value], dtype=th.float64), decay)
        weights = [decay ** (n - 1 - i) for i in range(n)]
        expected = sum(w * v for w, v in zip(weights, values[:n], strict=True)) / sum(weights)
        assert float(memory.tensors["one"]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_average_of_equal_measurements_is_the_measurement():
    memory = Memory(carries_over=True)
    for _ in range(1000):
        memory.average("one", th.full((2, 2), 0.3), 0.99)
        assert th.equal(memory.tensors["one"], th.full((2, 2), 0.3))


def test_average_begins_anew_when_the_shape_changes():
    memory = Memory(carries_over=True)
    for shape in (3, 3, 4):
        memory.average("one", th.full((shape,), float(shape)), 0.9)
    assert th.equal(memory.tensors["one"], th.full((4,), 4.0))
    memory.average("one", th.zeros(4), 0.9)
    th.testing.assert_close(memory.tensors["one"], th.full((4,), 4.0 * 0.9 / 1.9))


def test_measurements_are_not_written_over():
    memory, first = Memory(carries_over=True), th.ones(3)
    memory.average("one", first, 0.5)
    memory.average("one", th.zeros(3), 0.5)
    assert th.equal(first, th.ones(3))


@pytest.mark.parametrize("saved", [True, False])
def test_state_holds_what_is_saved_and_the_count(saved):
    memory, other = (Memory(saved, counts=True) for _ in range(2))
    memory.average("one", th.ones(3), 0.5)
    memory.put_eigen("two", Eigen(th.zeros(2), th.eye(2)))
    memory.count = 7
    file = io.BytesIO()
    th.save(memory.state_dict(), file)
    file.seek(0)
    other.average("left over", th.ones(3), 0.5)
    other.load_state_dict(th.load(file, weights_only=True))
    assert other.count == 7
    assert set(other.tensors) == ({"one", "two.values", "two.vectors"} if saved else set())
    if saved:
        for one in (memory, other):
            one.average("one", th.zeros(3), 0.5)
        assert th.equal(memory.tensors["one"], other.tensors["one"])
        assert th.equal(other.eigen("two").vectors, th.eye(2))


def test_tensors_follow_the_module():
    memory = Memory(carries_over=True)
    memory.average("one", th.ones(3), 0.5)
    memory.to(th.float64)
    assert memory.tensors["one"].dtype == th.float64
    assert memory.to("meta").tensors["one"].is_meta


def test_what_is_forgotten_is_gone_with_its_weight():
    memory = Memory(carries_over=True)
    memory.average("one", th.ones(3), 0.5)
    memory.forget(["one", "never seen"])
    assert not memory.weights
    assert not memory.has("one", 3)
    memory.average("one", th.zeros(3), 0.5)
    assert not memory.tensors["one"].any()


def test_a_tensor_is_there_only_in_its_shape():
    memory = Memory(carries_over=True)
    memory.average("one", th.ones(3, 2), 0.5)
    assert memory.has("one", 3, 2)
    assert not memory.has("one", 3)
    assert not memory.has("one", 2, 3)


def test_loaded_memory_knows_its_coordinates():
    memory, other = Memory(True), Memory(True)
    memory.enter(is_scaled=True)
    memory.average("one", th.ones(3), 0.5)
    other.load_state_dict(memory.state_dict())
    other.enter(is_scaled=True)
    assert other.has("one", 3)
    other.enter(is_scaled=False)
    assert not other.has("one", 3)


def test_saved_state_is_of_the_moment():
    memory, other = Memory(True), Memory(True)
    memory.average("one", th.ones(3), 0.5)
    state = memory.get_extra_state()
    other.set_extra_state(state)
    for each in (memory, other):
        each.average("one", th.zeros(3), 0.5)
        each.average("two", th.zeros(3), 0.5)
    assert set(state["tensors"]) == set(state["weights"]) == {"one"}
    assert th.equal(state["tensors"]["one"], th.ones(3))
    assert state["weights"]["one"] == 1.0


def test_what_no_update_will_use_is_not_loaded():
    memory, other, third = Memory(True), Memory(False, counts=True), Memory(False)
    memory.average("one", th.ones(3), 0.5)
    memory.count = 7
    for forgetful in (other, third):
        forgetful.load_state_dict(memory.state_dict())
        assert forgetful.count == 7
        assert not forgetful.tensors
        assert not forgetful.weights


def test_memory_that_keeps_nothing_saves_nothing():
    memory, other = Memory(False), Memory(False)
    memory.average("one", th.ones(3), 0.5)
    memory.count = 7
    assert memory.get_extra_state() == "nothing"
    other.load_state_dict(memory.state_dict())
    assert other.count == 0
    assert not other.tensors

    assert not other.weights


@pytest.mark.parametrize("pair", [("kfac", "ekfac"), ("ekfac", "kfac"), ("kfac", "diagonal")], ids=str)
def test_what_another_kind_of_solver_has_learnt_is_left_out(pair):
    learnt, other = (make_fisher_solver(name, {"decay": 0.5}) for name in pair)
    learnt.memory.average("layer.A", th.eye(2), 0.5)
    learnt.memory.count = 3
    other.load_state_dict(learnt.state_dict())
    assert (other.memory.tensors, other.memory.count) == ({}, 0)
    same_kind = make_fisher_solver(pair[0], {"decay": 0.5})
    same_kind.load_state_dict(learnt.state_dict())
    assert ([*same_kind.memory.tensors], same_kind.memory.count) == (["layer.A"], 3)


@pytest.mark.parametrize("options", [{"decay": 0.5}, {"statistics_interval": 2}], ids=str)
@pytest.mark.parametrize("name", ["diagonal", "kfac", "ekfac"])
def test_what_later_updates_use_is_saved(name, options):
    solver, loaded = (make_fisher_solver(name, options) for _ in range(2))
    solver.memory.average("layer.A", th.eye(2), solver.decay)
    loaded.load_state_dict(solver.state_dict())
    assert [*loaded.memory.tensors] == ["layer.A"]
