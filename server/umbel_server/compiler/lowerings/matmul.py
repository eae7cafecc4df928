"""Matrix products in the forms that XNNPACK multiplies fast; many small products become one."""

from functools import reduce
from typing import Any

import tensorflow as tf

from umbel_server.compiler.lowerings import lowers
from umbel_server.compiler.lowerings.kept import remembered

_CUT_OFF = frozenset("ClipByValue Erf Erfc Maximum Minimum Relu Relu6 Selu Softplus".split())
"""Ops that are, or begin with, an activation that the converter fuses into a fully connected layer."""
_BETWEEN = frozenset("EnsureShape ExpandDims Identity IdentityN Reshape Squeeze StopGradient".split())


@lowers("MatMul")
def matmul(op: Any, inputs: list[Any]) -> list[Any]:
    """MatMul(a, b) as a batch of one product where the converter's fully connected layer would be slow or wrong.

    The converter makes a fully connected layer of a MatMul. With a transposed b, XNNPACK runs that layer only when b is
    constant. A relu after the MatMul is fused into the layer, and is lost when b is a variable. Products of the slices of
    one tensor with one matrix become a single product.
    """
    a, b = inputs
    turned = {"transpose_a": op.get_attr("transpose_a"), "transpose_b": op.get_attr("transpose_b")}
    if tf.get_static_value(b) is not None:
        return [tf.matmul(a, b, **turned)]
    static = a.shape.is_fully_defined() and b.shape.is_fully_defined() and not turned["transpose_a"]
    if static and not turned["transpose_b"] and a.op.type == "Unpack" and a.op.get_attr("axis") == 0:
        return [_of_all(a.op, b)[a.value_index]]
    if static and turned["transpose_b"] and _is_larger(b, a):
        # The transpose has an extra axis: with a plain one the converter would make a fully connected layer with weights `a`.
        columns = tf.reshape(tf.transpose(tf.expand_dims(a, 1), [2, 1, 0]), [int(a.shape[1]), int(a.shape[0])])
        product = tf.transpose(tf.matmul(b, columns))
    elif (static and turned["transpose_b"]) or is_cut_off(op):
        product = tf.squeeze(tf.matmul(tf.expand_dims(a, 0), tf.expand_dims(b, 0), **turned), 0)
    else:
        product = tf.matmul(a, b, **turned)
    if static and turned["transpose_b"]:
        remembered("factors")[product.ref()] = (a, b)
    return [product]


def _is_larger(b: Any, a: Any) -> bool:
    """Whether b has more elements than a and a b^T together; XNNPACK packs the second operand again for every product."""
    (rows, inner), outer = (int(n) for n in a.shape), int(b.shape[0])
    return outer * inner > rows * (inner + outer)


def scaled(op: Any, inputs: list[Any]) -> Any:
    """Mul(s, a b) = (s a) b or a (s b) for a scalar s, scaling the smaller factor; None for other inputs.

    A gradient times the learning rate is an example.
    """
    for i in (0, 1):
        scalar, product, used = inputs[i], inputs[1 - i], len(op.inputs[1 - i].consumers())
        if scalar.dtype.is_floating and scalar.shape.rank == 0 and used == 1:
            return _scaled(product, scalar)
    return None


def _scaled(value: Any, scalar: Any) -> Any:
    """`value` times `scalar`, by scaling a factor of `value` that is smaller than it; None when there is no such factor."""
    op = value.op
    if op.type in ("Reshape", "Squeeze", "Transpose"):
        first = _scaled(op.inputs[0], scalar)
        return None if first is None else _again(op, [first, *list(op.inputs)[1:]])
    if op.type not in ("BatchMatMulV2", "MatMul"):
        return None
    sizes = [x.shape.num_elements() for x in op.inputs]
    if None in sizes or min(sizes) >= (value.shape.num_elements() or 0):
        return None
    small = sizes.index(min(sizes))
    return _again(op, [x * scalar if i == small else x for i, x in enumerate(op.inputs)])


