"""Gradients of activations, elementwise."""

from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import lowers


@lowers("ReluGrad")
def relu_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """ReluGrad(dy, y) = dy where y > 0, else 0."""
    dy, y = inputs
    return [dy if only_relu_follows(op.inputs[0].op) else dy * above_zero(y)]


def only_relu_follows(pool: Any) -> bool:
    """Whether the result of a MaxPoolGrad is used only by the gradient of the relu whose output was pooled.

    Then MaxPoolGrad can apply the relu's gradient itself: it passes dy only to the window's largest value, so it is enough
    to make dy zero where that value is zero.
    """
    users = pool.outputs[0].consumers()
    return pool.type == "MaxPoolGrad" and all(
        user.type == "ReluGrad" and user.inputs[1] is pool.inputs[0] for user in users
    )


@lowers("Relu6Grad")
def relu6_grad(_op: Any, inputs: list[Any]) -> list[Any]:
    """Relu6Grad(dy, y) = dy where 0 < y < 6, else 0."""
    dy, y = inputs
    return [dy * above_zero(y * (6.0 - y))]


def above_zero(y: Any) -> Any:
    """1 where y > 0, and 0 where y = 0, for an output y of a relu.

    It is a product and a minimum, because XNNPACK fuses these and does not fuse a select.
    """
    return tf.minimum(y * 1e38, 1.0)


@lowers("LeakyReluGrad")
def leaky_relu_grad(op: Any, inputs: list[Any]) -> list[Any]:
    """LeakyReluGrad(dy, x) = dy where x > 0, else alpha * dy."""
    dy, x = inputs
    return [tf.where(x > 0.0, dy, dy * op.get_attr("alpha"))]


@lowers("EluGrad")
def elu_grad(_op: Any, inputs: list[Any]) -> list[Any]:
    """EluGrad(dy, y) = dy where y >= 0, else dy * (y + 1)."""
    dy, y = inputs
    return [tf.where(y >= 0.0, dy, dy * (y + 1.0))]


@lowers("TanhGrad")
def tanh_grad(_op: Any, inputs: list[Any]) -> list[Any]:
    """TanhGrad(y, dy) = dy * (1 - y * y)."""
    y, dy = inputs
    return [dy * (1.0 - y * y)]


@lowers("SigmoidGrad")
def sigmoid_grad(_op: Any, inputs: list[Any]) -> list[Any]:
    """SigmoidGrad(y, dy) = dy * y * (1 - y)."""
    y, dy = inputs
    return [dy * y * (1.0 - y)]


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.7580993408473766


@lowers("Selu")
def selu(_op: Any, inputs: list[Any]) -> list[Any]:
    """selu(x) = scale * x where x > 0, else scale * alpha * (exp(x) - 1) (arXiv 1706.02515)."""
    (x,) = inputs
    return [tf.where(x > 0.0, _SELU_SCALE * x, _SELU_ALPHA * tf.nn.elu(tf.minimum(x, 0.0)))]


@lowers("SeluGrad")
def selu_grad(_op: Any, inputs: list[Any]) -> list[Any]:
    """SeluGrad(dy, y) = dy * scale where y >= 0, else dy * (y + scale * alpha)."""
    dy, y = inputs
    return [tf.where(y >= 0.0, dy * _SELU_SCALE, dy * (y + _SELU_ALPHA))]
