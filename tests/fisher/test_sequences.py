"""Modules that apply layers one after the other are recognised by watching them, and no others."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch as th
from torch import nn
from torch.nn import functional

from sb3_npg.fisher import sequence_of


class Module(nn.Module):
    """Layers, and a ``forward`` that is given."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._forward = forward
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self._forward(self, x)


class Inner(nn.Module):
    """A container with a ``forward`` of its own."""

    def __init__(self):
        super().__init__()
        self.linear, self.activation = nn.Linear(4, 4), nn.Tanh()

    def forward(self, x):
        return self.activation(self.linear(x))


def two(forward, **others):
    return Module(forward, first=nn.Linear(3, 4), activation=nn.ReLU(), second=nn.Linear(4, 4), **others)


def cnn(fan_in=8):
    layers, linear = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()), nn.Linear(fan_in, 4)
    return Module(lambda m, x: m.linear(m.layers(x)), layers=layers, linear=nn.Sequential(linear, nn.ReLU()))


VECTOR, IMAGE = (1, 3), (1, 1, 4, 4)
SEQUENCES = {
    "layers": (lambda: two(lambda m, x: m.second(m.activation(m.first(x)))), VECTOR, "Linear ReLU Linear"),
    "not all of them": (lambda: two(lambda m, x: m.activation(m.first(x))), VECTOR, "Linear ReLU"),
    "one twice": (lambda: two(lambda m, x: m.second(m.second(m.first(x)))), VECTOR, "Linear Linear Linear"),
    "Sequentials": (cnn, IMAGE, "Conv2d ReLU Flatten Linear ReLU"),
    "a container": (lambda: two(lambda m, x: m.inner(m.first(x)), inner=Inner()), VECTOR, "Linear Linear Tanh"),
    "a list": (
        lambda: Module(lambda m, x: m.layers[1](m.layers[0](x)), layers=nn.ModuleList([nn.Linear(3, 4), nn.Tanh()])),
        VECTOR,
        "Linear Tanh",
    ),
    "in place": (
        lambda: Module(lambda m, x: m.layers(x), layers=nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))),
        VECTOR,
        "Linear ReLU",
    ),
}


def branching(m, x):
    return m.first(x) if x.sum() > 1.0 else m.second(m.first(x))


def changed_in_place(m, x):
    made = m.first(x)
    made.data.zero_()
    return m.second(made)


def without_torch(m, x):
    made = m.first(x)
    made.detach().numpy()[:] = 0.0
    return m.second(made)


def refusing(m, x):
    raise ValueError("no zeros")


OTHERS = {
    "a function": (lambda: two(lambda m, x: m.second(functional.relu(m.first(x)))), VECTOR),
    "a function at the end": (lambda: two(lambda m, x: m.first(x).tanh()), VECTOR),
    "a function at the beginning": (lambda: two(lambda m, x: m.first(2.0 * x)), VECTOR),
    "a skip connection": (lambda: two(lambda m, x: m.first(x) + m.second(m.first(x))), VECTOR),
    "two of the same": (lambda: two(lambda m, x: (m.first(x), m.second(m.first(x)))[0]), VECTOR),
    "a pair": (lambda: two(lambda m, x: (m.first(x), x)), VECTOR),
    "a branch": (lambda: two(branching), VECTOR),
    "in place in between": (lambda: two(changed_in_place), VECTOR),
    "by numpy in between": (lambda: two(without_torch), VECTOR),
    "an argument by name": (lambda: two(lambda m, x: m.first(input=x)), VECTOR),
    "an error": (lambda: two(refusing), VECTOR),
    "rows of rows": (lambda: two(lambda m, x: m.first(x)), (1, 2, 3)),
    "images without a batch": (lambda: cnn(4), (1, 4, 4)),
    "its own parameter": (lambda: two(lambda m, x: m.first(x) * m.scale, scale=nn.Parameter(th.ones(4))), VECTOR),
    "chance": (lambda: Module(lambda m, x: m.layer(x), layer=nn.Sequential(nn.Linear(3, 4), nn.Dropout())), VECTOR),
    "memory": (
        lambda: Module(lambda m, x: m.layer(x), layer=nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))),
        VECTOR,
    ),
    "a layer of its own kind": (lambda: Module(lambda m, x: x, layer=type("Mine", (nn.Linear,), {})(3, 4)), VECTOR),
}


@pytest.mark.parametrize(("build", "shape", "names"), SEQUENCES.values(), ids=SEQUENCES)
def test_layers_one_after_the_other_are_found(build, shape, names):
    module = build()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    layers = sequence_of(module, lambda: th.zeros(shape))
    assert " ".join(type(layer).__name__ for layer in layers) == names
    x = th.randn(shape)
    expected = module(x)
    for layer in layers:
        x = layer(x)
    assert th.equal(x, expected)
    assert all(th.equal(state[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(("build", "shape"), OTHERS.values(), ids=OTHERS)
def test_anything_else_is_refused(build, shape):
    assert sequence_of(build(), lambda: th.zeros(shape)) is None


@pytest.mark.parametrize("build", [cnn, lambda: two(refusing)])
def test_watching_leaves_nothing_behind(build):
    module = build()
    sequence_of(module, lambda: th.zeros(IMAGE))
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())
    assert len(th.overrides._get_current_function_mode_stack()) == 0


@pytest.mark.parametrize("spoil", [nn.Module.register_forward_hook, nn.Module.register_forward_pre_hook])
def test_a_module_with_hooks_is_not_tried(spoil):
    module = cnn()
    spoil(module.layers[0], lambda *_: None)
    assert sequence_of(module, lambda: th.zeros(IMAGE)) is None
    assert module.calls == 0


def test_other_threads_may_use_the_layers_meanwhile():
    elsewhere = []

    def forward(m, x):
        with ThreadPoolExecutor(1) as threads:
            elsewhere.append(threads.submit(lambda: m.second(th.ones(1, 4)) + 1.0).result())
        return m.second(m.first(x))

    module = two(forward)
    assert sequence_of(module, lambda: th.zeros(VECTOR)) == [module.first, module.second]
    assert th.equal(elsewhere[0], module.second(th.ones(1, 4)) + 1.0)


def test_memory_is_not_moved():
    module = Module(lambda m, x: m.layers(x), layers=nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    sequence_of(module, lambda: th.zeros(5, 3))
    assert module.calls == 0
    assert int(module.layers[1].num_batches_tracked) == 0


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("build", [cnn, lambda: two(refusing)])
def test_modes_are_what_they_were(build, mode):
    module = build().train(mode)
    next(module.children()).train(not mode)
    before = [part.training for part in module.modules()]
    sequence_of(module, lambda: th.zeros(IMAGE))
    assert [part.training for part in module.modules()] == before


@pytest.mark.parametrize("spoil", [nn.Module.register_full_backward_hook, nn.Module.register_full_backward_pre_hook])
@pytest.mark.parametrize("part", [lambda m: m, lambda m: m.layers, lambda m: m.layers[0]], ids=["all", "some", "one"])
def test_a_module_with_hooks_on_the_way_back_is_not_tried(part, spoil):
    module = cnn()
    spoil(part(module), lambda *_: None)
    assert sequence_of(module, lambda: th.zeros(IMAGE)) is None
    assert module.calls == 0
