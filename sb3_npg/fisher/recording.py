"""Records the inputs and outputs of Linear and Conv2d layers while a policy computes."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_npg.fisher.patches import by_position, mean_patch, patches

#: Layers that compute s = W a + b at one or several positions.
Layer = nn.Linear | nn.Conv2d


class Call(NamedTuple):
    """
    One application of a layer.

    :param layer: the module
    :param input: what went in
    :param output: what came out, with its graph
    """

    layer: Layer
    input: th.Tensor
    output: th.Tensor

    def inputs(self) -> th.Tensor:
        """Return a for each row and position, shape (n, T, fan_in); a convolution's positions are its patches."""
        if isinstance(self.layer, nn.Linear):
            return self.input.reshape(len(self.input), -1, self.layer.in_features)
        return patches(self.layer, self.input)

    def mean_inputs(self) -> th.Tensor:
        """Return the mean of :meth:`inputs` over positions, shape (n, 1, fan_in)."""
        if isinstance(self.layer, nn.Linear):
            return self.inputs().mean(dim=1, keepdim=True)
        return mean_patch(self.layer, self.input)

    def derivatives(self, gradients: th.Tensor) -> th.Tensor:
        """
        Reshape derivatives with respect to the output to the order of :meth:`inputs`.

        :param gradients: shape (c, *output.shape)
        :return: shape (c, n, T, g)
        """
        if isinstance(self.layer, nn.Conv2d):
            return by_position(gradients)
        n_positions = gradients[0, 0, ..., 0].numel() if len(gradients) else 1
        return gradients.reshape(len(gradients), gradients.shape[1], n_positions, gradients.shape[-1])

    def rows_come_first(self, n_rows: int) -> bool:
        """Tell whether input and output have one entry for each row of the rollout in the first dimension."""
        fewest = 2 if isinstance(self.layer, nn.Linear) else 4
        return self.input.dim() >= fewest and len(self.input) == len(self.output) == n_rows


def recordable(module: nn.Module) -> bool:
    """Tell whether a module is a layer whose calls are recorded."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


@contextmanager
def recorded_calls(layers: Iterable[nn.Module]) -> Iterator[list[Call]]:
    """
    Record the calls of layers within the block, in their order.

    Differentiate after the block: checkpointed layers are called again in the backward pass.

    :param layers: the modules to record
    :return: the calls, filled while the block runs
    """
    calls: list[Call] = []

    def record(module: Any, args: tuple[th.Tensor, ...], kwargs: dict[str, th.Tensor], output: th.Tensor) -> Any:
        if not output.requires_grad:
            return None
        calls.append(Call(module, (args[0] if args else kwargs["input"]).detach(), output))
        # An in-place activation must not overwrite the output that derivatives are taken with respect to.
        return output.clone()

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(record, with_kwargs=True).remove)
        yield calls