def _again(op: Any, inputs: list[Any]) -> Any:
    graph, kinds = tf.compat.v1.get_default_graph(), [tensor.dtype for tensor in op.outputs]
    return graph.create_op(op.type, inputs, kinds, attrs=dict(op.node_def.attr), op_def=op.op_def).outputs[0]


def is_cut_off(op: Any) -> bool:
    """Whether the op's result goes into an op of _CUT_OFF, directly or through ops that only change its shape."""
    users = [user for output in op.outputs for user in output.consumers()]
    return any(user.type in _CUT_OFF or (user.type in _BETWEEN and is_cut_off(user)) for user in users)


@lowers("Pack")
def pack(op: Any, inputs: list[Any]) -> list[Any]:
    """Pack(a[t] b^T, ...) = Pack(a) b^T when all products have the same b; other packs do not change."""
    axis = op.get_attr("axis")
    factors = [pair for value in inputs if (pair := remembered("factors").get(tf.convert_to_tensor(value).ref()))]
    if axis != 0 or not 2 <= len(inputs) == len(factors) or len({b.ref() for _, b in factors}) > 1:
        return [tf.stack(inputs, axis)]
    b = factors[0][1]
    rows = tf.concat([a for a, _ in factors], axis=0)
    product = tf.matmul(tf.expand_dims(rows, 0), tf.expand_dims(b, 0), transpose_b=True)
    return [tf.reshape(product, [len(inputs), -1, int(b.shape[0])])]


@lowers("AddN")
def add_n(_op: Any, inputs: list[Any]) -> list[Any]:
    """AddN: a^T b + c^T d + ... = [a; c; ...]^T [b; d; ...]; other terms are added in pairs, which is faster in XNNPACK."""
    products: dict[Any, list[Any]] = {}
    terms = []
    for value in inputs:
        if value.op.type == "MatMul" and value.op.get_attr("transpose_a") and not value.op.get_attr("transpose_b"):
            products.setdefault(tuple(value.shape), []).append(value)
        else:
            terms.append(value)
    for group in products.values():
        a, b = (tf.concat([value.op.inputs[i] for value in group], axis=0) for i in (0, 1))
        terms.append(group[0] if len(group) == 1 else tf.matmul(a, b, transpose_a=True))
    return [added(terms)]


def added(terms: list[Any]) -> Any:
    """The terms added one after the other."""
    return reduce(lambda total, term: total + term, terms)


def by_rows(rows: Any, matrix: Any) -> Any:
    """`rows` times `matrix`, as a batch of a few products, which XNNPACK computes in parallel."""
    count, inner = (int(n) for n in rows.shape)
    parts = parts_of(count)
    product = tf.matmul(tf.reshape(rows, [parts, count // parts, inner]), tf.expand_dims(matrix, 0))
    return tf.reshape(product, [count, int(matrix.shape[1])])


def rows_by_rows(a: Any, b: Any) -> Any:
    """a^T b of two matrices with many rows, as the sum of a few products; the narrower matrix is transposed."""
    count, wide, tall = int(a.shape[0]), int(a.shape[1]), int(b.shape[1])
    if wide > tall:
        return tf.transpose(rows_by_rows(b, a))
    parts = parts_of(count)
    left = tf.transpose(tf.reshape(a, [parts, count // parts, wide]), [0, 2, 1])
    return tf.reduce_sum(tf.matmul(left, tf.reshape(b, [parts, count // parts, tall])), 0)


def parts_of(count: int) -> int:
    """The number of equal parts, 1 to 7, into which to divide `count` rows."""
    return next((n for n in (4, 2, 5, 3, 7) if count % n == 0), 1)


def _of_all(unpacked: Any, b: Any) -> list[Any]:
    made = remembered("whole")
    known = (unpacked.name, b.ref())
    if known not in made:
        steps, rows, inner = (int(n) for n in unpacked.inputs[0].shape)
        product = tf.matmul(tf.reshape(unpacked.inputs[0], [steps * rows, inner]), b)
        made[known] = tf.unstack(tf.reshape(product, [steps, rows, int(b.shape[1])]))
    found: list[Any] = made[known]
    return found
