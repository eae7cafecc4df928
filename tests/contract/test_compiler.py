"""The compiler against Keras and LiteRT: exactness, padding, weight maps, refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umbel import Plan, Task, TensorSpec
from umbel.errors import TaskError, UmbelError
from umbel.examples import Batch
from umbel.keras_import import import_keras
from umbel.litert import Predictor, Trainable
from umbel.placement import place
from umbel.plan import INFER, INFER_INT8, TRAIN

import_keras()
import keras  # noqa: E402
from keras import layers  # noqa: E402

from umbel_server.compiler import CompileError, compile_task  # noqa: E402

Layers = Callable[[], list[Any]]


def task_of(stack: Layers, shape: tuple[int, ...] = (6, 6, 2), **options: Any) -> Task:
    wanted: dict[str, Any] = {
        "name": "case",
        "model": lambda: keras.Sequential([keras.Input(shape), *stack()]),
        "loss": "sparse_categorical_crossentropy",
        "metrics": ("accuracy",),
        "inputs": TensorSpec(shape),
        "targets": TensorSpec((), "int32"),
        "batch_size": 6,
        "learning_rate": 0.05,
    }
    return Task(**{**wanted, **options})


def head() -> list[Any]:
    return [layers.Flatten(), layers.Dense(3, activation="softmax")]


CASES: dict[str, Layers] = {
    "conv valid": lambda: [layers.Conv2D(3, 3, activation="relu"), layers.Conv2D(2, 2, activation="relu"), *head()],
    "conv same, strides": lambda: [
        layers.Conv2D(3, 3, strides=2, padding="same", activation="relu"),
        layers.Conv2D(2, 3, padding="same", activation="tanh"),
        *head(),
    ],
    "conv dilated": lambda: [layers.Conv2D(3, 2, dilation_rate=2, activation="sigmoid"), *head()],
    "pool": lambda: [layers.Conv2D(3, 3, padding="same", activation="relu"), layers.MaxPooling2D(), *head()],
    "pool that leaves a margin": lambda: [layers.Conv2D(3, 2, activation="relu"), layers.MaxPooling2D(2), *head()],
    "pool overlapping": lambda: [layers.Conv2D(3, 2, activation="relu"), layers.MaxPooling2D(3, strides=2), *head()],
    "pool overlapping, same": lambda: [
        layers.Conv2D(3, 2, activation="relu"),
        layers.MaxPooling2D(3, strides=2, padding="same"),
        *head(),
    ],
    "pool with ties": lambda: [layers.Conv2D(4, 3, activation="relu6"), layers.MaxPooling2D(2), *head()],
    "regularised": lambda: [layers.Flatten(), layers.Dense(3, activation="softmax", kernel_regularizer="l2")],
    "frozen": lambda: [layers.Flatten(), layers.Dense(5, activation="relu", trainable=False), *head()],
    "logits": lambda: [layers.Flatten(), layers.Reshape((72,)), layers.Dense(8, activation="leaky_relu"), *head()],
}


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_equal_keras(name: str, tmp_path: Path) -> None:
    plan = compile_task(task_of(CASES[name]), tmp_path / "case.plan")
    assert max(plan.manifest.parity.values()) <= 1e-5
    assert set(plan.manifest.parity) == {"loss", "metrics", "weights", "infer"}


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, False), (0.9, True)])
def test_momentum_equals_keras_and_reset_forgets_it(momentum: float, nesterov: bool, tmp_path: Path) -> None:
    task = task_of(head, optimizer=lambda: keras.optimizers.SGD(momentum=momentum, nesterov=nesterov))
    plan = compile_task(task, tmp_path / "case.plan")
    trainable, batch = Trainable(plan.read(TRAIN), plan.manifest), random_batch(plan)
    weights = plan.initial_weights()
    ends = []
    for _ in range(2):
        trainable.set_weights(weights)
        trainable.reset()
        for _ in range(3):
            trainable.train(batch, 0.1)
        ends.append(trainable.get_weights())
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in weights)


def test_regression_with_a_flat_target_and_its_metrics(tmp_path: Path) -> None:
    task = task_of(
        lambda: [layers.Dense(4, activation="tanh"), layers.Dense(1)],
        (5,),
        loss="mse",
        metrics=("mae", "mse"),
        targets=TensorSpec((1,)),
    )
    plan = compile_task(task, tmp_path / "case.plan")
    assert plan.manifest.metrics == ("mae", "mse")


def random_batch(plan: Plan, seed: int = 0) -> Batch:
    rng, rows = np.random.default_rng(seed), plan.manifest.batch_size
    x = rng.uniform(0, 1, (rows, *plan.manifest.inputs["x"].shape)).astype(np.float32)
    return Batch({"x": x, "y": rng.integers(0, 3, rows).astype(np.int32)}, np.ones(rows, np.float32))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return compile_task(task_of(CASES["pool"]), tmp_path_factory.mktemp("plan") / "case.plan")


def test_padding_changes_nothing(plan: Plan) -> None:
    trainable, batch = Trainable(plan.read(TRAIN), plan.manifest), random_batch(plan)
    weight = np.float32([1, 1, 1, 1, 0, 0])
    ends, sums = [], []
    for filler in (0.0, 1e6):
        x = batch.tensors["x"].copy()
        x[4:] = filler
        trainable.set_weights(plan.initial_weights())
        sums.append(trainable.train(Batch({**batch.tensors, "x": x}, weight), 0.1))
        ends.append(trainable.get_weights())
    assert sums[0] == sums[1]
    assert sums[0]["weight"] == 4
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_fedprox_pulls_towards_the_weights_that_were_set(plan: Plan) -> None:
    trainable, batch, mu, rate = Trainable(plan.read(TRAIN), plan.manifest), random_batch(plan), 0.7, 0.1
    start = plan.initial_weights()
    trainable.set_weights(start)
    trainable.train(batch, rate)
    after_one = trainable.get_weights()
    trainable.train(batch, rate)
    plain = trainable.get_weights()
    trainable.set_weights(start)
    trainable.train(batch, rate, mu)
    trainable.train(batch, rate, mu)
    for name, value in trainable.get_weights().items():
        expected = plain[name] - rate * mu * (after_one[name] - start[name])
        assert np.allclose(value, expected, atol=1e-6)


@pytest.mark.parametrize("int8", [False, True])
def test_placing_weights_gives_the_bytes_that_the_converter_makes(int8: bool, tmp_path: Path) -> None:
    from umbel_server.compiler.inference_file import convert_with, inference_file
    from umbel_server.compiler.keras_model import keras_parts
    from umbel_server.compiler.step import trace

    task = task_of(
        lambda: [
            layers.Conv2D(40, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(40, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    parts = keras_parts(task, 0)
    traced = trace(task, parts)
    file, placements = inference_file(task, parts, traced, int8)
    assert any(p.scale_offset is not None for p in placements) == int8
    rng = np.random.default_rng(5)
    weights = [rng.normal(0, 0.3, tuple(w.shape)).astype(np.float32) for w in parts.weights]
    placed = place(file, {w.path: value for w, value in zip(parts.weights, weights, strict=True)}, placements)
    assert placed == convert_with(task, parts, traced, weights, int8)


def test_the_inference_files_answer_as_keras_for_any_number_of_rows(plan: Plan) -> None:
    x = np.random.default_rng(2).uniform(0, 1, (130, 6, 6, 2)).astype(np.float32)
    trainable = Trainable(plan.read(TRAIN), plan.manifest)
    trainable.set_weights(plan.initial_weights())
    whole, int8 = Predictor(plan.read(INFER))({"x": x})["output"], Predictor(plan.read(INFER_INT8))({"x": x})["output"]
    assert whole.shape == (130, 3)
    assert np.allclose(whole[:6], trainable.infer({"x": x[:6]})["output"], atol=1e-6)
    assert np.allclose(Predictor(plan.read(INFER))({"x": x[:1]})["output"], whole[:1], atol=1e-6)
    assert np.allclose(int8, whole, atol=0.05)


def test_the_same_task_and_seed_start_from_the_same_weights(plan: Plan, tmp_path: Path) -> None:
    again = compile_task(task_of(CASES["pool"]), tmp_path / "again.plan", check=False)
    other = compile_task(task_of(CASES["pool"]), tmp_path / "other.plan", seed=1, check=False)
    first = plan.initial_weights()
    assert all(np.array_equal(first[n], w) for n, w in again.initial_weights().items())
    assert any(not np.array_equal(first[n], w) for n, w in other.initial_weights().items())


def test_a_plan_that_differs_from_keras_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from umbel_server.compiler.lowerings import load_table

    monkeypatch.setitem(load_table(), "ReluGrad", lambda op, inputs: [inputs[0]])
    with pytest.raises(CompileError, match=r"differs from Keras by .* in .*kernel|differs from Keras by .* in loss"):
        compile_task(task_of(CASES["conv valid"]), tmp_path / "case.plan")
    assert not list(tmp_path.iterdir())


class Doubling(layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x * 2


REFUSED: dict[str, tuple[Task, str]] = {
    "batch norm": (task_of(lambda: [layers.BatchNormalization(), *head()]), "BatchNormalization"),
    "dropout": (task_of(lambda: [layers.Dropout(0.5), *head()]), "Dropout"),
    "own layer": (task_of(lambda: [Doubling(), *head()]), "Doubling"),
    "optimizer": (task_of(head, optimizer="adam"), "optimizer Adam cannot be compiled"),
    "clipping": (task_of(head, optimizer=lambda: keras.optimizers.SGD(clipnorm=1.0)), "clipnorm"),
    "metric": (task_of(head, metrics=("auc",)), "metric 'auc'"),
    "groups": (task_of(lambda: [layers.Conv2D(4, 3, groups=2), *head()]), "groups=2"),
    "channels first": (task_of(lambda: [layers.Conv2D(4, 1, data_format="channels_first"), *head()]), "channels"),
    "half precision": (task_of(lambda: [layers.Flatten(), layers.Dense(3, dtype="float16")]), "float16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_is_refused_by_name_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    task, sentence = REFUSED[name]
    with pytest.raises(CompileError, match=sentence) as refusal:
        compile_task(task, tmp_path / "case.plan")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_a_task_that_does_not_fit_itself_is_refused(tmp_path: Path) -> None:
    def broken() -> Any:
        raise RuntimeError("no such data")

    wrong: list[tuple[Task, type[UmbelError], str]] = [
        (task_of(head, inputs=TensorSpec((5, 5, 2))), TaskError, "its model takes"),
        (task_of(head, model=lambda: "a model"), TaskError, "should return a keras.Model"),
        (task_of(head, model=broken), TaskError, "no such data"),
        (task_of(head, loss="no_such_loss"), TaskError, "its loss"),
        (task_of(head, optimizer="no_such_optimizer"), TaskError, "its optimizer"),
    ]
    for task, kind, sentence in wrong:
        with pytest.raises(kind, match=sentence):
            compile_task(task, tmp_path / "case.plan")
