"""Einsum: sums over products of tensors with labelled axes."""

from string import ascii_letters
from typing import Any

import tensorflow as tf

from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.lowerings import lowers
from umbel_server.compiler.lowerings.matmul import is_cut_off


@lowers("Einsum")
def einsum(op: Any, inputs: list[Any]) -> list[Any]:
    """einsum of two operands = transpose each to [shared, free, summed], one batched matmul, transpose back."""
    equation = op.get_attr("equation").decode()
    operands, wanted = equation.replace(" ", "").split("->")
    names = operands.split(",")
    if "..." in equation:
        names, wanted = _spelled_out(names, wanted, [len(x.shape) for x in inputs])
    if any(len(set(name)) != len(name) for name in [*names, wanted]):
        raise CompileError(f"einsum {equation!r} has a repeated label; write every axis once")
    sizes = {
        label: size
        for name, x in zip(names, inputs, strict=True)
        for label, size in zip(name, x.shape.as_list(), strict=True)
    }
    reduced = [
        _reduce(x, name, wanted + "".join(names[:k] + names[k + 1 :]))
        for k, (x, name) in enumerate(zip(inputs, names, strict=True))
    ]
    if len(reduced) == 1:
        ((x, name),) = reduced
        return [tf.transpose(x, [name.index(label) for label in wanted])]
    (a, a_name), (b, b_name) = reduced
    shared = [label for label in a_name if label in b_name and label in wanted]
    summed = [label for label in a_name if label in b_name and label not in wanted]
    a_free = [label for label in a_name if label not in b_name]
    b_free = [label for label in b_name if label not in a_name]
    left = _arranged(a, a_name, [shared, a_free, summed], sizes)
    right = _arranged(b, b_name, [shared, summed, b_free], sizes)
    alone = len(left.shape) == 2 and is_cut_off(op)  # see lowerings/matmul.py
    product = tf.matmul(tf.expand_dims(left, 0), tf.expand_dims(right, 0)) if alone else tf.matmul(left, right)
    order = [*shared, *a_free, *b_free]
    product = tf.reshape(product, [-1 if sizes[label] is None else sizes[label] for label in order])
    return [tf.transpose(product, [order.index(label) for label in wanted])]


def _spelled_out(names: list[str], wanted: str, ranks: list[int]) -> tuple[list[str], str]:
    """The equation's labels with each ellipsis replaced by new labels; an operand with fewer such axes gets the last ones."""
    free = "".join(letter for letter in ascii_letters if letter not in "".join(names) + wanted)
    missing = [rank - len(name.replace("...", "")) for name, rank in zip(names, ranks, strict=True)]
    most = free[: max(n for name, n in zip(names, missing, strict=True) if "..." in name)]
    spelled = [name.replace("...", most[len(most) - n :]) for name, n in zip(names, missing, strict=True)]
    return spelled, wanted.replace("...", most)


def _reduce(x: Any, name: str, elsewhere: str) -> tuple[Any, str]:
    alone = [i for i, label in enumerate(name) if label not in elsewhere]
    if not alone:
        return x, name
    return tf.reduce_sum(x, axis=alone), "".join(label for label in name if label in elsewhere)


def _arranged(x: Any, name: str, groups: list[list[str]], sizes: dict[str, Any]) -> Any:
    """`x` with its axes in the order of `groups`; each group but the first is merged into one axis."""
    order = [name.index(label) for group in groups for label in group]
    if order != list(range(len(order))):
        x = tf.transpose(x, order)
    shape = [-1 if sizes[label] is None else sizes[label] for label in groups[0]]
    return tf.reshape(x, [*shape, *(_product([sizes[label] for label in group]) for group in groups[1:])])


def _product(sizes: list[Any]) -> int:
    total = 1
    for size in sizes:
        if size is None:
            return -1
        total *= size
    return total
