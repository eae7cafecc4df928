"""Binary ops with a BroadcastTo as an operand, such as the gradient of a sum: without a repeated copy in memory."""

from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import lowers
from umbel_server.compiler.lowerings.matmul import scaled


@lowers("AddV2")
def add(_op: Any, inputs: list[Any]) -> list[Any]:
    """AddV2(a, BroadcastTo(b)) = a + b when a has the result's shape."""
    a, b = _narrow(inputs)
    return [a + b]


@lowers("Sub")
def sub(_op: Any, inputs: list[Any]) -> list[Any]:
    """Sub(a, BroadcastTo(b)) = a - b when a has the result's shape."""
    a, b = _narrow(inputs)
    return [a - b]


@lowers("Mul")
def mul(op: Any, inputs: list[Any]) -> list[Any]:
    """Mul(a, BroadcastTo(b)) = a b when a has the result's shape; s BroadcastTo(b) = BroadcastTo(s b) for a scalar s."""
    a, b = _narrow(inputs)
    for scalar, other in ((a, b), (b, a)):
        if scalar.shape.rank == 0 and other.op.type == "BroadcastTo":
            return [tf.broadcast_to(other.op.inputs[0] * scalar, other.op.inputs[1])]
    product = scaled(op, [a, b])
    return [a * b if product is None else product]


def _narrow(inputs: list[Any]) -> list[Any]:
    values = [tf.convert_to_tensor(value) for value in inputs]
    for i, value in enumerate(values):
        other = values[1 - i]
        if value.op.type == "BroadcastTo" and value.shape.is_fully_defined() and value.shape == other.shape:
            values[i] = value.op.inputs[0]
            break
    return values
