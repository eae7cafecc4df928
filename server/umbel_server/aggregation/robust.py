"""Median, trimmed mean, Krum, Multi-Krum and Bulyan over many updates, a tile of coordinates at a time.

Updates are read in tiles and never held, so memory is TILES bytes, one model, and n*n distances of n updates. What is
done to a tile is what Flower's strategies of the same names do to whole arrays, coordinate by coordinate, and so equal
to the bit; distances are sums over tiles in float64, where Flower's are float32.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.tensors import Tensors
from umbel_server.aggregation.updates import Pieces

TILES = 64_000_000
"""Bytes for tiles of all updates together, with the copies of them that a median makes."""

_COPIES = 5


def median(updates: Sequence[Pieces], base: Tensors) -> Tensors:
    """The coordinate-wise median of weights (Yin et al., arXiv 1803.01498), in the dtype of `base`."""
    return _by_tiles(updates, base, lambda tile: np.median(tile, axis=0))


def trimmed_mean(updates: Sequence[Pieces], base: Tensors, beta: float) -> Tensors:
    """The coordinate-wise mean without the `beta` smallest and largest shares (Yin et al., arXiv 1803.01498)."""
    cut = int(beta * len(updates))
    kept = slice(cut, len(updates) - cut)
    return _by_tiles(
        updates, base, lambda tile: np.mean(np.partition(tile, (kept.start, kept.stop - 1), axis=0)[kept], axis=0)
    )


def weighted_mean(updates: Sequence[Pieces], base: Tensors, weights: Sequence[float]) -> Tensors:
    """The mean of weights, float32 sums in the order given, as Flower's of a few selected updates."""
    total = sum(weights)
    factors = [weight / total for weight in weights]

    def mean(tile: NDArray[Any]) -> Any:
        aggregate = tile[0] * factors[0]
        for row, factor in zip(tile[1:], factors[1:], strict=True):
            aggregate += row * factor
        return aggregate

    return _by_tiles(updates, base, mean)


def mean_around_median(updates: Sequence[Pieces], base: Tensors, closest: int) -> Tensors:
    """At each coordinate the mean of the `closest` values to the median (El Mhamdi et al., arXiv 1802.07927)."""

    def mean(tile: NDArray[Any]) -> NDArray[Any]:
        distances = np.abs(tile - np.median(tile, axis=0))
        nearest = np.argpartition(distances, closest - 1, axis=0)[:closest]
        return np.asarray(np.mean(np.take_along_axis(tile, nearest, axis=0), axis=0))

    return _by_tiles(updates, base, mean)


def select(updates: Sequence[Pieces], base: Tensors, malicious: int, count: int) -> list[int]:
    """The `count` updates with the smallest sum of squared distances to their n-f-2 neighbours, best first.

    Krum and Multi-Krum (Blanchard et al., NeurIPS 2017, arXiv 1703.02757) with f = `malicious`, with the neighbours that
    Flower counts. Where Flower's float32 distances cannot tell two updates apart it may choose another of them.
    """
    squared = distances(updates, base)
    neighbours = max(1, len(updates) - malicious - 2)
    scores = [float(np.sum(row[np.argsort(row)[1 : neighbours + 1]])) for row in squared]
    return [int(index) for index in np.argsort(scores)[:count]]


def distances(updates: Sequence[Pieces], base: Tensors) -> NDArray[np.float64]:
    """Squared Euclidean distances, float64 of shape (n, n), 0 on the diagonal and never negative."""
    products = np.zeros((len(updates), len(updates)))
    for _, _, piece, tile in _tiles(updates, base):
        # Distances do not change when the base is taken off, and what is squared is small then.
        moved = np.subtract(tile, piece, dtype=np.float64)
        products += moved @ moved.T
    norms = np.diag(products)
    squared: NDArray[np.float64] = np.maximum(norms[:, None] + norms[None, :] - 2 * products, 0.0)
    np.fill_diagonal(squared, 0.0)
    return squared


def _by_tiles(updates: Sequence[Pieces], base: Tensors, step: Callable[[NDArray[Any]], Any]) -> Tensors:
    result = {name: np.empty(weight.size, weight.dtype) for name, weight in base.items()}
    for name, part, _, tile in _tiles(updates, base):
        result[name][part] = step(tile)
    return {name: flat.reshape(base[name].shape) for name, flat in result.items()}


def _tiles(updates: Sequence[Pieces], base: Tensors) -> Iterator[tuple[str, slice, NDArray[Any], NDArray[Any]]]:
    """Tensor, part of it, the base's piece, and the updates' pieces as rows."""
    for name, weight in base.items():
        flat = weight.reshape(-1)
        if not flat.size:
            continue
        most = max(2, TILES // (_COPIES * len(updates) * max(flat.itemsize, 8)))
        # Even cuts: NumPy sums a column that is alone in another order.
        cuts = [int(cut) for cut in np.linspace(0, flat.size, math.ceil(flat.size / most) + 1)]
        for start, stop in pairwise(cuts):
            piece = flat[start:stop]
            tile = np.empty((len(updates), piece.size), flat.dtype)
            for row, update in zip(tile, updates, strict=True):
                row[:] = update.weights(name, start, stop, piece)
            yield name, slice(start, stop), piece, tile
