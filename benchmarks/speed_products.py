"""One product with the Fisher, three ways, against the machine's rate of multiplying matrices."""

import itertools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.policies import ActorCriticPolicy

from benchmarks.speed_peers import CG_STEPS
from sb3_npg.local_problem import LocalProblem
from sb3_npg.policy_parts import split_policy

OBSERVATIONS, ACTIONS = 17, 6


def make_policy(width: int) -> ActorCriticPolicy:
    """Build SB3's MlpPolicy for HalfCheetah's sizes."""
    th.manual_seed(0)
    box = [spaces.Box(-1.0, 1.0, (n,), np.float32) for n in (OBSERVATIONS, ACTIONS)]
    policy = ActorCriticPolicy(box[0], box[1], lambda _: 1e-3, net_arch=[width, width])
    policy.set_training_mode(False)
    return policy


def products(width: int, rows: int) -> dict[str, Callable[[], Any]]:
    """Return one product with F by hand, one by double backward through z, and one as TRPO makes it."""
    policy = make_policy(width)
    observations = th.randn(rows, OBSERVATIONS)
    with th.no_grad():
        actions = policy.get_distribution(observations).get_actions()
    advantages = th.randn(rows)
    by_hand, autograd = (
        LocalProblem(policy, observations, actions, advantages, parts=split_policy(policy, observations, fast))
        for fast in (True, False)
    )
    vector = th.randn(len(by_hand.vector))
    trpo = TRPO("MlpPolicy", IdentityEnvBox(), n_steps=8, batch_size=8, device="cpu")
    trpo.policy = policy
    with th.no_grad():
        old = make_policy(width).get_distribution(observations)
    distribution = policy.get_distribution(observations)
    objective = (advantages * distribution.log_prob(actions)).mean()
    parameters, _, kl_gradient, _ = trpo._compute_actor_grad(kl_divergence(distribution, old).mean(), objective)
    return {
        "by hand": lambda: by_hand.fisher_vector_product(vector),
        "double backward through the outputs": lambda: autograd.fisher_vector_product(vector),
        "TRPO: double backward through the KL": lambda: trpo.hessian_vector_product(parameters, kl_gradient, vector),
    }


def operations(width: int, n_outputs: int, n_products: int) -> dict[str, int]:
    """
    Return the floating-point operations of an update by hand, for each row: its matrix products alone.

    :param width: units of each of two hidden layers
    :param n_outputs: of the network
    :param n_products: with F, in a solve
    :return: of one product, of snapshot and gradient, of a solve, of one trial of the line search, and of propagating
        back what the trace of F is made of
    """
    sizes = [OBSERVATIONS, width, width, n_outputs]
    layers = [2 * fan_in * fan_out for fan_in, fan_out in itertools.pairwise(sizes)]
    forward, above_the_first = sum(layers), sum(layers[1:])
    one_way = forward + above_the_first  # J v, and Jᵀu
    return {
        "product": 2 * one_way,
        "gradient": forward + one_way,
        "solve": n_products * 2 * one_way,
        "line search": forward,
        "trace": above_the_first,
    }


def floors(width: int, rows: int, rate: float, n_products: int) -> dict[str, float]:
    """Return the seconds that the matrix products of each part of an update take at a rate of operations."""
    actor, critic = (operations(width, n_outputs, n_products) for n_outputs in (ACTIONS, 1))
    parts = {part: actor[part] for part in ("product", "gradient", "solve", "line search")}
    parts["critic"] = sum(critic[part] for part in ("gradient", "trace", "solve", "line search"))
    return {part: rows * count / rate for part, count in parts.items()}


def gemm_rate(width: int, rows: int, rounds: int = 200) -> float:
    """Measure how many floating-point operations a second a matrix product of the update's shape makes."""
    a, b, out = th.randn(rows, width), th.randn(width, width), th.empty(rows, width)
    seconds = seconds_of({"mm": lambda: th.mm(a, b, out=out)}, rounds)["mm"]
    return 2.0 * rows * width * width / seconds[1]


def seconds_of(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Time each in turn; return the lower quartile, the median and the upper quartile of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 3):  # the first ones warm up
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: quartiles(values[3:]) for name, values in seconds.items()}


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, high = np.quantile(values, [0.25, 0.75])
    return float(low), median(values), float(high)


def measure(width: int, rows: int, rounds: int) -> dict[str, Any]:
    """Measure one size."""
    th.set_num_threads(1)
    seconds = seconds_of(products(width, rows), rounds)
    rate = gemm_rate(width, rows, rounds)
    return {"seconds": seconds, "rate": rate, "floors": floors(width, rows, rate, CG_STEPS)}
