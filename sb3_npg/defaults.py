"""What an argument of ``NPG`` stands for where the user leaves it open. Measured: see ``docs/design.md``."""

import math
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim

#: Radius of the trust region in nats when neither ``target_kl`` nor ``step_size`` is given.
DEFAULT_TARGET_KL = 0.01
#: Of the critic's optimizer, where a critic solver has one.
DEFAULT_LEARNING_RATE = 1e-3
#: λ for each action dimension when ``damping`` is not given.
DEFAULT_DAMPING = 0.1
#: The same for policies that see images, by some solvers, and by others.
IMAGE_DAMPINGS, IMAGE_DAMPING = {"kfac": 0.001, "ekfac": 0.001}, 0.01
#: Outputs of the largest policy that "auto" leaves to K-FAC.
MOST_KFAC_OUTPUTS = 64
#: λ of GAE when ``gae_lambda`` is not given, and the same for continuous actions of up to so many dimensions.
DEFAULT_GAE_LAMBDA = 0.95
CONTINUOUS_GAE_LAMBDAS = {3: 0.98, 6: 0.95, math.inf: 0.9}


def default_fisher_solver(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> str:
    """
    Return what "auto" stands for: K-FAC for images, of which it learns more and faster, else conjugate gradient.

    K-FAC's factors take a pass backwards for each output, so that it is not for hundreds of actions to choose from.

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
    Return λ where the user leaves it open: 0.1 for each action dimension, as F is a sum over them, and less for images.

    What tells one image from another is little of what a policy of images sees, and has small eigenvalues. Relative
    damping measures F's scale itself, and is 0.1 whatever the spaces.

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
    """Tell whether observations hold an array of three dimensions, which SB3 need not take for an image of bytes."""
    if isinstance(space, spaces.Dict):
        return any(map(_has_images, space.spaces.values()))
    return isinstance(space, spaces.Box) and len(space.shape) == 3


def default_gae_lambda(action_space: spaces.Space[Any]) -> float:
    """
    Return λ of GAE where the user leaves it open: for continuous actions the less the more dimensions they have.

    An advantage is what one action changes, among what all that follow it do within 1/(1 − γλ) steps. The more
    dimensions, the less noise each of them begins with, and the less of the signal it has to itself.

    :param action_space: the policy's
    """
    if not isinstance(action_space, spaces.Box):
        return DEFAULT_GAE_LAMBDA
    n_dimensions = get_action_dim(action_space)
    return next(gae_lambda for limit, gae_lambda in CONTINUOUS_GAE_LAMBDAS.items() if n_dimensions <= limit)
