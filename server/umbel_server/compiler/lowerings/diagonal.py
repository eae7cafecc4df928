"""Diagonals and bands of matrices."""

from typing import Any

import numpy as np
import tensorflow as tf

from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.lowerings import lowers


@lowers("MatrixBandPart")
def matrix_band_part(_op: Any, inputs: list[Any]) -> list[Any]:
    """MatrixBandPart(x, lower, upper) = x where -lower <= column - row <= upper, else 0; a negative bound is no bound."""
    x = inputs[0]
    lower, upper = (_number(value) for value in inputs[1:])
    rows, columns = (int(n) for n in x.shape[-2:])
    apart = np.arange(columns)[np.newaxis, :] - np.arange(rows)[:, np.newaxis]
    kept = ((apart >= -lower) | (lower < 0)) & ((apart <= upper) | (upper < 0))
    return [tf.where(kept, x, tf.zeros_like(x))]


@lowers("MatrixDiagPartV3")
@lowers("MatrixDiagPart")
def matrix_diag_part(_op: Any, inputs: list[Any]) -> list[Any]:
    """One diagonal of a matrix = the sums of its rows, with zeros outside the diagonal."""
    x, shift = inputs[0], _shift(inputs)
    rows, columns = (int(n) for n in x.shape[-2:])
    on = np.eye(rows, columns, shift, dtype=bool)
    picked = tf.reduce_sum(tf.where(on, x, tf.zeros_like(x)), axis=-1)
    length = min(rows + min(shift, 0), columns - max(shift, 0))
    return [picked[..., max(0, -shift) : max(0, -shift) + length]]


@lowers("MatrixDiagV3")
@lowers("MatrixDiag")
def matrix_diag(op: Any, inputs: list[Any]) -> list[Any]:
    """A matrix with one diagonal = the diagonal as a column, repeated for each column, times a matrix of ones and zeros."""
    diagonal, shift = inputs[0], _shift(inputs)
    rows, columns = (int(n) for n in op.outputs[0].shape[-2:])
    if len(inputs) > 4 and _number(inputs[4]) != 0:
        raise CompileError("has a padding value other than 0; set it with keras.ops.where")
    margins = [[0, 0]] * (len(diagonal.shape) - 1) + [[max(0, -shift), rows - max(0, -shift) - int(diagonal.shape[-1])]]
    column = tf.pad(diagonal, margins)[..., tf.newaxis]
    return [column * tf.constant(np.eye(rows, columns, shift), diagonal.dtype)]


def _shift(inputs: list[Any]) -> int:
    if len(inputs) == 1:
        return 0
    shifts = np.reshape(tf.get_static_value(inputs[1]), -1)
    if len(set(shifts.tolist())) != 1:
        raise CompileError("takes several diagonals at once; take them one by one")
    return int(shifts[0])


def _number(value: Any) -> int:
    known = tf.get_static_value(value)
    if known is None:
        raise CompileError("works on a size that is not known when compiling; give it as a number")
    return int(known)
