"""Products with the Jacobian of a feed-forward network by hand against autograd's, and what counts as one."""

import pytest
import torch as th
from torch import nn
from torch.nn.utils import parametrizations

from sb3_npg.fisher import FeedForward, FeedForwardJacobian, UnitMetric, convolutions
from sb3_npg.fisher.feed_forward import ELEMENTWISE
from sb3_npg.parameters import ParameterVector

N, FAN_IN, OUTPUTS = 7, 3, 2


def make_network(activation: nn.Module, bias: bool = True, last: bool = False) -> nn.Sequential:
    th.manual_seed(0)
    layers = [nn.Linear(FAN_IN, 5, bias=bias), activation, nn.Linear(5, 4, bias=bias), activation]
    layers += [nn.Linear(4, OUTPUTS, bias=bias), *([activation] if last else [])]
    return nn.Sequential(*layers).double()


def make_convolutional(*convolutions: nn.Module, n_positions: int = 12) -> nn.Sequential:
    th.manual_seed(0)
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(2 * n_positions, OUTPUTS)).double()


def assert_jacobians_agree(
    network: nn.Sequential, parameters: list[nn.Parameter], shape: tuple[int, ...] = (FAN_IN,)
) -> None:
    vector = ParameterVector(parameters)
    inputs = th.randn(N, *shape, dtype=th.float64)
    mlp = FeedForward.read(network, [network])
    assert mlp is not None
    hand = FeedForwardJacobian(mlp, inputs, vector)
    outputs = network(inputs)
    # Some activations have no second derivative: the Jacobian row by row needs none.
    rows = [th.autograd.grad(z, vector.tensors, retain_graph=True) for z in outputs.flatten()]
    true = th.stack([vector.flatten(row) for row in rows])
    th.testing.assert_close(hand.outputs, outputs.detach(), rtol=1e-14, atol=1e-15)
    th.testing.assert_close(mlp(inputs), outputs, rtol=1e-14, atol=1e-15)
    for _ in range(2):  # buffers are used again
        v = th.randn(len(vector), dtype=th.float64)
        u = th.randn(N, OUTPUTS, dtype=th.float64)
        th.testing.assert_close(hand.push(v).flatten(), true @ v, rtol=1e-12, atol=1e-13)
        th.testing.assert_close(hand.pull(u), u.flatten() @ true, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ELEMENTWISE, ids=lambda activation: activation.__name__)
def test_products_are_autograds_for_every_activation(activation, bias, last):
    network = make_network(activation(), bias, last)
    assert_jacobians_agree(network, list(network.parameters()))


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(inplace=True), nn.ELU(2.0, inplace=True), nn.GELU(approximate="tanh"), nn.Softplus(3.0, 1.0),
     nn.LeakyReLU(0.3), nn.Hardtanh(-0.5, 0.7)],
    ids=str,
)  # fmt: skip
def test_options_of_an_activation_count(activation):
    network = make_network(activation)
    assert_jacobians_agree(network, list(network.parameters()))


@pytest.mark.parametrize(
    "frozen", [["0.weight", "0.bias"], ["2.weight"], ["2.bias"], ["4.weight", "4.bias"], ["0.bias"]]
)
def test_frozen_parameters_have_no_part(frozen):
    network = make_network(nn.Tanh())
    assert_jacobians_agree(network, [p for name, p in network.named_parameters() if name not in frozen])


IMAGE = (3, 9, 8)
CONVOLUTIONAL = {
    "one": lambda: make_convolutional(nn.Conv2d(3, 2, 3, stride=2)),
    "two": lambda: make_convolutional(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 2, 2), nn.ReLU(), n_positions=9),
    "no bias": lambda: make_convolutional(nn.Conv2d(3, 2, 3, stride=2, bias=False), nn.ELU()),
    "no side equal": lambda: make_convolutional(nn.Conv2d(3, 2, (2, 3), (3, 2), (1, 0), (2, 1)), n_positions=9),
    "padding valid": lambda: make_convolutional(nn.Conv2d(3, 2, 3, stride=2, padding="valid"), nn.ReLU(inplace=True)),
}
every_convolutional = pytest.mark.parametrize("make", CONVOLUTIONAL.values(), ids=CONVOLUTIONAL)


