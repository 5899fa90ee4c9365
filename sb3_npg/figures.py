"""What one update logs, under the names that users and dashboards read."""

from sb3_npg.local_problem import LocalProblem
from sb3_npg.solvers import Direction
from sb3_npg.trust_region import LineSearch


def policy_step_figures(
    problem: LocalProblem, direction: Direction, length: float, search: LineSearch
) -> dict[str, float]:
    """
    Name the figures of a policy step.

    :param problem: the policy update that it was a step of
    :param direction: the natural gradient and how it was found
    :param length: β of the full step βx
    :param search: where the line search ended
    :return: log keys and values; KLs in nats
    """
    step_size = search.coefficient * length
    figures = {
        "surrogate": search.surrogate,
        "improvement": search.improvement,
        "improvement_predicted": step_size * direction.slope,
        "kl": search.mean_kl,
        "kl_predicted": direction.predicted_kl(step_size),
        "step_size": step_size,
        "line_search_steps": search.steps,
        "natural_gradient_norm": direction.norm,
        "damping": direction.damping,
        **{f"solver_{name}": figure for name, figure in direction.stats.items()},
        # The same under the names of PPO and of sb3-contrib's TRPO, which dashboards read.
        "entropy_loss": -problem.old_entropy(),
        "policy_objective": search.surrogate,
        "kl_divergence_loss": search.mean_kl,
        "is_line_search_success": float(search.accepted),
    }
    return {f"train/{name}": figure for name, figure in figures.items()}
