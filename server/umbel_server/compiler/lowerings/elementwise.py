"""Elementwise functions and their gradients."""

from typing import Any

import numpy as np
import tensorflow as tf

from umbel_server.compiler.lowerings import lowers


@lowers("Rsqrt")
def rsqrt(_op: Any, inputs: list[Any]) -> list[Any]:
    """Rsqrt(x) = 1 / sqrt(x), bounded by 3e18: XNNPACK's kernel gives NaN at 0, where the true value is infinite."""
    return [tf.math.rsqrt(tf.maximum(inputs[0], 1e-37))]


@lowers("RsqrtGrad")
def rsqrt_grad(_op: Any, inputs: list[Any]) -> list[Any]:
    """RsqrtGrad(y, dy) = -dy * y^3 / 2."""
    y, dy = inputs
    return [dy * y * y * y * -0.5]


@lowers("SqrtGrad")
def sqrt_grad(_op: Any, inputs: list[Any]) -> list[Any]:
    """SqrtGrad(y, dy) = dy / (2 y); 0 where dy is 0, even if y is 0."""
    y, dy = inputs
    return [tf.where(tf.equal(dy, 0.0), tf.zeros_like(dy), dy * 0.5 / y)]


@lowers("Inv")
@lowers("Reciprocal")
def reciprocal(_op: Any, inputs: list[Any]) -> list[Any]:
    """Reciprocal(x) = 1 / x."""
    return [1.0 / inputs[0]]


@lowers("InvGrad")
@lowers("ReciprocalGrad")
def reciprocal_grad(_op: Any, inputs: list[Any]) -> list[Any]:
    """ReciprocalGrad(y, dy) = -dy * y^2."""
    y, dy = inputs
    return [-dy * y * y]


@lowers("Log1p")
def log1p(_op: Any, inputs: list[Any]) -> list[Any]:
    """log1p(x) = x log(u) / (u - 1) with u = 1 + x, and x where u is 1 (Kahan)."""
    return [log1p_of(inputs[0])]


def log1p_of(x: Any) -> Any:
    """log(1 + x), accurate also for small x."""
    u = 1.0 + x
    plain = tf.equal(u, 1.0)
    away = tf.where(plain, tf.ones_like(u) * 2.0, u)
    return tf.where(plain, x, x * tf.math.log(away) / (away - 1.0))


@lowers("Expm1")
def expm1(_op: Any, inputs: list[Any]) -> list[Any]:
    """expm1(x) = exp(x) - 1, by its series (to x^5) where |x| < 0.1."""
    x = inputs[0]
    series = x * (1.0 + x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120)))))
    return [tf.where(tf.abs(x) < 0.1, series, tf.exp(x) - 1.0)]


@lowers("Softplus")
def softplus(_op: Any, inputs: list[Any]) -> list[Any]:
    """softplus(x) = max(x, 0) + log1p(exp(-|x|))."""
    (x,) = inputs
    return [tf.maximum(x, 0.0) + log1p_of(tf.exp(-tf.abs(x)))]


@lowers("SoftplusGrad")
def softplus_grad(_op: Any, inputs: list[Any]) -> list[Any]:
    """SoftplusGrad(dy, x) = dy * sigmoid(x)."""
    dy, x = inputs
    return [dy * tf.sigmoid(x)]


@lowers("Softsign")
def softsign(_op: Any, inputs: list[Any]) -> list[Any]:
    """softsign(x) = x / (1 + |x|)."""
    (x,) = inputs
    return [x / (1.0 + tf.abs(x))]


@lowers("SoftsignGrad")
def softsign_grad(_op: Any, inputs: list[Any]) -> list[Any]:
    """SoftsignGrad(dy, x) = dy / (1 + |x|)^2."""
    dy, x = inputs
    return [dy / tf.square(1.0 + tf.abs(x))]


# Rational approximation of erf on [-4, 4], accurate to float32 (the coefficients of Eigen's and XLA's float32 erf).
_ERF_ABOVE = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_BELOW = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


@lowers("Erf")
def erf(_op: Any, inputs: list[Any]) -> list[Any]:
    """erf(x) = x P(x^2) / Q(x^2), x cut to [-4, 4]."""
    return [_erf(inputs[0])]


def _erf(x: Any) -> Any:
    x = tf.minimum(tf.maximum(x, -4.0), 4.0)
    square = x * x
    above, below = _polynomial(square, _ERF_ABOVE), _polynomial(square, _ERF_BELOW)
    return tf.minimum(tf.maximum(x * above / below, -1.0), 1.0)


@lowers("Erfc")
def erfc(_op: Any, inputs: list[Any]) -> list[Any]:
    """erfc(x) = 1 - erf(x)."""
    return [1.0 - _erf(inputs[0])]


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    value: Any = coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


