"""K-FAC of a small multilayer perceptron as two CUDA graphs, one that measures and one that solves."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_npg.graphs import Capture
from sb3_npg.linalg.backend import KroneckerSystem
from sb3_npg.linalg.chain import FisherChain
from sb3_npg.linalg.cupy.chain_copy import ChainCopy, chain_key
from sb3_npg.linalg.cupy.cholesky import CholeskySolver
from sb3_npg.linalg.cupy.eigen import EigenSolver
from sb3_npg.linalg.cupy.factors import FactorShape, FactorSolver
from sb3_npg.linalg.cupy.kron import KroneckerSolver
from sb3_npg.linalg.kronecker import Eigen, damped_solve


class Kernels(NamedTuple):
    """
    The kernels that K-FAC of a chain consists of.

    :param factors: measures A and G of all layers; not shared, as a graph writes to its workspace
    :param eigens: decomposes the factors of some layers
    :param kroneckers: solves the systems of these layers
    :param choleskys: solves the systems of the other layers
    """

    factors: FactorSolver
    eigens: EigenSolver
    kroneckers: KroneckerSolver
    choleskys: CholeskySolver

    def fit(self, chain: FisherChain, largest_eigen: int) -> bool:
        """Tell whether all of a chain can be done by kernels, none of which waits for the device."""
        if chain.scale is not None or not self.factors.fits(chain):
            return False
        sizes, dtype = _sizes(chain), chain.diagonal.dtype
        small, large = ([sizes[i] for i in layers] for layers in _parted(sizes, largest_eigen))
        decomposed = [n for size in small for n in size] + ([] if chain.noise is None else [chain.noise.shape[-1]])
        return (
            all(n == 1 or self.eigens.fits(n) for n in decomposed)
            and self.kroneckers.fits(small, dtype)
            and self.choleskys.fits(large, dtype)
            and sorted(_order(chain)) == list(range(chain.size))
        )


class RecordedChain:
    """
    (A ⊗ G + λI)⁻¹ of each layer of a chain, and (F + λI)⁻¹ of its noise.

    An update is one launch besides the copies of its inputs, and so is a solve: for a network this small, launching
    each kernel takes the host longer than running it takes the device. The graphs read and write this object's own
    tensors, so each solver needs its own object.

    :param kernels: those that fit the chain
    :param capture: records a function as a graph
    :param decompose: decomposes matrices without waiting for the device
    :param chain: an example of the chains to come
    :param largest_eigen: layers with a factor of more rows than this use Cholesky with the damping split
    """

    def __init__(
        self,
        kernels: Kernels,
        capture: Capture,
        decompose: Callable[[Sequence[th.Tensor]], list[Eigen]],
        chain: FisherChain,
        largest_eigen: int,
    ):
        self._key = chain_key(chain)
        self._kernels = kernels
        self._decompose = decompose
        self._own = ChainCopy(chain)
        self._sizes = _sizes(chain)
        self._small, self._large = _parted(self._sizes, largest_eigen)
        order, where = _order(chain), chain.diagonal.device
        self._order, self._places = (th.tensor(places, device=where) for places in (order, np.argsort(order)))
        self._vector = chain.diagonal.new_zeros(chain.size)
        self._damping = th.ones((), dtype=th.float64, device=where)
        self._updating, found = capture(self._factorised)
        factors, decomposed = found[: 2 * len(self._sizes)], found[2 * len(self._sizes) :]
        #: A and G of each layer.
        self.factors = list(zip(factors[::2], factors[1::2], strict=True))
        self._eigens = [Eigen(*pair) for pair in zip(decomposed[::2], decomposed[1::2], strict=True)]
        self._solving, (self._solution,) = capture(self._solved)

    @property
    def eigens(self) -> dict[int, tuple[Eigen, Eigen]]:
        """The decompositions of A and G by layer number, for the layers that are decomposed."""
        return {layer: (self._eigens[2 * i], self._eigens[2 * i + 1]) for i, layer in enumerate(self._small)}

    @property
    def noise(self) -> Eigen | None:
        """The decomposition of the noise's blocks; None if there is no noise."""
        return None if self._own.chain.noise is None else self._eigens[-1]

    def serves(self, chain: FisherChain) -> bool:
        """Tell whether a chain differs from the one that the graphs are recorded for only in its numbers."""
        return chain_key(chain) == self._key

    def update(self, chain: FisherChain) -> None:
        """Measure and decompose, without waiting for the device. Earlier results are overwritten."""
        self._own.take(chain)
        self._updating.replay()

    def solve(self, vector: th.Tensor, damping: float) -> th.Tensor:
        """Return the damped inverse times v, shape (p,), without waiting; not finite if there is no inverse."""
        self._vector.copy_(vector)
        self._damping.fill_(damping)
        self._solving.replay()
        return self._solution.clone()

    def _factorised(self) -> tuple[th.Tensor, ...]:
        """Return A and G of each layer, then eigenvalues and eigenvectors of all matrices that are decomposed."""
        chain = self._own.chain
        pairs = self._kernels.factors.solve(chain)
        small = [factor for i in self._small for factor in pairs[i]]
        eigens = self._decompose(small if chain.noise is None else [*small, chain.noise])
        return (*(factor for pair in pairs for factor in pair), *(part for eigen in eigens for part in eigen))

    def _solved(self) -> tuple[th.Tensor]:
        """Return the solution for the present contents of ``_vector`` and ``_damping``."""
        blocks = th.split(self._vector[self._order], [g * a for g, a in self._sizes] + self._noise_numbers())
        rights = [block.view(size) for block, size in zip(blocks, self._sizes, strict=False)]
        systems = [KroneckerSystem(g, a, None, rights[i]) for i, (a, g) in self.eigens.items()]
        solutions = dict(zip(self._small, self._kernels.kroneckers.solve(systems, self._damping), strict=True))
        large = [self.factors[i] for i in self._large], [rights[i] for i in self._large]
        solutions.update(zip(self._large, self._kernels.choleskys.solve(*large, self._damping), strict=True))
        found = [solutions[i].flatten() for i in range(len(self._sizes))]
        if self.noise is not None:
            right = blocks[-1].view_as(self.noise.values)
            found.append(damped_solve(self.noise, right, self._damping.to(right.dtype)).flatten())
        return (th.cat(found)[self._places],)

    def _noise_numbers(self) -> list[int]:
        return [] if self.noise is None else [self.noise.values.numel()]


def _sizes(chain: FisherChain) -> list[tuple[int, int]]:
    """Return (g, a) of each layer that is trained."""
    return [(g, a) for a, g in FactorShape.of(chain).sizes() if g]


def _parted(sizes: Sequence[tuple[int, int]], largest_eigen: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the layers whose factors are decomposed, and of the others."""
    is_small = [max(size) <= largest_eigen for size in sizes]
    small, large = ([i for i, one in enumerate(is_small) if one is wanted] for wanted in (True, False))
    return small, large


def _order(chain: FisherChain) -> list[int]:
    """Return where the numbers of each layer's matrix lie in a vector, row by row, followed by those of the noise."""
    parts: list[np.ndarray] = []
    for layer in chain.layers:
        spans = [span for span in (layer.weight_span, layer.bias_span) if span is not None]
        columns = [np.arange(span.start, span.stop).reshape(len(layer.weight), -1) for span in spans]
        parts += [np.concatenate(columns, axis=1).flatten()] if columns else []
    if chain.noise is not None and chain.noise_span is not None:
        noise = np.arange(chain.noise_span.start, chain.noise_span.stop)
        parts.append(noise.reshape(chain.noise.shape[-1], -1).T.flatten())
    return [int(place) for part in parts for place in part]