@every_convolutional
def test_products_are_autograds_for_convolutions(make):
    network = make()
    assert_jacobians_agree(network, list(network.parameters()), IMAGE)


@every_convolutional
def test_order_in_memory_changes_nothing(make, monkeypatch):
    monkeypatch.setattr(convolutions, "layout_for", lambda images: th.channels_last)
    network = make()
    assert_jacobians_agree(network, list(network.parameters()), IMAGE)
    images = th.randn(N, *IMAGE, dtype=th.float64)
    read, vector = FeedForward.read(network, [network]), ParameterVector(list(network.parameters()))
    found = FeedForwardJacobian(read, images, vector)
    monkeypatch.undo()
    expected = FeedForwardJacobian(read, images, vector)
    cotangents = th.randn(2, N, OUTPUTS, dtype=th.float64)
    for one, other in zip(found.deltas(cotangents), expected.deltas(cotangents), strict=True):
        th.testing.assert_close(one, other)
    for one, other in zip(found.steps, expected.steps, strict=True):
        th.testing.assert_close(one.homogeneous_inputs("expand"), other.homogeneous_inputs("expand"))


@pytest.mark.parametrize("frozen", [["0.weight"], ["0.bias"], ["0.weight", "0.bias"], ["2.weight"], ["2.bias"]])
def test_frozen_parameters_of_convolutions_have_no_part(frozen):
    network = CONVOLUTIONAL["two"]()
    assert_jacobians_agree(network, [p for name, p in network.named_parameters() if name not in frozen], IMAGE)


@every_convolutional
def test_shapes_are_those_of_the_layers(make):
    network = make()
    expected = []
    for layer in network:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(lambda _, args, output: expected.append((args[0].shape[1:], output.shape[1:])))
    network(th.randn(1, *IMAGE, dtype=th.float64))
    network.apply(lambda module: module._forward_hooks.clear())
    shapes = FeedForward.read(network, [network]).shapes(th.Size(IMAGE))
    assert [tuple(s.numel() for s in pair) for pair in shapes] == [tuple(s.numel() for s in pair) for pair in expected]
    assert [made for _, made in shapes] == [made for _, made in expected]


def test_inputs_are_prepared_first():
    network = CONVOLUTIONAL["one"]()
    read = FeedForward.read(network, [network], lambda images: images.double() / 255.0)
    images = th.randint(0, 256, (N, *IMAGE), dtype=th.uint8)
    expected = network(images.double() / 255.0)
    th.testing.assert_close(read(images), expected)
    jacobian = FeedForwardJacobian(read, images, ParameterVector(list(network.parameters())))
    th.testing.assert_close(jacobian.outputs, expected.detach())


def test_parameters_of_others_get_no_gradient():
    network, other = make_network(nn.Tanh()), nn.Parameter(th.ones(3, dtype=th.float64))
    vector = ParameterVector([other, *network.parameters()])
    jacobian = FeedForwardJacobian(FeedForward.read(network, [network]), th.randn(N, FAN_IN, dtype=th.float64), vector)
    assert not jacobian.pull(th.ones(N, OUTPUTS, dtype=th.float64))[:3].any()
    direction = th.zeros(len(vector), dtype=th.float64)
    direction[:3] = 1.0
    assert not jacobian.push(direction).any()


def test_product_leaves_what_it_returned_before():
    network = make_network(nn.Tanh())
    vector = ParameterVector(list(network.parameters()))
    jacobian = FeedForwardJacobian(FeedForward.read(network, [network]), th.randn(N, FAN_IN, dtype=th.float64), vector)
    first = jacobian.push(th.randn(len(vector), dtype=th.float64))
    kept = first.clone()
    jacobian.push(th.randn(len(vector), dtype=th.float64))
    jacobian.pull(th.randn(N, OUTPUTS, dtype=th.float64))
    assert th.equal(first, kept)


