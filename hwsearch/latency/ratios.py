"""What measured latencies say of estimates: by how much all of them are off, and by how much those of a shape.

A Gaussian process over the logarithms of shapes, of the logarithms of measured over estimated. What it is worth beside
one factor for all: `benchmarks/ratios.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwsearch.architecture import Architecture

if TYPE_CHECKING:
    from numpy.typing import NDArray

EVERYWHERE, NEARBY = 0.15, 0.08  # standard deviations of the logarithm: of all estimates as one, and of shapes apart
REACH = 1.5  # over which shapes are alike, in the logarithm of a size
NOISE = 0.02  # of measuring (`benchmarks/sessions.py`)
FAR = 1e3  # from every shape


class Ratios:
    """Measured over estimated.

    Args:
        known: logarithms of some.
    """

    def __init__(self, known: Mapping[Architecture, float]) -> None:
        self.known: dict[Architecture, float] = {}
        self.learn(known)

    def learn(self, found: Mapping[Architecture, float]) -> None:
        """Take in logarithms of more."""
        self.known |= found
        if not self.known:
            return
        from sklearn.gaussian_process import GaussianProcessRegressor  # two seconds
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel

        kernel = ConstantKernel(EVERYWHERE**2) + ConstantKernel(NEARBY**2) * RBF(REACH)
        self._process = GaussianProcessRegressor(kernel, alpha=NOISE**2, optimizer=None)
        # In an order of their own, whatever was measured first: a run that was killed goes on alike.
        architectures = sorted(self.known, key=lambda architecture: architecture.digest)
        self._process.fit(_shapes(architectures), [self.known[architecture] for architecture in architectures])

    def __call__(self, architectures: Sequence[Architecture]) -> NDArray[np.float64] | float:
        """The factor of each, [architectures]; 1 where nothing was measured."""
        return np.exp(self._process.predict(_shapes(architectures))) if self.known and architectures else 1.0

    @property
    def everywhere(self) -> float:
        """The factor of what is like nothing that was measured; 1 without any."""
        return float(np.exp(self._process.predict(np.full((1, 5), FAR)).item())) if self.known else 1.0


def _shapes(architectures: Sequence[Architecture]) -> NDArray[np.float64]:
    """Logarithms of depth, width and the mean heads, key-value heads and feed-forward size, [architectures, 5]."""
    sizes = []
    for architecture in architectures:
        shapes = [layer.shape for layer in architecture.layers]
        means = (sum(size) / len(shapes) for size in zip(*shapes, strict=True))
        sizes.append((architecture.depth, architecture.width, *means))
    return np.log(sizes)
