"""The lowering table: replacements by built-in ops for TensorFlow ops that LiteRT cannot run, or runs slowly.

Each file holds one family of ops.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

Lowering = Callable[[Any, list[Any]], list[Any]]
"""A function of an op in the traced graph and its inputs in the new graph; it returns the outputs, made of built-in ops."""

TABLE: dict[str, Lowering] = {}
_FAMILIES = (
    "activation",
    "broadcast",
    "conv",
    "depthwise",
    "diagonal",
    "einsum",
    "elementwise",
    "gather",
    "inverse",
    "matmul",
    "pool",
    "resize",
    "shape",
    "sums",
)


def lowers(op_type: str) -> Callable[[Lowering], Lowering]:
    """Register the decorated function as the lowering of a TensorFlow op."""

    def register(lowering: Lowering) -> Lowering:
        TABLE[op_type] = lowering
        return lowering

    return register


def load_table() -> dict[str, Lowering]:
    """The whole table; imports TensorFlow."""
    for family in _FAMILIES:
        import_module(f"{__name__}.{family}")
    return TABLE
