"""Solves of (F + λI) x = g on a GPU: by backend, against sb3-contrib's and against the arithmetic."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from sb3_contrib.common.utils import conjugate_gradient_solver
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from benchmarks.gpu_timing import Contestant, Setting
from benchmarks.speed_peers import ACTION_DIM, CG_STEPS, DAMPING
from benchmarks.speed_products import OBSERVATIONS
from sb3_npg.linalg import make_linalg
from sb3_npg.local_problem import LocalProblem
from sb3_npg.solvers import FisherSolver, make_fisher_solver

CG: dict[str, Any] = {"max_steps": CG_STEPS, "rtol": 0.0}
GRADIENT, ONE_PRODUCT = "forward pass and gradient alone", "convolutions of one product"
PEER = f"sb3-contrib TRPO's CG {CG_STEPS}"
#: Edge of the square matrices that the device's rate is measured with.
GEMM_EDGE = 8192
IMAGES, N_BUTTONS = spaces.Box(0, 255, (4, 84, 84), np.uint8), 6


@dataclass(frozen=True)
class Inputs:
    """
    A policy and its rollout, of which a new problem is made for each solve, so that nothing is kept.

    :param policy: on the device, in evaluation mode
    :param observations: rows
    :param actions: the policy's own
    :param advantages: shape (N,)
    """

    policy: ActorCriticPolicy
    observations: th.Tensor
    actions: th.Tensor
    advantages: th.Tensor

    @classmethod
    def draw(cls, policy: ActorCriticPolicy, observations: th.Tensor, device: th.device) -> "Inputs":
        """Complete a rollout with the policy's actions and random advantages."""
        policy.to(device).set_training_mode(False)
        observations = observations.to(device)
        with th.no_grad():
            actions = policy.get_distribution(observations).get_actions()
        return cls(policy, observations, actions, th.randn(len(observations)).to(device))

    def problem(self) -> LocalProblem:
        """Freeze an update."""
        return LocalProblem(self.policy, self.observations, self.actions, self.advantages)


def mlp_inputs(hidden: Sequence[int], rows: int, device: th.device) -> Inputs:
    """Draw a rollout of HalfCheetah's sizes."""
    th.manual_seed(0)
    box = [spaces.Box(-1.0, 1.0, (n,), np.float32) for n in (OBSERVATIONS, ACTION_DIM)]
    policy = ActorCriticPolicy(box[0], box[1], lambda _: 1e-3, net_arch=list(hidden))
    return Inputs.draw(policy, th.randn(rows, OBSERVATIONS), device)


def image_inputs(rows: int, device: th.device) -> Inputs:
    """Draw a rollout of Atari's sizes for NatureCNN."""
    th.manual_seed(0)
    policy = ActorCriticCnnPolicy(IMAGES, spaces.Discrete(N_BUTTONS), lambda _: 1e-3)
    shape = (rows, *(IMAGES.shape or ()))
    return Inputs.draw(policy, th.randint(0, 256, shape, dtype=th.uint8), device)


class Solving:
    """
    A solver on one backend.

    :param inputs: what it solves for
    :param backend: who runs its linear algebra
    :param name: of the solver
    :param kwargs: of its constructor
    """

    def __init__(self, inputs: Inputs, backend: str, name: str, kwargs: dict[str, Any]):
        self._inputs = inputs
        self._backend = backend
        self._arguments = name, kwargs
        self._solver: FisherSolver | None = None

    def prepare(self) -> Callable[[], th.Tensor]:
        """Make a problem and its gradient; what is timed is the solver's own."""
        if self._solver is None:
            device = self._inputs.observations.device
            self._solver = make_fisher_solver(*self._arguments).to(device)
            self._solver.use(make_linalg(self._backend, device))
        problem = self._inputs.problem()
        return partial(_solve, self._solver, problem, problem.surrogate_gradient())


