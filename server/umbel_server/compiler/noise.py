"""Random numbers that LiteRT and TensorFlow compute alike, from a seed that the device gives for every step."""

from typing import Any

import tensorflow as tf

from umbel_server.compiler.errors import CompileError

# (prime, primitive root, exponent coprime to prime - 1): products of residues stay below 2^24, exact in float32.
_GENERATORS = ((4093.0, 2.0, 5), (4091.0, 2.0, 3), (4079.0, 11.0, 3))


class Noise:
    """Uniform and normal numbers by combined multiplicative congruential generators (Wichmann and Hill, AS 183, 1982).

    Element (row, column) of the n-th draw of a trace depends only on seed, n, row and column, so that a short batch gets
    the same numbers as a padded one. `seed` is an int32 scalar, a new random one for every step. `rows` is the size of the
    largest batch.
    """

    def __init__(self, seed: Any, rows: int) -> None:
        self._seed, self._rows = seed, rows
        self._draws: dict[int, int] = {}

    def uniform(self, shape: Any) -> Any:
        """Uniform float32 numbers in [0, 1) of `shape`. The first axis is the batch; it may be unknown when compiling.

        Raises CompileError when another axis is unknown.
        """
        first, *others = (_static(size) for size in shape) if len(shape) else (1,)
        if None in others:
            raise CompileError(
                "a random layer works on a shape that is not known when compiling; give every axis a size"
            )
        rows, columns = first or self._rows, 1
        for size in others:
            columns *= size or 1
        draw = self._next_draw()
        total: Any = 0.0
        for prime, root, power in _GENERATORS:
            seed = tf.cast(tf.math.floormod(self._seed, int(prime) - 1), tf.float32) + 1.0
            mixed = seed
            for _ in range(power - 1):
                mixed = _modulo(mixed * seed, prime)
            down = tf.constant(_powers(int(root), int(prime), draw * 7919 + 1, columns, rows), shape=[rows, 1])
            down = down if first else down[: tf.cast(shape[0], tf.int32)]
            across = tf.constant(_powers(int(root), int(prime), 0, 1, columns), shape=[1, columns])
            total += _modulo(_modulo(mixed * down, prime) * across, prime) * (1.0 / prime)
        return tf.reshape(
            tf.minimum(total - tf.floor(total), 1.0 - 2.0**-24), [first or -1, *others] if len(shape) else []
        )

    def normal(self, shape: Any) -> Any:
        """Standard normal float32 numbers of `shape` (Box and Muller, 1958)."""
        radius = tf.sqrt(-2.0 * tf.math.log(1.0 - self.uniform(shape)))
        return radius * tf.cos(6.283185307179586 * self.uniform(shape))

    def _next_draw(self) -> int:
        graph = id(tf.compat.v1.get_default_graph())
        self._draws[graph] = self._draws.get(graph, 0) + 1
        return self._draws[graph]


def _modulo(value: Any, prime: float) -> Any:
    return value - tf.floor(value * (1.0 / prime)) * prime


def _powers(root: int, prime: int, start: int, stride: int, count: int) -> list[float]:
    return [float(pow(root, start + i * stride, prime)) for i in range(count)]


def _static(size: Any) -> int | None:
    known = tf.get_static_value(size) if tf.is_tensor(size) else size
    return None if known is None else int(known)
