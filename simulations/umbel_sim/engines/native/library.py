"""`net.c` as Python calls it: it is compiled when Umbel is installed where there is a C compiler."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.tensors import Tensors
from umbel_sim.engines.native.layers import Chain, Unsupported

LIBRARY = Path(__file__).with_name("libnet.so")

WIDEST = 16
"""Floats in a vector, at most."""

_SIZE, _POINTER = ctypes.c_int64, ctypes.c_void_p


class _Course(ctypes.Structure):
    """As `Course` of net.c."""

    _fields_ = [
        ("base", _POINTER),
        ("delta", _POINTER),
        ("x", _POINTER),
        ("y", _POINTER),
        ("order", _POINTER),
        ("count", _SIZE),
        ("epochs", _SIZE),
        ("most_steps", _SIZE),
        ("rate", ctypes.c_float),
        ("mu", ctypes.c_float),
        ("sums", _POINTER),
    ]


def _loaded() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:  # not compiled, or for another machine
        return None
    library.umbel_net_new.argtypes = [_POINTER, _SIZE, _SIZE, _SIZE]
    library.umbel_net_new.restype = _POINTER
    library.umbel_net_train.argtypes = [_POINTER, _POINTER]
    library.umbel_net_train.restype = None
    library.umbel_net_free.argtypes = [_POINTER]
    library.umbel_net_free.restype = None
    return library


compiled = _loaded()
"""`net.c`, or None where it was not compiled."""


class Net:
    """A chain's weights, values and gradients for batches of up to `batch` examples; for one thread at a time."""

    def __init__(self, chain: Chain, batch: int, widest: int) -> None:
        if compiled is None:
            raise Unsupported(
                "the native engine was not compiled when Umbel was installed: install a C compiler, then Umbel again"
            )
        self._names = [name for layer in chain.layers if layer.kernel for name in (layer.kernel, layer.bias)]
        numbers = np.array([layer.numbers for layer in chain.layers], np.int64)
        self._net: Any = None
        self._net = compiled.umbel_net_new(numbers.ctypes.data, len(chain.layers), batch, widest)
        if not self._net:
            raise Unsupported(
                f"there is no memory for the native engine's nets with batches of {batch}; lower --workers"
            )

    def train(
        self,
        base: Tensors,
        delta: Tensors,
        x: NDArray[np.float32],
        y: NDArray[np.int32],
        order: NDArray[np.int64],
        max_steps: int,
        learning_rate: float,
        proximal_mu: float,
    ) -> tuple[float, float, float, float]:
        """Write to `delta` what training changes; returns the sums of loss, examples, right answers and the delta's squares.

        `x` is float32[examples, ...] and `y` int32[examples]; `order` int64[epochs, examples] are their rows; all contiguous, as
        `base` and `delta` are (float32). No more than `max_steps` batches, 0 for all.
        """
        assert compiled is not None
        sums = np.zeros(4)
        course = _Course(
            _addresses(base, self._names),
            _addresses(delta, self._names),
            x.ctypes.data,
            y.ctypes.data,
            order.ctypes.data,
            order.shape[1],
            order.shape[0],
            max_steps,
            learning_rate,
            proximal_mu,
            sums.ctypes.data,
        )
        compiled.umbel_net_train(self._net, ctypes.byref(course))
        loss, examples, right, squares = sums.tolist()
        return loss, examples, right, squares

    def __del__(self) -> None:
        if compiled is not None and self._net:
            compiled.umbel_net_free(self._net)


def _addresses(tensors: Tensors, names: Sequence[str]) -> Any:
    return ctypes.cast(
        (_POINTER * len(names))(*(tensors[name].ctypes.data if name else None for name in names)), _POINTER
    )
