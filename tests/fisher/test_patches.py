"""A convolution as one linear map at many positions."""

import hypothesis.strategies as st
import pytest
import torch as th
from hypothesis import given, settings
from torch import nn

from sb3_npg.fisher.patches import mean_patch, patches

HEIGHT, WIDTH = 9, 8


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding = draw(st.one_of(st.just("same"), st.tuples(st.integers(0, 2), st.integers(0, 2))))
    stride = (1, 1) if padding == "same" else draw(pair)
    kernel, dilation = draw(pair), draw(pair)
    return nn.Conv2d(2, 3, kernel, stride, padding, dilation, padding_mode=mode, dtype=th.float64)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch says that it copies the images
@settings(max_examples=60, deadline=None, derandomize=True)
@given(layer=convolutions(), n=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_convolution_is_its_weight_times_patches(layer, n, seed):
    images = th.randn(n, 2, HEIGHT, WIDTH, dtype=th.float64, generator=th.Generator().manual_seed(seed))
    with th.no_grad():
        expected = layer(images)
        found = patches(layer, images) @ layer.weight.flatten(1).T + layer.bias
    th.testing.assert_close(found.mT.reshape(expected.shape), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(layer=convolutions(), n=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_mean_patch_is_the_mean_of_the_patches(layer, n, seed):
    images = th.randn(n, 2, HEIGHT, WIDTH, dtype=th.float64, generator=th.Generator().manual_seed(seed))
    th.testing.assert_close(mean_patch(layer, images), patches(layer, images).mean(dim=1, keepdim=True))
