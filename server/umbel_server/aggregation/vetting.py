"""Vetting: what an update must be before it is folded."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import TensorError, UmbelError
from umbel.tensors import WeightSpec, check

FEWEST_FOR_A_MEDIAN = 5
"""Updates that a round must have accepted before their median norm means something."""
_CHUNK = 32_768


class Vetting:
    """The updates of one round after another are vetted against `specs`.

    An update's L2 norm may be `max_norm` (0: any), and `norm_multiple` times (0: any) the median norm of those accepted
    before it in its round, once there are 5.
    """

    def __init__(self, specs: Sequence[WeightSpec], max_norm: float = 0.0, norm_multiple: float = 0.0) -> None:
        self._specs, self._max_norm, self._norm_multiple = tuple(specs), max_norm, norm_multiple
        self._shapes = {spec.name: spec.shape for spec in specs}
        self._norms: list[float] = []

    def clear(self) -> None:
        """Begin another round."""
        self._norms = []

    def vet(self, who: str, update: Mapping[str, NDArray[Any]], examples: int, reported: int = 0) -> dict[str, float]:
        """The largest magnitude of each tensor of an update that may be folded.

        `examples` is what the device claims to have trained on, `reported` what it last said it has (0: nothing). Raises
        UmbelError with what was expected and what came.
        """
        if not examples >= 1:
            raise UmbelError(f"an update of at least one example was expected of {who}, got {examples}")
        if reported and examples > reported:
            raise UmbelError(f"{who} says it has {reported} examples, its update claims {examples}")
        if any(update.keys() != self._shapes.keys() or update[n].shape != s for n, s in self._shapes.items()):
            check(dict(update), self._specs, f"the update of {who}")
        peaks, square = {}, 0.0
        for spec in self._specs:
            tensor = update[spec.name]
            if tensor.dtype.name not in (spec.dtype, "float64"):
                check(dict(update), self._specs, f"the update of {who}")
            peak, tensor_square = _measure(np.ravel(tensor))
            if not math.isfinite(peak):
                raise TensorError(f"the update of {who}: tensor {spec.name!r} holds NaN or infinity")
            peaks[spec.name], square = peak, square + tensor_square
        self._check_norm(who, math.sqrt(square))
        return peaks

    def _check_norm(self, who: str, norm: float) -> None:
        if self._max_norm and norm > self._max_norm:
            raise UmbelError(f"the update of {who} has norm {norm:.4g}, at most {self._max_norm:g} is allowed")
        if self._norm_multiple and len(self._norms) >= FEWEST_FOR_A_MEDIAN:
            median = statistics.median(self._norms)
            if norm > self._norm_multiple * median:
                raise UmbelError(
                    f"the update of {who} has norm {norm:.4g}, over {self._norm_multiple:g} times the round's median "
                    f"of {median:.4g}"
                )
        self._norms.append(norm)


def _measure(values: NDArray[Any]) -> tuple[float, float]:
    """The largest magnitude and the sum of squares in float64 of a flat array; the magnitude is NaN or infinite if a value is."""
    peak, square = 0.0, 0.0
    for first in range(0, len(values), _CHUNK):
        chunk = values[first : first + _CHUNK]
        highest, lowest = float(chunk.max()), float(chunk.min())
        if not (math.isfinite(highest) and math.isfinite(lowest)):
            return math.nan, math.nan
        peak = max(peak, highest, -lowest)
        with np.errstate(over="ignore"):
            part = float(np.dot(chunk, chunk))
        if not math.isfinite(part):  # the squares leave float32 before the values do
            wide = chunk.astype(np.float64)
            part = float(np.dot(wide, wide))
        square += part
    return peak, square
