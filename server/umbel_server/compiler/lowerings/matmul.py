"""Products of matrices that are both variables."""

from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import lowers

_CUT_OFF = frozenset("ClipByValue Erf Erfc Maximum Minimum Relu Relu6 Selu Softplus".split())
"""Ops that are, or begin with, what the converter fuses into a fully connected layer."""
_BETWEEN = frozenset("EnsureShape ExpandDims Identity IdentityN Reshape Squeeze StopGradient".split())


@lowers("MatMul")
def matmul(op: Any, inputs: list[Any]) -> list[Any]:
    """MatMul(a, b) = a batch of one product, when b is a variable and the result is cut off, as relu does.

    The converter makes a fully connected layer of MatMul, fuses the relu that follows into it, and loses that relu when
    it finds that the layer's weights are no constant. A batched product it leaves alone.
    """
    a, b = inputs
    turned = {"transpose_a": op.get_attr("transpose_a"), "transpose_b": op.get_attr("transpose_b")}
    if tf.get_static_value(b) is not None or not is_cut_off(op):
        return [tf.matmul(a, b, **turned)]
    return [tf.squeeze(tf.matmul(a[tf.newaxis], b[tf.newaxis], **turned), 0)]


def is_cut_off(op: Any) -> bool:
    """Whether the op's result goes straight into one that cuts values off."""
    users = [user for output in op.outputs for user in output.consumers()]
    return any(user.type in _CUT_OFF or (user.type in _BETWEEN and is_cut_off(user)) for user in users)