@lowers("Sinh")
def sinh(_op: Any, inputs: list[Any]) -> list[Any]:
    """sinh(x) = (exp(x) - exp(-x)) / 2."""
    return [(tf.exp(inputs[0]) - tf.exp(-inputs[0])) * 0.5]


@lowers("Cosh")
def cosh(_op: Any, inputs: list[Any]) -> list[Any]:
    """cosh(x) = (exp(x) + exp(-x)) / 2."""
    return [(tf.exp(inputs[0]) + tf.exp(-inputs[0])) * 0.5]


@lowers("Tan")
def tan(_op: Any, inputs: list[Any]) -> list[Any]:
    """tan(x) = sin(x) / cos(x)."""
    return [tf.sin(inputs[0]) / tf.cos(inputs[0])]


@lowers("Xlogy")
def xlogy(_op: Any, inputs: list[Any]) -> list[Any]:
    """xlogy(x, y) = x log(y), 0 where x is 0."""
    x, y = inputs
    zero = tf.equal(x, 0.0)
    return [tf.where(zero, tf.zeros_like(x * y), x * tf.math.log(tf.where(zero, tf.ones_like(x * y), y)))]


@lowers("Xdivy")
def xdivy(_op: Any, inputs: list[Any]) -> list[Any]:
    """xdivy(x, y) = x / y, 0 where x is 0."""
    x, y = inputs
    zero = tf.equal(x, 0.0)
    return [tf.where(zero, tf.zeros_like(x * y), x / tf.where(zero, tf.ones_like(x * y), y))]


@lowers("MulNoNan")
def mul_no_nan(_op: Any, inputs: list[Any]) -> list[Any]:
    """MulNoNan(x, y) = x y; 0 where y is 0, even if x is not finite."""
    x, y = inputs
    zero = tf.equal(y, 0.0)
    return [tf.where(zero, tf.zeros_like(x * y), tf.where(zero, tf.zeros_like(x * y), x) * y)]


@lowers("DivNoNan")
def div_no_nan(_op: Any, inputs: list[Any]) -> list[Any]:
    """DivNoNan(x, y) = x / y, 0 where y is 0."""
    x, y = inputs
    zero = tf.equal(y, 0.0)
    quotient = x / tf.where(zero, tf.ones_like(y), y)
    return [tf.where(tf.logical_and(zero, tf.equal(quotient, quotient)), tf.zeros_like(quotient), quotient)]


@lowers("ClipByValue")
def clip_by_value(_op: Any, inputs: list[Any]) -> list[Any]:
    """ClipByValue(x, low, high) = min(max(x, low), high)."""
    x, low, high = inputs
    return [tf.minimum(tf.maximum(x, low), high)]


@lowers("L2Loss")
def l2_loss(_op: Any, inputs: list[Any]) -> list[Any]:
    """L2Loss(x) = half the sum of squares."""
    return [tf.reduce_sum(tf.square(inputs[0])) * 0.5]


@lowers("IsNan")
def is_nan(_op: Any, inputs: list[Any]) -> list[Any]:
    """IsNan(x): only NaN differs from itself."""
    return [tf.not_equal(inputs[0], inputs[0])]


_LARGEST = float(np.finfo(np.float32).max)


@lowers("IsInf")
def is_inf(_op: Any, inputs: list[Any]) -> list[Any]:
    """IsInf(x) = |x| is greater than the largest float32. The converter replaces a constant infinity by that number."""
    return [tf.greater(tf.abs(inputs[0]), _LARGEST)]


@lowers("IsFinite")
def is_finite(_op: Any, inputs: list[Any]) -> list[Any]:
    """IsFinite(x) = |x| is at most the largest float32; false for NaN."""
    return [tf.less_equal(tf.abs(inputs[0]), _LARGEST)]


@lowers("LogicalXor")
def logical_xor(_op: Any, inputs: list[Any]) -> list[Any]:
    """a xor b = a differs from b."""
    return [tf.not_equal(*inputs)]


@lowers("Rint")
def rint(_op: Any, inputs: list[Any]) -> list[Any]:
    """Rint(x) = Round(x): both round halves to even."""
    return [tf.round(inputs[0])]


@lowers("Bucketize")
def bucketize(op: Any, inputs: list[Any]) -> list[Any]:
    """Bucketize(x) = the number of boundaries that are at most x."""
    x = tf.cast(inputs[0], tf.float32)[..., tf.newaxis]
    boundaries = tf.constant(op.get_attr("boundaries"), tf.float32)
    return [tf.reduce_sum(tf.cast(x >= boundaries, tf.int32), axis=-1)]
