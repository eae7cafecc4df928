"""keras.ops in layers of one's own, and layers that prepare inputs: ten steps in the plan and in Keras, by family."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.contract.server.compiler.tasks import head, task_of
from tests.sampling import sample
from umbel_server.compiler import compile_task

Op = Callable[[Any], Any]
SQUARES: Op = lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1)))  # noqa: E731
FAMILIES: dict[str, list[Op]] = {
    "inverse functions": [
        lambda x: ops.arcsin(ops.tanh(x) * 0.9) + ops.arccos(ops.tanh(x) * 0.5) + ops.arctan(5 * x),
        lambda x: ops.arctan2(x, ops.flip(x, 1)),
        lambda x: ops.arcsinh(x) + ops.arccosh(x * x + 2) + ops.arctanh(ops.tanh(x) * 0.5),
        lambda x: ops.expm1(x) + ops.log1p(x * x) + ops.log2(x * x + 1) + ops.exp2(x),
    ],
    "order and place": [
        lambda x: ops.take_along_axis(x, ops.argsort(x, axis=1), axis=1),
        lambda x: ops.sort(x, axis=1),
        lambda x: x * ops.cast(ops.expand_dims(ops.argmin(x, axis=-1), -1), "float32"),
        lambda x: ops.scatter_update(x, np.array([[0, 1], [1, 2]], "int32"), ops.ones((2, 4))),
        lambda x: x * ops.cast(ops.digitize(x, np.array([0.0, 0.2])), "float32"),
    ],
    "running products": [lambda x: ops.cumprod(x + 1, axis=1), lambda x: ops.prod(x + 1, axis=1)],
    "margins": [
        lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1)), mode="reflect"),
        lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1)), mode="symmetric"),
    ],
    "diagonals and bands": [
        lambda x: ops.diagonal(SQUARES(x), offset=1, axis1=1, axis2=2),
        lambda x: ops.tril(SQUARES(x)) + ops.triu(SQUARES(x), 1),
        lambda x: ops.vectorized_map(ops.diag, x[:, 0]),
    ],
    "constants of whole numbers": [
        lambda x: x + ops.meshgrid(ops.arange(4, dtype="float32"), ops.arange(6, dtype="float32"))[0],
        ops.sparsemax,
    ],
    "loops and branches": [
        lambda x: ops.fori_loop(0, 3, lambda i, y: ops.tanh(y) + x * ops.cast(i, "float32"), x),
        lambda x: ops.scan(lambda c, r: (c + r, c * r), x[:, 0] * 0, ops.transpose(x, (1, 0, 2)), reverse=True)[0],
        lambda x: ops.switch(ops.cast(ops.sum(x * 0) > -1, "int32"), [lambda y: y * 2, ops.sin], x),
    ],
    "a bicubic image": [lambda x: ops.image.resize(x[..., None], (8, 3), interpolation="bicubic")],
    "not finite": [
        lambda x: ops.where(ops.isinf(ops.log(ops.relu(x))), x, 2 * x),
        lambda x: x * ops.cast(ops.isfinite(ops.log(ops.relu(x))), "float32"),
    ],
}


@pytest.mark.parametrize("name", sample(FAMILIES, "inverse functions"))
def test_ops_and_their_gradients(name: str, tmp_path: Path) -> None:
    def model() -> Any:
        x = keras.Input((6, 4))
        hidden = layers.Dense(4, activation="tanh")(x)
        ends = [layers.Flatten()(layers.Lambda(op)(hidden)) for op in FAMILIES[name]]
        return keras.Model(x, layers.Dense(3, activation="softmax")(layers.Concatenate()([*ends, ends[0]])))

    compile_task(task_of(list, (6, 4), model=model), tmp_path / "case.plan")


@pytest.mark.long
def test_layers_that_prepare_numbers(tmp_path: Path) -> None:
    def stack() -> list[Any]:
        return [layers.Discretization([0.2, 0.5, 0.7]), layers.Embedding(4, 2), *head()]

    compile_task(task_of(stack, (4,)), tmp_path / "a.plan")
    encoded = [layers.CategoryEncoding(5, output_mode=mode) for mode in ("multi_hot", "count")]
    for encoding in encoded:
        task = task_of(lambda layer=encoding: [layer, *head()], (4,), "int32")  # type: ignore[misc]
        compile_task(task, tmp_path / "b.plan")


@pytest.mark.long
def test_images_are_changed_as_in_keras(tmp_path: Path) -> None:
    def stack() -> list[Any]:
        changes = [layers.RandomFlip(), layers.RandomErasing(), layers.RandomGaussianBlur(value_range=(0, 1))]
        return [*changes, layers.Conv2D(3, 2), *head()]

    compile_task(task_of(stack, (6, 6, 3)), tmp_path / "case.plan")
