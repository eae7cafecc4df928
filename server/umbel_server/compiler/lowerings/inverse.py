"""Inverses of trigonometric and hyperbolic functions, elementwise."""

import math
from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import lowers
from umbel_server.compiler.lowerings.elementwise import log1p_of

_ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
"""Polynomial coefficients of Cephes's atanf, accurate to float32 on [-tan(pi/8), tan(pi/8)]."""


@lowers("Atan")
def atan(_op: Any, inputs: list[Any]) -> list[Any]:
    """atan(x) = sign(x) atan(|x|): a polynomial, after reducing a large |x| by an angle of pi/4 or pi/2 (Cephes)."""
    return [_atan(inputs[0])]


@lowers("Atan2")
def atan2(_op: Any, inputs: list[Any]) -> list[Any]:
    """atan2(y, x) = atan(y / x), plus pi with the sign of y where x < 0."""
    y, x = inputs
    far = tf.abs(y) > tf.abs(x)
    smaller, larger = tf.where(far, x, y), tf.where(far, y, x)
    nowhere = tf.equal(larger, 0.0)
    part = _atan(smaller / tf.where(nowhere, tf.ones_like(larger), larger))
    side = tf.where(y < 0.0, -tf.ones_like(part), tf.ones_like(part))
    near = part + tf.where(x < 0.0, side * math.pi, tf.zeros_like(part))
    return [tf.where(far, side * (math.pi / 2) - part, near)]


@lowers("Asin")
def asin(_op: Any, inputs: list[Any]) -> list[Any]:
    """asin(x) = 2 atan(x / (1 + sqrt(1 - x^2)))."""
    return [_asin(inputs[0])]


@lowers("Acos")
def acos(_op: Any, inputs: list[Any]) -> list[Any]:
    """acos(x) = pi / 2 - asin(x)."""
    return [math.pi / 2 - _asin(inputs[0])]


@lowers("Asinh")
def asinh(_op: Any, inputs: list[Any]) -> list[Any]:
    """asinh(x) = sign(x) log1p(|x| + x^2 / (1 + sqrt(x^2 + 1)))."""
    (x,) = inputs
    square = x * x
    far = log1p_of(tf.abs(x) + square / (1.0 + tf.sqrt(square + 1.0)))
    return [tf.where(x < 0.0, -far, far)]


@lowers("Acosh")
def acosh(_op: Any, inputs: list[Any]) -> list[Any]:
    """acosh(x) = log1p(t + sqrt(2 t + t^2)) with t = x - 1."""
    beyond = inputs[0] - 1.0
    return [log1p_of(beyond + tf.sqrt(beyond * (2.0 + beyond)))]


@lowers("Atanh")
def atanh(_op: Any, inputs: list[Any]) -> list[Any]:
    """atanh(x) = log1p(2 x / (1 - x)) / 2."""
    (x,) = inputs
    return [0.5 * log1p_of(2.0 * x / (1.0 - x))]


def _asin(x: Any) -> Any:
    return 2.0 * _atan(x / (1.0 + tf.sqrt((1.0 - x) * (1.0 + x))))


def _atan(x: Any) -> Any:
    far = tf.abs(x)
    beyond, past = far > 2.414213562373095, far > 0.4142135623730950
    whole = tf.where(beyond, tf.ones_like(far), far)
    turned = tf.where(beyond, -1.0 / tf.maximum(far, 1.0), tf.where(past, (whole - 1.0) / (whole + 1.0), far))
    start = tf.where(
        beyond, tf.ones_like(far) * (math.pi / 2), tf.where(past, tf.ones_like(far) * (math.pi / 4), 0.0 * whole)
    )
    square, value = turned * turned, _ATAN[0] * tf.ones_like(turned)
    for coefficient in _ATAN[1:]:
        value = value * square + coefficient
    angle = start + value * square * turned + turned
    return tf.where(x < 0.0, -angle, angle)
