"""Checks of what ``NPG`` accepts, before any training starts: hyperparameters, policy classes and spaces."""

from sb3_npg.arguments.hyperparameters import (
    HEEDED,
    check_chosen_once,
    check_device,
    check_hyperparameters,
    copied_dicts,
    is_unchanged,
    make_damping,
    make_step_rule,
    warn_of_uneven_minibatches,
    warn_of_unused_optimizer,
)
from sb3_npg.arguments.policies import (
    assertions_as_value_errors,
    check_features_extractor,
    check_policy_class,
    check_policy_kwargs,
    check_policy_name,
)
from sb3_npg.arguments.spaces import check_spaces

__all__ = [
    "HEEDED",
    "assertions_as_value_errors",
    "check_chosen_once",
    "check_device",
    "check_features_extractor",
    "check_hyperparameters",
    "check_policy_class",
    "check_policy_kwargs",
    "check_policy_name",
    "check_spaces",
    "copied_dicts",
    "is_unchanged",
    "make_damping",
    "make_step_rule",
    "warn_of_uneven_minibatches",
    "warn_of_unused_optimizer",
]
