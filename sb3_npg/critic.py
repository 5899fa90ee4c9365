"""Regression of the value function on the rollout's returns. Leaves the action distribution as it is."""

import copy
from collections.abc import Callable, Iterable

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn import functional as F

from sb3_npg.numerics import NumericalFailure, all_finite
from sb3_npg.policy_parts import PolicyParts, training_mode
from sb3_npg.rollout import Samples

#: Values of ``critic_solver``.
CRITIC_SOLVERS = ("adam",)


def fit_critic(
    policy: ActorCriticPolicy, parts: PolicyParts, minibatches: Callable[[], Iterable[Samples]], n_epochs: int
) -> float:
    """
    Minimise mean (V(s) − R)² by the policy's optimizer (Adam unless ``policy_kwargs`` says otherwise).

    Gradients are taken for the criticising parameters alone, so a shared features extractor is the actor's.
    Modules that act stay in evaluation mode: the regression does not move BatchNorm's averages of the policy.

    :param policy: SB3 actor-critic policy
    :param parts: its acting and its criticising part
    :param minibatches: yields one epoch of the rollout
    :param n_epochs: passes over the rollout
    :return: mean loss over all minibatches; NaN if there is nothing to fit
    :raises NumericalFailure: if a loss or a parameter is not finite at the end; parameters, buffers and
        optimizer are then as they were before
    """
    if not parts.criticising or n_epochs == 0:
        return float("nan")
    state = [*parts.criticising, *policy.buffers()]
    before = [tensor.detach().clone() for tensor in state]
    optimizer_before = copy.deepcopy(policy.optimizer.state_dict())
    losses = []
    with training_mode(list(policy.modules()), True), training_mode(parts.acting_modules, False):
        for _ in range(n_epochs):
            for batch in minibatches():
                loss = F.mse_loss(policy.predict_values(batch.observations).flatten(), batch.returns)
                policy.optimizer.zero_grad()
                th.autograd.backward(loss, inputs=parts.criticising)
                policy.optimizer.step()
                losses.append(loss.detach())
    if not all_finite(*losses, *state):
        with th.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
        policy.optimizer.load_state_dict(optimizer_before)
        raise NumericalFailure("the critic's loss is not finite")
    return float(th.stack(losses).mean())
