"""Unroll the loops of keras.ops that have a known length: LiteRT lacks the tensor lists that a loop's gradient needs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import core

from umbel_server.compiler.replacing import replacing


@contextmanager
def unrolled_loops() -> Iterator[None]:
    """In this block `fori_loop`, `map` and `scan` of keras.ops are unrolled: they trace their step once for every index."""

    def fori_loop(lower: Any, upper: Any, body_fun: Callable[..., Any], init_val: Any) -> Any:
        bounds = [tf.get_static_value(tf.convert_to_tensor(bound)) for bound in (lower, upper)]
        if None in bounds:
            return looped(lower, upper, body_fun, init_val)
        value = init_val
        for i in range(int(bounds[0]), int(bounds[1])):
            value = body_fun(i, value)
        return value

    def map_(f: Callable[..., Any], xs: Any) -> Any:
        steps = _steps(xs)
        return _stacked([f(x) for x in steps]) if steps else mapped(f, xs)

    def scan(
        f: Callable[..., Any],
        init: Any,
        xs: Any = None,
        length: int | None = None,
        reverse: bool = False,
        unroll: Any = 1,
    ) -> Any:
        steps = [None] * int(length or 0) if xs is None else _steps(xs)
        if not steps:
            return scanned(f, init, xs, length, reverse, unroll)
        carry, made = keras.tree.map_structure(tf.convert_to_tensor, init), []
        for x in reversed(steps) if reverse else steps:
            carry, y = f(carry, x)
            made.append(y)
        return carry, _stacked(made[::-1] if reverse else made)

    looped, mapped, scanned = core.fori_loop, core.map, core.scan
    with replacing(core, fori_loop=fori_loop, map=map_, scan=scan):
        yield


def _steps(xs: Any) -> list[Any]:
    """The slices of `xs` along its first axis; an empty list when the length of that axis is unknown."""
    flat = [tf.convert_to_tensor(x) for x in keras.tree.flatten(xs)]
    if any(x.shape.rank is None or x.shape[0] is None for x in flat):
        return []
    slices = zip(*(tf.unstack(x) for x in flat), strict=True)
    return [keras.tree.pack_sequence_as(xs, list(each)) if keras.tree.is_nested(xs) else each[0] for each in slices]


def _stacked(made: list[Any]) -> Any:
    return keras.tree.map_structure(lambda *values: None if values[0] is None else tf.stack(values), *made)
