"""How far the float32 solves on a device are from the same solves in float64 on the processor."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import stable_baselines3.common.policies as sb3_policies
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from benchmarks.gpu_timing import Row, Setting, reason_of, require_alive
from benchmarks.speed_peers import CG_STEPS, DAMPING
from benchmarks.speed_products import OBSERVATIONS
from sb3_npg.linalg import make_linalg
from sb3_npg.local_problem import LocalProblem
from sb3_npg.solvers import make_fisher_solver
from sb3_npg.solvers.base import Solution
from tests.cases import in_float64

ROWS = 256
#: Action spaces, and what makes a policy act in them.
POLICIES: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "Box": (spaces.Box(-1.0, 1.0, (6,), np.float32), {}),
    "Discrete": (spaces.Discrete(6), {}),
    "MultiDiscrete": (spaces.MultiDiscrete([3, 4, 2]), {}),
    "MultiBinary": (spaces.MultiBinary(5), {}),
    "gSDE": (spaces.Box(-1.0, 1.0, (6,), np.float32), {"use_sde": True, "log_std_init": -1.0}),
}
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    f"CG {CG_STEPS}": ("cg", {"max_steps": CG_STEPS, "rtol": 0.0}),
    "K-FAC": ("kfac", {}),
    "K-FAC by Cholesky": ("kfac", {"largest_eigen": 0}),
}
#: Of a solution by conjugate gradient, held against F x in float64 for the x that it returned.
PRODUCT = "F x"


def accuracy(setting: Setting, starting: Callable[[str], None], without: dict[str, str]) -> list[Row]:
    """Return a row for each policy and backend, with the relative errors."""
    rows: list[Row] = []
    for kind in POLICIES:
        for backend in setting.backends:
            name = f"{kind}, {backend}"
            if name in without:
                rows.append({"name": name, "failed": without[name]})
                continue
            starting(name)
            try:
                rows.append({"name": name, "errors": _errors(kind, backend, setting.device)})
            except Exception as error:
                rows.append({"name": name, "failed": reason_of(error)})
                require_alive(setting.device, name, error)
    return rows


def _errors(kind: str, backend: str, device: th.device) -> dict[str, float]:
    single, double = _policy(kind), _policy(kind).double()
    double.load_state_dict(single.state_dict())
    observations, advantages = th.randn(ROWS, OBSERVATIONS), th.randn(ROWS)
    with th.no_grad():
        actions = single.get_distribution(observations).get_actions()
    single.to(device)
    if single.use_sde:
        single.reset_noise()  # on the device
    mine = LocalProblem(single, observations.to(device), actions.to(device), advantages.to(device))
    with _float64():
        exact_actions = actions.double() if actions.is_floating_point() else actions
        exact = LocalProblem(double, observations.double(), exact_actions, advantages.double())
        gradient = exact.surrogate_gradient()
        errors: dict[str, float] = {}
        references = {name: _solve(name, "torch", exact, gradient) for name in SOLVERS}
    for name, reference in references.items():
        found = _solve(name, backend, mine, gradient.float().to(device))
        errors[name] = _relative(found.natural_gradient, reference.natural_gradient)
        if found.product is not None:
            with _float64():
                errors[PRODUCT] = _relative(
                    found.product, exact.fisher_vector_product(found.natural_gradient.double().cpu())
                )
    return errors


def _policy(kind: str) -> ActorCriticPolicy:
    th.manual_seed(0)
    action_space, kwargs = POLICIES[kind]
    observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32)
    policy = ActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, net_arch=[64, 64], **kwargs)
    policy.set_training_mode(False)
    return policy


def _solve(name: str, backend: str, problem: LocalProblem, gradient: th.Tensor) -> Solution:
    solver = make_fisher_solver(*SOLVERS[name]).to(gradient.device)
    solver.use(make_linalg(backend, gradient.device))
    solver.update(problem)
    return solver.solve(problem, gradient, DAMPING)


def _relative(found: th.Tensor, reference: th.Tensor) -> float:
    return float((found.double().cpu() - reference).norm() / reference.norm())


@contextmanager
def _float64() -> Iterator[None]:
    """Keep SB3 from casting observations to float32."""
    kept = vars(sb3_policies)["preprocess_obs"]
    in_float64()
    try:
        yield
    finally:
        setattr(sb3_policies, "preprocess_obs", kept)  # noqa: B010  # not exported
