"""Whether products are made in TF32, by whichever of torch's switches."""

from collections.abc import Iterator

import pytest
import torch as th

from sb3_npg.linalg.cupy.sources import terms
from sb3_npg.precision import convolutions_in_tf32, products_in_tf32

HAS_NEW_SWITCHES = hasattr(th.backends.cudnn, "conv")
needs_new_switches = pytest.mark.skipif(not HAS_NEW_SWITCHES, reason="needs torch 2.9")


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """Leave torch's switches as they were."""
    precision, allowed = th.get_float32_matmul_precision(), th.backends.cudnn.allow_tf32
    newer = (th.backends.cuda.matmul, th.backends.cudnn.conv) if HAS_NEW_SWITCHES else ()
    before = [switch.fp32_precision for switch in newer]
    yield
    th.set_float32_matmul_precision(precision)
    th.backends.cudnn.allow_tf32 = allowed
    for switch, was in zip(newer, before, strict=True):
        switch.fp32_precision = was


@pytest.mark.parametrize(("precision", "expected"), [("highest", False), ("high", True), ("medium", True)])
def test_the_older_switch_of_products(precision, expected):
    th.set_float32_matmul_precision(precision)
    assert products_in_tf32() is expected
    assert terms() == (1 if expected else 3)


@pytest.mark.parametrize("allowed", [False, True])
def test_the_older_switch_of_convolutions(allowed):
    th.backends.cudnn.allow_tf32 = allowed
    assert convolutions_in_tf32() is allowed


@needs_new_switches
@pytest.mark.parametrize(("precision", "expected"), [("ieee", False), ("tf32", True)])
def test_the_newer_switches(precision, expected):
    th.backends.cuda.matmul.fp32_precision = precision
    assert products_in_tf32() is expected
    assert terms() == (1 if expected else 3)
    th.backends.cudnn.conv.fp32_precision = precision
    assert convolutions_in_tf32() is expected


@needs_new_switches
def test_the_newer_switch_counts_where_both_are_set():
    th.set_float32_matmul_precision("high")
    th.backends.cuda.matmul.fp32_precision = "ieee"
    assert not products_in_tf32()