class KernelSolve:
    """
    The solve of a linear system alone, its chain of layers at hand.

    :param inputs: what it solves for
    :param precision: of products, as torch names it
    """

    def __init__(self, inputs: Inputs, precision: str):
        self._inputs = inputs
        self._precision = precision

    def prepare(self) -> Callable[[], th.Tensor]:
        """Make a system; what is timed is the solve, and reading what happened in it."""
        problem = self._inputs.problem()
        gradient, chain = problem.surrogate_gradient(), problem.fisher_chain()
        linalg = make_linalg("cupy", gradient.device)

        def solve() -> th.Tensor:
            before = th.get_float32_matmul_precision()
            th.set_float32_matmul_precision(self._precision)
            try:
                return linalg.conjugate_gradient(
                    problem.fisher_vector_product, gradient, CG_STEPS, shift=DAMPING, chain=lambda: chain
                ).x
            finally:
                th.set_float32_matmul_precision(before)

        return solve


def _solve(solver: FisherSolver, problem: LocalProblem, gradient: th.Tensor) -> th.Tensor:
    solver.update(problem)
    return solver.solve(problem, gradient, DAMPING).natural_gradient


def solves(inputs: Inputs, setting: Setting, title: str, name: str, kwargs: dict[str, Any]) -> list[Contestant]:
    """Return a solver on each backend."""
    like = f"{title}, torch"
    made = [(backend, Solving(inputs, backend, name, kwargs)) for backend in setting.backends]
    return [
        Contestant(f"{title}, {backend}", solving.prepare, like if backend != "torch" else "")
        for backend, solving in made
    ]


class TrpoSolve:
    """
    The conjugate gradient of ``TRPO.train``.

    :param inputs: what it solves for
    """

    def __init__(self, inputs: Inputs):
        self._inputs = inputs
        env = IdentityEnvBox()
        # its KL is a mean over action dimensions
        self._trpo = TRPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu", cg_damping=DAMPING / ACTION_DIM)
        self._trpo.policy = inputs.policy

    def prepare(self) -> Callable[[], object]:
        """Build the graph of the KL's gradient, which is not timed."""
        policy, observations = self._inputs.policy, self._inputs.observations
        with th.no_grad():
            old = copy.copy(policy.get_distribution(observations))
        distribution = policy.get_distribution(observations)
        log_prob = distribution.log_prob(self._inputs.actions)
        objective = (self._inputs.advantages * (log_prob - log_prob.detach()).exp()).mean()
        kl = kl_divergence(distribution, old).mean()
        parameters, gradient, kl_gradient, _ = self._trpo._compute_actor_grad(kl, objective)
        product = partial(self._trpo.hessian_vector_product, parameters, kl_gradient)
        return partial(conjugate_gradient_solver, product, gradient, max_iter=CG_STEPS)


class Layer(NamedTuple):
    """
    A linear layer or a convolution as the functions that a product with F calls.

    :param weight: its weight
    :param inputs: of all rows
    :param outputs: of all rows
    :param stride: of a convolution; 0 for a linear layer
    """

    weight: th.Tensor
    inputs: th.Tensor
    outputs: th.Tensor
    stride: int

    def push(self) -> None:
        """Apply the layer, without its bias."""
        if self.stride:
            functional.conv2d(self.inputs, self.weight, stride=self.stride)
        else:
            functional.linear(self.inputs, self.weight)

    def pull(self) -> None:
        """Propagate what has the shape of the outputs to the inputs."""
        if self.stride:
            conv2d_input(  # type: ignore[no-untyped-call]
                self.inputs.shape, self.weight, self.outputs, stride=self.stride
            )
        else:
            th.mm(self.outputs, self.weight)

    def gradient(self) -> None:
        """Contract what has the shape of the outputs with the inputs."""
        if self.stride:
            conv2d_weight(  # type: ignore[no-untyped-call]
                self.inputs, self.weight.shape, self.outputs, stride=self.stride
            )
        else:
            th.mm(self.outputs.T, self.inputs)


