"""Parameters as one vector, and which of them an output reaches."""

import hypothesis.strategies as st
import pytest
import torch as th
from hypothesis import given, settings
from torch import nn

from sb3_npg.parameters import ParameterVector, reached_parameters

shapes = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(shapes=shapes)
def test_set_and_get_are_inverse(shapes):
    vector = ParameterVector([nn.Parameter(th.zeros(shape)) for shape in shapes])
    values = th.randn(len(vector))
    vector.set(values)
    assert th.equal(vector.get(), values)
    assert th.equal(vector.flatten(vector.split(values)), values)
    assert [tuple(piece.shape) for piece in vector.split(values)] == shapes


def test_get_is_a_copy():
    vector = ParameterVector([nn.Parameter(th.ones(3))])
    vector.get().zero_()
    assert th.equal(vector.get(), th.ones(3))


def test_setting_keeps_the_tensors_that_optimizers_hold():
    parameter = nn.Parameter(th.zeros(2))
    ParameterVector([parameter]).set(th.tensor([1.0, 2.0]))
    assert parameter.tolist() == [1.0, 2.0]


def test_a_vector_of_the_wrong_length_is_refused():
    with pytest.raises(RuntimeError):
        ParameterVector([nn.Parameter(th.zeros(2))]).set(th.zeros(3))


def test_reached_are_those_that_the_graph_reaches_whatever_their_names():
    value_net, other, frozen = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    frozen.requires_grad_(False)
    output = frozen(value_net(th.ones(1, 2)))
    candidates = [*other.parameters(), *value_net.parameters(), *frozen.parameters()]
    assert [id(p) for p in reached_parameters(output, candidates)] == [id(p) for p in value_net.parameters()]
    assert reached_parameters(output.detach(), candidates) == []
