"""The space that ``-optimize`` searches: a sampler and a converter, as the zoo has them for each algorithm."""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_onpolicy_params

from sb3_npg.critic import GaussNewtonSolver

#: Arguments of NPG by the name that a trial shows.
SEARCHED_SOLVERS: dict[str, dict[str, Any]] = {
    "cg": {"fisher_solver": "cg"},
    "cg + kfac": {"fisher_solver": "cg", "fisher_solver_kwargs": {"preconditioner": "kfac"}},
    "kfac": {"fisher_solver": "kfac"},
    "ekfac": {"fisher_solver": "ekfac"},
}


def sample_npg_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Draw hyperparameters of NPG. All are drawn in each trial, so that Optuna's samplers see one space.

    :param trial: Optuna's trial
    :param n_actions: number of continuous actions, 0 for an action space of another kind
    :param n_envs: number of environments
    :param additional_args: not used
    :return: arguments of NPG
    """
    sampled: dict[str, Any] = {
        "n_steps_pow": trial.suggest_int("n_steps_pow", 5, 11),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 0.0001, 0.1, log=True),
        "target_kl": trial.suggest_float("target_kl", 0.002, 0.5, log=True),
        "damping": trial.suggest_float("damping", 1e-4, 10.0, log=True),
        "fisher_solver": trial.suggest_categorical("fisher_solver", list(SEARCHED_SOLVERS)),
        "cg_max_steps": trial.suggest_int("cg_max_steps", 3, 25),
        "ent_coef": trial.suggest_float("ent_coef", 1e-8, 0.1, log=True),
        "critic_solver": trial.suggest_categorical("critic_solver", ["gauss_newton", "adam"]),
        "critic_damping_factor": trial.suggest_float("critic_damping_factor", 0.01, 10.0, log=True),
        "critic_steps": trial.suggest_int("critic_steps", 1, 5),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
        "n_epochs": trial.suggest_int("n_epochs", 5, 20),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 9),
        "net_arch": trial.suggest_categorical("net_arch", ["small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
    }
    if n_actions > 0:
        sampled["log_std_init"] = trial.suggest_float("log_std_init", -2.0, 0.0)
    trial.set_user_attr("gamma", 1 - sampled["one_minus_gamma"])
    trial.set_user_attr("gae_lambda", 1 - sampled["one_minus_gae_lambda"])
    trial.set_user_attr("n_steps", 2 ** sampled["n_steps_pow"])
    return convert_npg_params(sampled)


def convert_npg_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn what a trial shows into arguments of NPG, as for ``--trial-id``.

    :param sampled_params: a trial's parameters
    :return: arguments of NPG; None for those of the environment's block that would conflict with the trial's
    """
    sampled = {"step_size": None, **convert_onpolicy_params(sampled_params)}
    solver = {"fisher_solver_kwargs": None, **SEARCHED_SOLVERS[sampled.pop("fisher_solver")]}
    cg_max_steps = sampled.pop("cg_max_steps")
    if solver["fisher_solver"] == "cg":
        kwargs = {"max_steps": cg_max_steps, **(solver["fisher_solver_kwargs"] or {})}
        solver = {**solver, "fisher_solver_kwargs": kwargs}
    factor, steps, n_epochs = (sampled.pop(name) for name in ("critic_damping_factor", "critic_steps", "n_epochs"))
    if sampled["critic_solver"] == "gauss_newton":
        damping = factor * GaussNewtonSolver.defaults(sampled["gamma"])["damping"]  # a long horizon needs less
        critic: dict[str, Any] = {"n_critic_updates": steps, "critic_solver_kwargs": {"damping": damping}}
        for unused in ("learning_rate", "batch_size"):
            del sampled[unused]
    else:
        critic = {"n_critic_updates": n_epochs, "critic_solver_kwargs": None}
    if "log_std_init" in sampled:
        sampled["policy_kwargs"]["log_std_init"] = sampled.pop("log_std_init")
    return {**sampled, **solver, **critic}
