"""Regression of the value function on the rollout's returns. Leaves the action distribution as it is."""

from collections.abc import Callable, Iterable

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn import functional as F

from sb3_npg.numerics import require_finite
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

    :param policy: SB3 actor-critic policy, in evaluation mode
    :param parts: its acting and its criticising part
    :param minibatches: yields one epoch of the rollout
    :param n_epochs: passes over the rollout
    :return: mean loss over all minibatches; NaN if there is nothing to fit
    :raises NumericalFailure: if a loss or a parameter is not finite at the end
    """
    if not parts.criticising or n_epochs == 0:
        return float("nan")
    acts = set(parts.acting_modules)
    modules = [module for module in policy.modules() if module not in acts]
    losses = []
    with training_mode(modules, True):
        for _ in range(n_epochs):
            for batch in minibatches():
                # BatchNorm has no variance for a rest of one row.
                with training_mode(modules if len(batch.returns) == 1 else [], False):
                    loss = F.mse_loss(policy.predict_values(batch.observations).flatten(), batch.returns)
                policy.optimizer.zero_grad()
                th.autograd.backward(loss, inputs=parts.criticising)
                policy.optimizer.step()
                losses.append(loss.detach())
    require_finite("the critic's loss", *losses)
    require_finite("the critic after its regression", *parts.criticising, *policy.buffers())
    return float(th.stack(losses).mean())