@th.no_grad()
def layers_of(policy: ActorCriticPolicy, observations: th.Tensor) -> list[Layer]:
    """Return NatureCNN's layers and the policy's output layer, with what goes in and comes out."""
    layers: list[Layer] = []

    def keep(module: nn.Module, inputs: tuple[th.Tensor, ...], outputs: th.Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, th.Tensor)
        stride = module.stride[0] if isinstance(module, nn.Conv2d) else 0
        layers.append(Layer(weight.detach(), inputs[0], outputs, stride))

    modules = [module for module in policy.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_hook(keep) for module in modules]
    policy.get_distribution(observations)
    for hook in hooks:
        hook.remove()
    return layers


@th.no_grad()
def one_product(layers: Sequence[Layer]) -> None:
    """
    Call the convolutions and matrix products of one F v, and nothing else.

    J v applies each layer twice, to V with the inputs and to W with what is pushed; Jᵀu pulls and contracts once. The
    first layer has nothing pushed into it and pulls nothing.
    """
    for i, layer in enumerate(layers):
        layer.push()
        layer.gradient()
        if i > 0:
            layer.push()
            layer.pull()


def gemm(setting: Setting) -> list[Contestant]:
    """Multiply two matrices of float32."""
    edge = setting.size(GEMM_EDGE, 256)
    a, b = (th.randn(edge, edge, device=setting.device) for _ in range(2))
    return [Contestant("torch", lambda: partial(th.mm, a, b))]


def cg(hidden: Sequence[int], rows: int, setting: Setting, against_trpo: bool = True) -> list[Contestant]:
    """Solve by conjugate gradient."""
    hidden = [setting.size(width, 16) for width in hidden]
    inputs = mlp_inputs(hidden, setting.size(rows, 64), setting.device)
    ours = solves(inputs, setting, f"CG {CG_STEPS}", "cg", CG)
    if "cupy" in setting.backends:
        alone = {"the linear system alone": "highest", "the linear system alone, in TF32": "high"}
        like = f"CG {CG_STEPS}, torch"
        ours += [Contestant(name, KernelSolve(inputs, precision).prepare, like) for name, precision in alone.items()]
    return [*ours, Contestant(PEER, TrpoSolve(inputs).prepare)] if against_trpo else ours


def kfac(kwargs: dict[str, Any], setting: Setting) -> list[Contestant]:
    """Measure K-FAC's factors, decompose them and solve."""
    width = setting.size(64, 16)
    inputs = mlp_inputs([width, width], setting.size(2048, 64), setting.device)
    return solves(inputs, setting, "K-FAC", "kfac", kwargs)


def images(name: str, kwargs: dict[str, Any], setting: Setting) -> list[Contestant]:
    """Solve for NatureCNN, and time what an update needs anyway."""
    inputs = image_inputs(setting.size(2048, 4), setting.device)
    title = {"cg": f"CG {CG_STEPS}", "kfac": "K-FAC"}[name]

    def gradient() -> Callable[[], th.Tensor]:
        return lambda: inputs.problem().surrogate_gradient()

    contestants = [*solves(inputs, setting, title, name, kwargs), Contestant(GRADIENT, gradient)]
    if name == "kfac":
        # One random column; and ACKTR's: one column, and the mean over a layer's positions.
        one: dict[str, Any] = {"columns": "propagated"}
        cheaper: dict[str, dict[str, Any]] = {
            "one column": one,
            "one column, by Cholesky": {**one, "largest_eigen": 0},
            "cheapest": {"columns": "sampled", "weight_sharing": "reduce", "largest_eigen": 0},
        }
        for remark, more in cheaper.items():
            contestants += solves(inputs, setting, f"K-FAC, {remark}", name, kwargs | more)[:1]
    if name == "cg":
        layers = layers_of(inputs.policy, inputs.observations)
        contestants.append(Contestant(ONE_PRODUCT, lambda: partial(one_product, layers)))
    return contestants
