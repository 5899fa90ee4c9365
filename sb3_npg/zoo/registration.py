"""NPG among the zoo's algorithms."""

import rl_zoo3
from rl_zoo3 import hyperparams_opt

from sb3_npg import NPG
from sb3_npg.zoo.experiments import check_experiments, prune_numerical_trouble
from sb3_npg.zoo.repairs import repair_hub
from sb3_npg.zoo.search import convert_npg_params, sample_npg_params


def register() -> None:
    """Make ``--algo npg`` known to all commands of the zoo that run in this process."""
    rl_zoo3.ALGOS["npg"] = NPG
    hyperparams_opt.HYPERPARAMS_SAMPLER["npg"] = sample_npg_params
    hyperparams_opt.HYPERPARAMS_CONVERTER["npg"] = convert_npg_params
    check_experiments()
    prune_numerical_trouble()
    repair_hub()
