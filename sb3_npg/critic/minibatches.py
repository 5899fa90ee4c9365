"""The critic's regression by minibatches through the policy's optimizer."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn import functional as F

from sb3_npg.critic.solver import CriticSolver
from sb3_npg.fisher import FeedForwardJacobian
from sb3_npg.networks import CriticNetwork
from sb3_npg.numerics import kept_finite, require_finite
from sb3_npg.observations import take_rows
from sb3_npg.parameters import ParameterVector
from sb3_npg.policy_parts import PolicyParts, critic_modules, trained_modules, training_mode
from sb3_npg.rollout import Samples

#: Stores the gradient of a minibatch's loss in the parameters' ``grad``, and returns the loss.
Backward = Callable[[th.Tensor], th.Tensor]


class MinibatchSolver(CriticSolver):
    """
    Minimises mean (V(s) − R)² by the policy's optimizer: Adam, unless ``policy_kwargs`` says otherwise.

    Only the critic's parameters get gradients: a shared features extractor belongs to the actor.
    Modules that act stay in evaluation mode, so the regression does not move their BatchNorm averages.
    """

    n_updates = 10

    def fit(
        self, policy: ActorCriticPolicy, parts: PolicyParts, rollout: Samples, n_updates: int, batch_size: int
    ) -> float:
        """Pass ``n_updates`` times over the rollout, in minibatches."""
        losses: list[th.Tensor] = []
        with kept_finite("what the critic's modules remember", policy.modules()):
            with _backward(policy, parts, rollout) as backward, fused(policy.optimizer):
                for rows in _minibatches(len(rollout.returns), n_updates, batch_size, rollout.returns.device):
                    losses.append(backward(rows))
                    policy.optimizer.step()
            policy.optimizer.zero_grad()
            require_finite("the critic's loss", th.stack(losses))
            require_finite("the critic after its regression", *parts.critic_parameters)
        return float(th.stack(losses).mean())


@contextmanager
def _backward(policy: ActorCriticPolicy, parts: PolicyParts, rollout: Samples) -> Iterator[Backward]:
    """Choose how to differentiate a minibatch: by hand, or by autograd with the critic's modules in training mode."""
    policy.optimizer.zero_grad()
    if parts.critic is not None:
        yield _backward_by_hand(parts.critic, ParameterVector(parts.critic_parameters), rollout)
        return
    modules = trained_modules(policy, critic_modules(policy, parts))

    def backward(rows: th.Tensor) -> th.Tensor:
        # BatchNorm has no variance for a last minibatch of one row.
        with training_mode(modules if len(rows) == 1 else [], False):
            values = policy.predict_values(take_rows(rollout.observations, rows)).flatten()
        loss = F.mse_loss(values, rollout.returns[rows])
        policy.optimizer.zero_grad()
        th.autograd.backward(loss, inputs=parts.critic_parameters)
        return loss.detach()

    with training_mode(modules, True):
        yield backward


def _backward_by_hand(critic: CriticNetwork, parameters: ParameterVector, rollout: Samples) -> Backward:
    """Differentiate a feed-forward critic without a graph, into gradients that are views of one vector."""
    inputs = critic.inputs(rollout.observations)
    returns = rollout.returns.unsqueeze(1)
    gradient = th.zeros_like(parameters.get())
    for parameter, view in zip(parameters.tensors, parameters.split(gradient), strict=True):
        parameter.grad = view
    jacobians: dict[int, FeedForwardJacobian] = {}  # one set of buffers for each size of a minibatch
    places: list[int] = []

    @th.no_grad()
    def backward(rows: th.Tensor) -> th.Tensor:
        found = [tensor.data_ptr() for tensor in parameters.tensors]
        if places != found:  # an optimizer may move a parameter to other memory
            places[:] = found
            jacobians.clear()
        n = len(rows)
        if n in jacobians:
            jacobians[n].linearize(inputs[rows])
        else:
            jacobians[n] = FeedForwardJacobian(critic.network, inputs[rows], parameters)
        error = jacobians[n].outputs - returns[rows]
        jacobians[n].pull_into(error * (2.0 / n), gradient)
        return error.square().mean()

    return backward


def _minibatches(n_rows: int, n_epochs: int, batch_size: int, device: th.device) -> Iterable[th.Tensor]:
    """Yield the rows of each minibatch, in a new order for each epoch."""
    for _ in range(n_epochs):
        order = th.as_tensor(np.random.permutation(n_rows), device=device)
        yield from th.split(order, int(batch_size))


@contextmanager
def fused(optimizer: th.optim.Optimizer) -> Iterator[None]:
    """
    Let Adam update all parameters in one call within the block, if torch can; results are the same up to rounding.

    This kernel reads memory in order, and misreads a gradient that is not laid out like its parameter: all parameters
    must be contiguous.

    :param optimizer: any optimizer
    """
    tensors = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    able = type(optimizer) in (th.optim.Adam, th.optim.AdamW) and all(
        tensor.device.type in ("cpu", "cuda") and tensor.is_floating_point() and tensor.is_contiguous()
        for tensor in tensors
    )
    groups = [group for group in optimizer.param_groups if able and not _has_a_say(group)]
    before = [group.get("fused") for group in groups]
    for group in groups:
        group["fused"] = True
        for state in (optimizer.state[parameter] for parameter in group["params"] if parameter in optimizer.state):
            # Adam otherwise counts its steps on the host, and a loaded count stays on the device that it was loaded to.
            state["step"] = th.as_tensor(state["step"], dtype=th.float32, device=state["exp_avg"].device)
    try:
        yield
    finally:
        for group, was in zip(groups, before, strict=True):
            group["fused"] = was


def _has_a_say(group: dict[str, object]) -> bool:
    """Tell whether the user has chosen an implementation of the optimizer."""
    chosen = any(group.get(name) is not None for name in ("foreach", "fused"))
    return chosen or any(group.get(name) for name in ("capturable", "differentiable"))
