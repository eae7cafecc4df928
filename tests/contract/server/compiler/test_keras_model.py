"""What is read from a task's Keras model before it is traced, and what is refused because a plan cannot carry it."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from umbel import Task, TensorSpec
from umbel_server.compiler import compile_task
from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.keras_metrics import keras_metrics
from umbel_server.compiler.keras_model import keras_parts, value_counts


def classifier(loss: Any, targets: TensorSpec | None = None) -> Task:
    def model() -> Any:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])

    return Task("trial", model, loss, TensorSpec((4,)), targets or TensorSpec((), "int32"), batch_size=2)


@pytest.mark.parametrize(
    "loss", ["sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy], ids=["name", "class"]
)
def test_labels_are_counted_by_the_outputs_of_the_model(loss: Any) -> None:
    assert value_counts(keras_parts(classifier(loss), 0)) == {"y": 3}


def test_a_target_that_is_no_label_is_not_counted() -> None:
    assert value_counts(keras_parts(classifier("mse", TensorSpec((3,))), 0)) == {}
    ignoring = classifier(lambda: keras.losses.SparseCategoricalCrossentropy(ignore_class=-1))
    assert value_counts(keras_parts(ignoring, 0)) == {}


def test_ids_are_counted_by_the_embedding_that_looks_them_up() -> None:
    def model() -> Any:
        words, number = keras.Input((5,), dtype="int32", name="words"), keras.Input((1,), name="number")
        looked_up = keras.layers.Flatten()(keras.layers.Embedding(7, 2)(words))
        both = keras.layers.Concatenate()([looked_up, number])
        return keras.Model({"words": words, "number": number}, keras.layers.Dense(1)(both))

    inputs = {"words": TensorSpec((5,), "int32"), "number": TensorSpec((1,))}
    assert value_counts(keras_parts(Task("trial", model, "mse", inputs, TensorSpec((1,))), 0)) == {"words": 7}

    def alone() -> Any:
        layers = [keras.Input((5,), dtype="int32"), keras.layers.Embedding(9, 2), keras.layers.Flatten()]
        return keras.Sequential([*layers, keras.layers.Dense(1)])

    task = Task("trial", alone, "mse", TensorSpec((5,), "int32"), TensorSpec((1,)))
    assert value_counts(keras_parts(task, 0)) == {"x": 9}


def far(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)


GIVEN: dict[str, tuple[Any, Any, Any]] = {
    "name": ("mae", "mae", "sgd"),
    "instance": (keras.losses.MeanAbsoluteError(), keras.metrics.MeanAbsoluteError(), keras.optimizers.SGD(0.5)),
    "class": (keras.losses.MeanAbsoluteError, keras.metrics.MeanAbsoluteError, keras.optimizers.SGD),
    "function": (far, far, "sgd"),
    "maker": (
        lambda: keras.losses.MeanAbsoluteError(name="own"),
        lambda: keras.metrics.MeanAbsoluteError(name="own"),
        lambda: keras.optimizers.SGD(0.5),
    ),
}


@pytest.mark.parametrize("given", GIVEN)
def test_a_task_takes_what_keras_takes(given: str) -> None:
    def model() -> Any:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])

    loss, metric, optimizer = GIVEN[given]
    task = Task("trial", model, loss, (4,), (1,), metrics=metric, optimizer=optimizer, batch_size=2)
    parts = keras_parts(task, 0)
    assert parts.inputs == {"x": TensorSpec((4,))}
    assert isinstance(parts.optimizer, keras.optimizers.SGD)
    assert parts.optimizer is not optimizer
    own, _ = parts.losses["output"]
    assert own(np.float32([[1], [2]]), np.float32([[3], [2.5]])).numpy().ravel().tolist() == [2.0, 0.5]
    ((found,),) = keras_metrics(task, parts).values()
    assert found is not metric or found in ("mae", far)


@pytest.mark.parametrize(
    "method", ["train_step", "compute_loss", "compute_metrics", "test_step", "train_on_batch", "fit"]
)
def test_a_part_of_the_training_of_ones_own_is_refused_by_its_name(method: str) -> None:
    def own(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(keras.Model, method)(self, *args, **kwargs)

    kind = type("Own", (keras.Sequential,), {method: own, "__module__": __name__})

    def model() -> Any:
        return kind([keras.Input((4,)), keras.layers.Dense(1)])

    task = Task("trial", model, "mse", TensorSpec((4,)), TensorSpec((1,)), batch_size=2)
    with pytest.raises(CompileError, match=rf"\(Own\) has a {method} of its own, which a plan does not run"):
        keras_parts(task, 0)


def test_a_task_of_instances_is_compiled_and_equals_keras(tmp_path: Path) -> None:
    def model() -> Any:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])

    optimizer = keras.optimizers.SGD(0.5, momentum=0.9)
    metrics = [keras.metrics.MeanAbsoluteError(), far]
    task = Task("own", model, far, (4,), (1,), optimizer=optimizer, metrics=metrics, batch_size=2)  # type: ignore[arg-type]
    manifest = compile_task(task, tmp_path / "own.plan").manifest
    assert manifest.metric_names == ("loss", "mean_absolute_error", "far")
    assert manifest.loss == "custom"
    assert max(manifest.parity.values()) < 1e-4
    assert not optimizer.built
