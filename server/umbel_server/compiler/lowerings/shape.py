"""Shapes, which are known when a plan is compiled."""

from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import lowers


@lowers("ShapeN")
def shape_n(op: Any, inputs: list[Any]) -> list[Any]:
    """ShapeN(x...) = the shape of each x: a constant when it is static."""
    return [
        tf.constant(x.shape.as_list(), output.dtype) if x.shape.is_fully_defined() else tf.shape(x, output.dtype)
        for x, output in zip(inputs, op.outputs, strict=True)
    ]