@pytest.mark.parametrize("last", [False, True])
def test_chain_multiplies_as_the_jacobian_does(last):
    network = make_network(nn.Tanh(), last=last)
    vector = ParameterVector(list(network.parameters()))
    jacobian = FeedForwardJacobian(FeedForward.read(network, [network]), th.randn(N, FAN_IN, dtype=th.float64), vector)
    v = th.randn(len(vector), dtype=th.float64)
    th.testing.assert_close(jacobian.chain(UnitMetric()).product(v), jacobian.pull(jacobian.push(v)) / N)


def test_jacobian_moves_to_other_rows_and_parameters():
    network = make_network(nn.Tanh())
    mlp, vector = FeedForward.read(network, [network]), ParameterVector(list(network.parameters()))
    moved = FeedForwardJacobian(mlp, th.randn(N, FAN_IN, dtype=th.float64), vector)
    vector.set(vector.get() + 0.1)
    assert not moved.is_current()
    inputs, u = th.randn(N, FAN_IN, dtype=th.float64), th.randn(N, OUTPUTS, dtype=th.float64)
    moved.linearize(inputs)
    th.testing.assert_close(moved.pull(u), FeedForwardJacobian(mlp, inputs, vector).pull(u), rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    "ask",
    [
        lambda jacobian: jacobian.push(th.ones(jacobian.size, dtype=th.float64)),
        lambda jacobian: jacobian.pull(th.ones_like(jacobian.outputs)),
        lambda jacobian: jacobian.deltas(th.ones_like(jacobian.outputs).unsqueeze(0)),
        lambda jacobian: jacobian.chain(UnitMetric()),
    ],
    ids=["push", "pull", "deltas", "chain"],
)
@pytest.mark.parametrize("name", ["0.weight", "4.bias"])
def test_parameters_that_have_moved_are_refused(name, ask):
    network = make_network(nn.Tanh())
    vector = ParameterVector(list(network.parameters()))
    jacobian = FeedForwardJacobian(FeedForward.read(network, [network]), th.randn(N, FAN_IN, dtype=th.float64), vector)
    ask(jacobian)
    with th.no_grad():
        network.get_parameter(name).add_(0.1)
    with pytest.raises(RuntimeError, match="have moved"):
        ask(jacobian)


class Loud(nn.Linear):
    """A layer that does more than its class says."""

    def forward(self, input: th.Tensor) -> th.Tensor:
        return 2.0 * super().forward(input)


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda _module, _args, output: 2.0 * output)
    return module


def overridden(module: nn.Module) -> nn.Module:
    module.forward = lambda x: 2.0 * x  # type: ignore[method-assign]
    return module


def tied() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    return network


def compiled(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


STRANGE = {
    "normalisation": lambda: nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 3)),
    "activation with a parameter": lambda: nn.Sequential(nn.Linear(3, 3), nn.PReLU(), nn.Linear(3, 3)),
    "activation across elements": lambda: nn.Sequential(nn.Linear(3, 3), nn.Softmax(dim=1), nn.Linear(3, 3)),
    "activation in front": lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 3)),
    "two activations": lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.ReLU()),
    "no layer": lambda: nn.Sequential(nn.Identity()),
    "subclass of Linear": lambda: nn.Sequential(Loud(3, 3)),
    "hook on a layer": lambda: nn.Sequential(hooked(nn.Linear(3, 3))),
    "hook on an activation": lambda: nn.Sequential(nn.Linear(3, 3), hooked(nn.Tanh())),
    "hook on the whole": lambda: hooked(nn.Sequential(nn.Linear(3, 3))),
    "forward of its own": lambda: nn.Sequential(nn.Linear(3, 3), overridden(nn.Tanh())),
    "parametrisation": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))),
    "shared weight": tied,
    "compiled": lambda: nn.Sequential(compiled(nn.Linear(3, 3))),
    "convolution at the end": lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()),
    "images for a result": lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()),
    "Linear along a side of an image": lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Linear(6, 2), nn.Flatten()),
    "convolution after a vector": lambda: nn.Sequential(
        nn.Linear(3, 3), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(18, 2)
    ),
    "flattened vector": lambda: nn.Sequential(nn.Linear(3, 3), nn.Flatten()),
    "flattened in part": lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(2), nn.Linear(42, 2)),
    "flattened but for one side": lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(1, 2), nn.Linear(6, 2)),
    "groups": lambda: nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Flatten(), nn.Linear(8, 2)),
    "circular padding": lambda: make_convolutional(nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular")),
    "padding same": lambda: make_convolutional(nn.Conv2d(3, 2, 2, padding="same")),
    "pooling": lambda: make_convolutional(nn.Conv2d(3, 2, 3), nn.MaxPool2d(2)),
}


