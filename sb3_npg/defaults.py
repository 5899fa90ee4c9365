"""Defaults of ``NPG``'s arguments where the user gives none. They are measured: see ``docs/design.md``."""

import math
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim

#: Radius of the trust region in nats when neither ``target_kl`` nor ``step_size`` is given.
DEFAULT_TARGET_KL = 0.01
#: Learning rate of the critic's optimizer, for critic solvers that have one.
DEFAULT_LEARNING_RATE = 1e-3
#: λ for each action dimension when ``damping`` is not given.
DEFAULT_DAMPING = 0.1
#: The same for policies that see images: with the solvers named here, and with all others.
IMAGE_DAMPINGS, IMAGE_DAMPING = {"kfac": 0.001, "ekfac": 0.001}, 0.01
#: Largest number of outputs of a policy for which "auto" chooses K-FAC.
MOST_KFAC_OUTPUTS = 64
#: λ of GAE when ``gae_lambda`` is not given, and for continuous actions by their largest number of dimensions.
DEFAULT_GAE_LAMBDA = 0.95
CONTINUOUS_GAE_LAMBDAS = {3: 0.98, 6: 0.95, math.inf: 0.9}


def default_fisher_solver(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> str:
    """
    Return what "auto" stands for: K-FAC for images, from which it learns faster and more, else conjugate gradient.

    K-FAC's factors take one backward pass per output, too many if there are hundreds of actions to choose from.

    :param observation_space: the policy's
    :param action_space: the policy's
    """
    return "kfac" if _has_images(observation_space) and _n_outputs(action_space) <= MOST_KFAC_OUTPUTS else "cg"


def _n_outputs(space: spaces.Space[Any]) -> int:
    """Return how many logits or means a policy has."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    return int(space.nvec.sum()) if isinstance(space, spaces.MultiDiscrete) else get_action_dim(space)


def default_damping(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], fisher_solver: str, relative: bool
) -> float:
    """
    Return the default λ: 0.1 for each action dimension, as F is a sum over them, and less for images.

    What tells one image from another is a small part of what a policy sees, and has small eigenvalues. Relative
    damping measures F's scale itself, so its default is 0.1 for all spaces.

    :param observation_space: the policy's
    :param action_space: the policy's
    :param fisher_solver: name of the solver
    :param relative: whether the damping is relative to F's blocks
    """
    if relative:
        return DEFAULT_DAMPING
    has_images = _has_images(observation_space)
    each = IMAGE_DAMPINGS.get(fisher_solver, IMAGE_DAMPING) if has_images else DEFAULT_DAMPING
    return each * get_action_dim(action_space)


def _has_images(space: spaces.Space[Any]) -> bool:
    """Tell whether observations hold a three-dimensional array, whether or not SB3 treats it as an image."""
    if isinstance(space, spaces.Dict):
        return any(map(_has_images, space.spaces.values()))
    return isinstance(space, spaces.Box) and len(space.shape) == 3


def default_gae_lambda(action_space: spaces.Space[Any]) -> float:
    """
    Return the default λ of GAE: for continuous actions, the more dimensions they have, the smaller it is.

    An advantage estimate holds the effect of one action, and as noise the effects of all actions in the next
    1/(1 − γλ) steps. With more dimensions each begins with less noise, and has a smaller share of the signal.

    :param action_space: the policy's
    """
    if not isinstance(action_space, spaces.Box):
        return DEFAULT_GAE_LAMBDA
    n_dimensions = get_action_dim(action_space)
    return next(gae_lambda for limit, gae_lambda in CONTINUOUS_GAE_LAMBDAS.items() if n_dimensions <= limit)
