"""Torch's switches for attention, which the whole process shares."""

from threading import Thread

import pytest
import torch as th

from sb3_npg.attention import twice_differentiable_attention


def switches() -> tuple[bool, ...]:
    cuda = th.backends.cuda
    return (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )


@pytest.fixture(autouse=True)
def all_switched_on():
    assert all(switches())  # nothing before has left them otherwise
    yield
    assert all(switches())


def in_a_thread(function) -> None:
    thread = Thread(target=function)
    thread.start()
    thread.join()


def test_switches_are_put_back_by_the_last_of_several_threads():
    twice_differentiable_attention.__enter__()
    in_a_thread(twice_differentiable_attention.__enter__)
    assert switches() == (False, False, False, True)
    twice_differentiable_attention.__exit__()  # the first thread goes while the other is inside
    assert switches() == (False, False, False, True)
    in_a_thread(twice_differentiable_attention.__exit__)


def test_switches_are_put_back_after_an_error():
    with pytest.raises(KeyboardInterrupt), twice_differentiable_attention, twice_differentiable_attention:
        raise KeyboardInterrupt


def test_attention_is_differentiated_twice_while_another_thread_goes():
    twice_differentiable_attention.__enter__()

    @twice_differentiable_attention
    def second_derivative() -> th.Tensor:
        query = th.randn(1, 1, 3, 4, requires_grad=True)
        in_a_thread(twice_differentiable_attention.__exit__)
        made = th.nn.functional.scaled_dot_product_attention(query, query, query)
        (gradient,) = th.autograd.grad(made.square().sum(), query, create_graph=True)
        return th.autograd.grad(gradient.sum(), query)[0]

    assert bool(second_derivative().isfinite().all())