@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
def test_what_is_not_known_is_not_read(make):
    network = make()
    assert FeedForward.read(network, [network]) is None


def test_hook_on_all_modules_is_not_passed_over():
    network = make_network(nn.Tanh())
    handle = nn.modules.module.register_module_forward_hook(lambda _module, _args, output: output)
    try:
        assert FeedForward.read(network, [network]) is None
    finally:
        handle.remove()
    assert FeedForward.read(network, [network]) is not None


def test_identities_and_nested_sequentials_are_passed_through():
    network = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Identity(), nn.Linear(4, 2))
    mlp = FeedForward.read(network, [network])
    assert [layer.name for layer in mlp.layers] == ["0.0", "2"]
    assert_equal = th.testing.assert_close
    inputs = th.randn(5, 3)
    assert_equal(mlp(inputs), network(inputs), rtol=1e-6, atol=1e-7)


BACKWARD_HOOKS = ["register_full_backward_hook", "register_full_backward_pre_hook"]


@pytest.mark.parametrize("register", BACKWARD_HOOKS)
@pytest.mark.parametrize("layer", [0, 1])
def test_hook_on_the_way_back_is_not_passed_over(layer, register):
    network = make_network(nn.Tanh())
    handle = getattr(network[layer], register)(lambda *_: None)
    assert FeedForward.read(network, [network]) is None
    handle.remove()
    assert FeedForward.read(network, [network]) is not None


@pytest.mark.parametrize("register", BACKWARD_HOOKS)
def test_hook_on_the_way_back_of_all_modules_is_not_passed_over(register):
    network = make_network(nn.Tanh())
    handle = getattr(nn.modules.module, register.replace("register", "register_module"))(lambda *_: None)
    try:
        assert FeedForward.read(network, [network]) is None
    finally:
        handle.remove()
    assert FeedForward.read(network, [network]) is not None


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (make_network(nn.Tanh()), (FAN_IN,)),
        (make_convolutional(nn.Conv2d(3, 2, 3), nn.Tanh(), n_positions=12), (3, 5, 6)),
    ],
    ids=["vectors", "images"],
)
def test_what_a_jacobian_keeps_is_within_what_is_counted(network, shape):
    mlp = FeedForward.read(network, [network])
    jacobian = FeedForwardJacobian(mlp, th.randn(N, *shape, dtype=th.float64), ParameterVector([*network.parameters()]))
    kept = [tensor for step in jacobian.steps for tensor in (step.inputs, step.slope) if tensor is not None]
    passing = [step._passing for step in jacobian.steps if hasattr(step, "_passing")]
    storages = {tensor.data_ptr(): tensor.nbytes for tensor in (*kept, *passing, jacobian.outputs)}
    assert sum(storages.values()) <= N * mlp.bytes_per_row(th.Size(shape))


@pytest.mark.parametrize("activation", ELEMENTWISE, ids=lambda activation: activation.__name__)
def test_what_a_jacobian_keeps_has_no_graph(activation):
    network = make_network(activation(), last=True)
    vector = ParameterVector([*network.parameters()])
    jacobian = FeedForwardJacobian(FeedForward.read(network, [network]), th.randn(N, FAN_IN).double(), vector)
    kept = [tensor for step in jacobian.steps for tensor in (step.inputs, step.slope)]
    assert not any(tensor.requires_grad for tensor in (*kept, jacobian.outputs))
