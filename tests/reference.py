"""
Slow and obvious mathematics to compare with. Uses SB3's ``log_prob`` and torch's distributions only, and
nothing of what it is a reference for.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.distributions import (
    Distribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence
from torch.nn import functional

from sb3_npg.observations import take_rows
from sb3_npg.solvers.block_diagonal import BlockDiagonalSolver
from tests.cases import Observations

Parameters = Sequence[nn.Parameter]


def flat_gradient(scalar: th.Tensor, parameters: Parameters, create_graph: bool = False) -> th.Tensor:
    """Return the gradient of a scalar as one vector."""
    gradients = th.autograd.grad(
        scalar, parameters, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
    return th.cat([gradient.reshape(-1) for gradient in gradients])


def hessian(scalar: th.Tensor, parameters: Parameters) -> th.Tensor:
    """Return the Hessian of a scalar, one row at a time."""
    gradient = flat_gradient(scalar, parameters, create_graph=True)
    return th.stack([flat_gradient(entry, parameters) for entry in gradient])


def weighted_actions(distribution: Distribution) -> Iterator[tuple[float, th.Tensor]]:
    """
    Yield actions of one state and weights, such that Σ w f(a) = E[f(a)].

    Discrete actions are enumerated. Gaussian ones are the nodes of a Gauss–Hermite rule that is exact for
    polynomials of degree 5 in each dimension; a product of two scores is of degree 4.
    """
    inner = distribution.distribution
    if isinstance(inner, Normal):
        nodes, weights = np.polynomial.hermite_e.hermegauss(3)
        mean, std = inner.mean[0].detach(), inner.stddev[0].detach()
        squashed = isinstance(distribution, SquashedDiagGaussianDistribution) or (
            isinstance(distribution, StateDependentNoiseDistribution) and distribution.bijector is not None
        )
        for index in itertools.product(range(3), repeat=len(mean)):
            action = mean + std * th.as_tensor(nodes[list(index)])
            weight = float(np.prod(weights[list(index)] / weights.sum()))
            yield weight, (action.tanh() if squashed else action).unsqueeze(0)
        return
    probabilities = [part.detach()[0] for part in _marginals(distribution)]
    for index in itertools.product(*(range(len(part)) for part in probabilities)):
        weight = float(np.prod([float(part[i]) for part, i in zip(probabilities, index, strict=True)]))
        single = isinstance(inner, Categorical)
        yield weight, th.tensor([index[0]] if single else [list(index)], dtype=th.float64)


def _marginals(distribution: Distribution) -> list[th.Tensor]:
    inner = distribution.distribution
    if isinstance(inner, Bernoulli):
        return [th.stack([1 - inner.probs[:, i], inner.probs[:, i]], dim=1) for i in range(inner.probs.shape[1])]
    return [categorical.probs for categorical in (inner if isinstance(inner, list) else [inner])]  # type: ignore[attr-defined]


def score_fisher(policy: ActorCriticPolicy, observations: Observations, n: int, parameters: Parameters) -> th.Tensor:
    """Return E[∇log π ∇log πᵀ], one state and one action at a time."""
    p = sum(parameter.numel() for parameter in parameters)
    fisher = th.zeros(p, p, dtype=th.float64)
    for i in range(n):
        row = take_rows(observations, slice(i, i + 1))
        for weight, action in weighted_actions(policy.get_distribution(row)):
            score = flat_gradient(policy.get_distribution(row).log_prob(action).sum(), parameters)
            fisher += weight / n * th.outer(score, score)
    return fisher


def frozen(distribution: Distribution) -> list[th.distributions.Distribution]:
    """Return the torch distributions inside, as constants."""
    inner = distribution.distribution
    if isinstance(inner, Normal):
        return [Normal(inner.mean.detach(), inner.stddev.detach())]
    if isinstance(inner, Bernoulli):
        return [Bernoulli(logits=inner.logits.detach())]
    parts = inner if isinstance(inner, list) else [inner]
    return [Categorical(logits=part.logits.detach()) for part in parts]  # type: ignore[attr-defined]


def mean_kls(policy: ActorCriticPolicy, observations: Observations, n: int) -> tuple[th.Tensor, th.Tensor]:
    """Return mean KL(π_old ‖ π_θ) and mean KL(π_θ ‖ π_old) by torch, summed over dimensions, at θ_old."""
    old = frozen(policy.get_distribution(observations))
    inner = policy.get_distribution(observations).distribution
    new = inner if isinstance(inner, list) else [inner]
    forward = sum(kl_divergence(p, q).sum() for p, q in zip(old, new, strict=True))
    backward = sum(kl_divergence(q, p).sum() for p, q in zip(old, new, strict=True))
    return th.as_tensor(forward / n), th.as_tensor(backward / n)


def relative_error(value: th.Tensor, reference: th.Tensor) -> float:
    """Return ‖value − reference‖ / ‖reference‖."""
    return float((value - reference).norm() / reference.norm())


# Curvature layer by layer, one row and one action at a time


class Layer(NamedTuple):
    """
    Modules that apply one weight and one bias.

    :param modules: nn.Linear or nn.Conv2d, more than one where they share the parameters
    :param weight: None if it does not act, or makes a layer of its own
    :param bias: None if it does not act, or makes a layer of its own
    """

    modules: tuple[nn.Linear | nn.Conv2d, ...]
    weight: nn.Parameter | None
    bias: nn.Parameter | None


class LayerCurvature(NamedTuple):
    """
    What K-FAC makes of a layer.

    :param index: where each parameter lies in θ, shape (g, a): one row for each output, the bias last
    :param factors: A and G by the treatment of several positions, "expand" or "reduce"
    """

    index: th.Tensor
    factors: dict[str, tuple[th.Tensor, th.Tensor]]


class Curvature(NamedTuple):
    """
    The dense F, and what K-FAC makes of its layers.

    :param fisher: F, shape (p, p)
    :param layers: one for each layer
    :param others: where each tensor that belongs to no layer lies in θ
    """

    fisher: th.Tensor
    layers: list[LayerCurvature]
    others: list[th.Tensor]


def single_layers(module: nn.Module, parameters: Parameters) -> list[Layer]:
    """Return every Linear and Conv2d that acts, each by itself."""
    acting = {id(parameter) for parameter in parameters}
    layers = [
        Layer((one,), *(tensor if id(tensor) in acting else None for tensor in (one.weight, one.bias)))
        for one in module.modules()
        if isinstance(one, (nn.Linear, nn.Conv2d))
    ]
    return [layer for layer in layers if layer.weight is not None or layer.bias is not None]


def patches(module: nn.Linear | nn.Conv2d, row: th.Tensor) -> list[th.Tensor]:
    """Return what a layer's weight is multiplied by for one row, position by position, each a vector."""
    if isinstance(module, nn.Linear):
        return list(row.reshape(-1, module.in_features))
    if module.padding == "same":
        around = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        before, after = [size // 2 for size in around], [size - size // 2 for size in around]
    else:
        before = after = [0, 0] if module.padding == "valid" else list(module.padding)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(row.unsqueeze(0), (before[1], after[1], before[0], after[0]), mode)[0]
    reach = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return [
        padded[:, y : y + reach[0] : module.dilation[0], x : x + reach[1] : module.dilation[1]].reshape(-1)
        for y in range(0, padded.shape[1] - reach[0] + 1, module.stride[0])
        for x in range(0, padded.shape[2] - reach[1] + 1, module.stride[1])
    ]


@contextmanager
def perturbed(modules: Iterable[nn.Module]) -> Iterator[list[tuple[nn.Module, th.Tensor, th.Tensor]]]:
    """Add a zero to what each module returns, and list the calls as (module, input, zero): its gradient is ∂/∂s."""
    calls: list[tuple[nn.Module, th.Tensor, th.Tensor]] = []

    def hook(module: nn.Module, inputs: tuple[th.Tensor, ...], output: th.Tensor) -> th.Tensor:
        calls.append((module, inputs[0].detach().clone(), th.zeros_like(output, requires_grad=True)))
        return output + calls[-1][2]

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def parameter_index(parameters: Parameters) -> dict[int, th.Tensor]:
    """Return where each tensor lies in θ, in the tensor's shape, by its identity."""
    starts = itertools.accumulate((parameter.numel() for parameter in parameters), initial=0)
    return {
        id(parameter): th.arange(start, start + parameter.numel()).view(parameter.shape)
        for start, parameter in zip(starts, parameters, strict=False)
    }


def curvature(
    policy: ActorCriticPolicy, observations: Observations, n: int, parameters: Parameters, layers: Sequence[Layer]
) -> Curvature:
    """
    Return E[∇log π ∇log πᵀ] for θ, and the same for each layer's outputs beside the second moments of its inputs.

    A = Σ_t ã ãᵀ and G = Σ_t δ δᵀ / T, or for "reduce" ā āᵀ and (Σ_t δ)(Σ_t δ)ᵀ, means over the rows.
    """
    where = parameter_index(parameters)
    layers_of = [_layer_index(layer, where) for layer in layers]
    p = sum(parameter.numel() for parameter in parameters)
    fisher = th.zeros(p, p, dtype=th.float64)
    factors = [
        {
            kind: (th.zeros(i.shape[1], i.shape[1], dtype=th.float64), th.zeros(len(i), len(i), dtype=th.float64))
            for kind in ("expand", "reduce")
        }
        for i in layers_of
    ]
    modules = list(dict.fromkeys(module for layer in layers for module in layer.modules))
    for row in range(n):
        with perturbed(modules) as calls:
            distribution = policy.get_distribution(take_rows(observations, slice(row, row + 1)))
        zeros = [zero for _, _, zero in calls]
        inputs = [_inputs(layer, calls) for layer in layers]
        for (a, _), (a_mean, _), x in ((f["expand"], f["reduce"], x) for f, x in zip(factors, inputs, strict=True)):
            a += x.T @ x / n
            a_mean += th.outer(x.mean(dim=0), x.mean(dim=0)) / n
        for weight, action in weighted_actions(distribution):
            log_prob = distribution.log_prob(action).sum()
            score = flat_gradient(log_prob, parameters)
            fisher += weight / n * th.outer(score, score)
            back = th.autograd.grad(log_prob, zeros, retain_graph=True, materialize_grads=True) if zeros else ()
            for layer, kinds in zip(layers, factors, strict=True):
                delta = _outputs(layer, calls, back)
                kinds["expand"][1].add_(delta.T @ delta / len(delta), alpha=weight / n)
                kinds["reduce"][1].add_(th.outer(delta.sum(dim=0), delta.sum(dim=0)), alpha=weight / n)
    covered = {int(i) for index in layers_of for i in index.flatten()}
    others = [index.flatten() for index in where.values() if int(index.flatten()[0]) not in covered]
    return Curvature(fisher, [LayerCurvature(*pair) for pair in zip(layers_of, factors, strict=True)], others)


def _layer_index(layer: Layer, where: dict[int, th.Tensor]) -> th.Tensor:
    g = len(layer.modules[0].weight)
    return th.cat([where[id(part)].reshape(g, -1) for part in (layer.weight, layer.bias) if part is not None], dim=1)


def _inputs(layer: Layer, calls: Sequence[tuple[nn.Module, th.Tensor, th.Tensor]]) -> th.Tensor:
    """Return ã of one row, a position after the other, shape (T, a)."""
    rows = []
    for module, given, _ in calls:
        if any(module is one for one in layer.modules):
            for patch in patches(module, given[0]):
                one = th.ones(1, dtype=patch.dtype)
                rows.append(
                    th.cat([*([patch] if layer.weight is not None else []), *([one] if layer.bias is not None else [])])
                )
    return th.stack(rows)


def _outputs(
    layer: Layer, calls: Sequence[tuple[nn.Module, th.Tensor, th.Tensor]], back: Sequence[th.Tensor]
) -> th.Tensor:
    """Return the derivatives by the layer's outputs in the order of :func:`_inputs`, shape (T, g)."""
    rows = []
    for (module, _, _), gradient in zip(calls, back, strict=True):
        if any(module is one for one in layer.modules):
            channels_last = gradient[0].movedim(0, -1) if isinstance(module, nn.Conv2d) else gradient[0]
            rows.append(channels_last.reshape(-1, len(module.weight)))
    return th.cat(rows)


def block(matrix: th.Tensor, index: th.Tensor) -> th.Tensor:
    """Return the rows and columns of a matrix that an index names."""
    return matrix[index.flatten().unsqueeze(1), index.flatten()]


def block_diagonal(parts: Sequence[tuple[th.Tensor, th.Tensor]], p: int) -> th.Tensor:
    """Put blocks, each with its index, where they belong in a matrix of zeros."""
    matrix = th.zeros(p, p, dtype=th.float64)
    for index, part in parts:
        matrix[index.flatten().unsqueeze(1), index.flatten()] = part
    return matrix


def kfac_matrix(exact: Curvature, weight_sharing: str = "expand") -> th.Tensor:
    """Return G ⊗ A for each layer, and the exact block of every other tensor."""
    kronecker = [(layer.index, th.kron(*reversed(layer.factors[weight_sharing]))) for layer in exact.layers]
    others = [(index, block(exact.fisher, index)) for index in exact.others]
    return block_diagonal([*kronecker, *others], len(exact.fisher))


def ekfac_matrix(exact: Curvature, bases: Sequence[tuple[th.Tensor, th.Tensor]]) -> th.Tensor:
    """Return Q diag(Qᵀ F_l Q) Qᵀ for each layer with Q = Q_G ⊗ Q_A, and the exact block of every other tensor."""
    parts = [(index, block(exact.fisher, index)) for index in exact.others]
    for layer, (a, g) in zip(exact.layers, bases, strict=True):
        q = th.kron(g, a)
        parts.append((layer.index, q @ th.diag((q.T @ block(exact.fisher, layer.index) @ q).diagonal()) @ q.T))
    return block_diagonal(parts, len(exact.fisher))


def scores(
    policy: ActorCriticPolicy, observations: Observations, actions: th.Tensor, parameters: Parameters
) -> th.Tensor:
    """Return ∇log π(a_n|s_n), one row at a time, shape (n, p)."""
    rows = [slice(i, i + 1) for i in range(len(actions))]
    log_probs = [policy.get_distribution(take_rows(observations, row)).log_prob(actions[row]).sum() for row in rows]
    return th.stack([flat_gradient(log_prob, parameters) for log_prob in log_probs])


def matrix_of(solver: BlockDiagonalSolver, p: int) -> th.Tensor:
    """Return the matrix that an updated solver takes for F, by what it makes of each unit vector."""
    units = th.eye(p, dtype=th.float64)
    return th.linalg.inv(th.stack([solver.apply_inverse(unit, 1.0) for unit in units], dim=1)) - units
