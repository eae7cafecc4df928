"""The compiler against Keras and LiteRT: exactness, padding, weight maps, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sampling import sample
from umbel import Plan, Task, TensorSpec
from umbel.errors import TaskError, UmbelError
from umbel.examples import Batch
from umbel.keras_import import import_keras
from umbel.litert import Predictor, Trainable
from umbel.plan import INFER, INFER_INT8, TRAIN

import_keras()
import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import layers  # noqa: E402

from tests.contract.server.compiler.tasks import head, random_batch, task_of  # noqa: E402
from umbel_server.compiler import CompileError, compile_task  # noqa: E402
from umbel_server.compiler.runtimes import ops  # noqa: E402


def pooled() -> list[Any]:
    return [layers.Conv2D(3, 3, padding="same", activation="relu"), layers.MaxPooling2D(), *head()]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return compile_task(task_of(pooled), tmp_path_factory.mktemp("plan") / "case.plan")


def test_a_plan_names_what_differs_most_from_keras(plan: Plan) -> None:
    manifest = plan.manifest
    assert manifest.worst.keys() == manifest.parity.keys()
    assert manifest.worst["weights"] in {weight.name for weight in manifest.weights}


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


def test_the_inference_files_answer_as_keras_for_any_number_of_rows(plan: Plan) -> None:
    x = np.random.default_rng(2).uniform(0, 1, (130, 6, 6, 2)).astype(np.float32)
    trainable = Trainable(plan.read(TRAIN), plan.manifest)
    trainable.set_weights(plan.initial_weights())
    whole, int8 = Predictor(plan.read(INFER))({"x": x})["output"], Predictor(plan.read(INFER_INT8))({"x": x})["output"]
    assert whole.shape == (130, 3)
    assert np.allclose(whole[:6], trainable.infer({"x": x[:6]})["output"], atol=1e-6)
    assert np.allclose(Predictor(plan.read(INFER))({"x": x[:1]})["output"], whole[:1], atol=1e-6)
    assert np.allclose(int8, whole, atol=0.05)


@pytest.mark.long
def test_the_same_task_and_seed_start_from_the_same_weights(plan: Plan, tmp_path: Path) -> None:
    again = compile_task(task_of(pooled), tmp_path / "again.plan", check=False)
    other = compile_task(task_of(pooled), tmp_path / "other.plan", seed=1, check=False)
    first = plan.initial_weights()
    assert all(np.array_equal(first[n], w) for n, w in again.initial_weights().items())
    assert any(not np.array_equal(first[n], w) for n, w in other.initial_weights().items())


def test_a_plan_that_differs_from_keras_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from umbel_server.compiler.lowerings import load_table

    monkeypatch.setitem(load_table(), "ReluGrad", lambda op, inputs: [inputs[0]])
    with pytest.raises(CompileError, match=r"differs from Keras by .* in .*dense/"):
        compile_task(task_of(lambda: [layers.Flatten(), layers.Dense(9, "relu"), *head()]), tmp_path / "case.plan")
    assert not list(tmp_path.iterdir())


class Sorting(layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return keras.ops.fft((x, x))[0]


class Looping(layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return keras.ops.while_loop(lambda y: keras.ops.sum(y) < 100.0, lambda y: (y * 2 + 1,), (x,))[0]


class Counting(layers.Layer):  # type: ignore[misc]
    def build(self, _shape: Any) -> None:
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")

    def call(self, x: Any) -> Any:
        def counted() -> Any:
            self.seen.assign(self.seen + 1.0)
            return x * 2.0

        return keras.ops.cond(keras.ops.sum(x) > 0.0, counted, lambda: x)


class Detached(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = layers.Dense(4), layers.Dense(3, activation="softmax")

    def call(self, x: Any) -> Any:
        return self.last(keras.ops.stop_gradient(self.first(x)))


class Penalised(layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(x)))
        return x


def stateful() -> Any:
    x = keras.Input(batch_shape=(6, 4, 3))
    return keras.Model(x, layers.Dense(3, activation="softmax")(layers.LSTM(4, stateful=True)(x)))


class Pair(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = layers.Dense(3, activation="softmax"), layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.one(x), self.other(x)


REFUSED: dict[str, tuple[Task, str]] = {
    "own op": (task_of(lambda: [Sorting(name="mine"), *head()]), "layer mine: op Complex .* use another layer"),
    "loop": (task_of(lambda: [Looping(), *head()]), "give the recurrence a fixed length"),
    "condition that assigns": (task_of(lambda: [Counting(), *head()]), "devices compute both branches"),
    "detached": (task_of(list, (5,), model=Detached), "does not influence the loss"),
    "schedule": (
        task_of(
            head, optimizer=lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9))
        ),
        "learning-rate schedule",
    ),
    "moving average": (task_of(head, optimizer=lambda: keras.optimizers.SGD(use_ema=True)), "use_ema"),
    "accumulation": (
        task_of(head, optimizer=lambda: keras.optimizers.SGD(gradient_accumulation_steps=2)),
        "gradient_accumulation_steps",
    ),
    "metric": (task_of(head, metrics=(lambda: keras.metrics.MeanIoU(3),)), "cannot be merged"),
    "loss over a batch": (
        task_of(head, loss="dice", targets=TensorSpec((3,)), metrics=()),
        "gives one value for a whole batch",
    ),
    "summed loss": (
        task_of(head, loss=lambda: keras.losses.MeanSquaredError("sum"), targets=TensorSpec((3,))),
        "reduction 'sum'",
    ),
    "loss of a batch": (
        task_of(lambda: [Penalised(name="mine"), *head()]),
        "layer mine .* adds a loss that depends on the batch",
    ),
    "loss scale": (
        task_of(head, optimizer=lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())),
        "LossScaleOptimizer is for float16",
    ),
    "several thresholds": (
        task_of(
            lambda: [layers.Flatten(), layers.Dense(1, activation="sigmoid")],
            loss="binary_crossentropy",
            targets=TensorSpec((1,)),
            metrics=(lambda: keras.metrics.Precision(thresholds=[0.2, 0.7]),),
        ),
        "has 2 thresholds",
    ),
    "mixed precision": (
        task_of(lambda: [layers.Flatten(), layers.Dense(3, dtype="mixed_float16", name="mine")]),
        "layer mine .* computes in float16",
    ),
    "channels first": (task_of(lambda: [layers.Conv2D(4, 1, data_format="channels_first"), *head()]), "channels"),
    "half precision": (task_of(lambda: [layers.Flatten(), layers.Dense(3, dtype="float16")]), "float16"),
    "stateful": (
        task_of(list, (4, 3), model=stateful),
        "stateful",
    ),
    "nothing to train": (task_of(lambda: [layers.Flatten(), layers.Dense(3, trainable=False)]), "nothing to train"),
    "random numbers of TensorFlow": (
        task_of(lambda: [layers.Lambda(lambda x: x + tf.random.normal((6, 6, 2)), name="mine"), *head()]),
        "layer mine: op RandomStandardNormal",
    ),
    "double precision": (
        task_of(lambda: [Double(name="mine"), *head()]),
        "layer mine: op Mul .* computes in float64; devices train float32",
    ),
    "no gradient": (task_of(lambda: [layers.Conv2D(2, 1), Updated(), *head()]), "has no gradient in TensorFlow"),
    "words": (
        task_of(lambda: [layers.Hashing(9, name="mine"), layers.Embedding(9, 2), *head()], (4,), "int32"),
        "layer mine: op AsString .* look words and ids up when examples are made",
    ),
    "rows of a batch": (
        task_of(lambda: [layers.Dense(4), Centred(), *head()], (5,)),
        "or its loss computes with several rows of a batch at once",
    ),
    "outputs without names": (task_of(list, (5,), model=Pair), "let its call return a mapping of name to output"),
    "a fixed batch": (
        task_of(lambda: [layers.Dense(4), layers.Lambda(lambda x: keras.ops.reshape(x, (6, 4))), *head()], (5,)),
        "Keras itself cannot train on a short batch",
    ),
    "random kind": (task_of(lambda: [layers.AlphaDropout(0.2), Categorical(), *head()]), "'categorical'"),
}


class Double(layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return keras.ops.cast(keras.ops.cast(x, "float64") * 2.0, "float32")


class Updated(layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return keras.ops.slice_update(x, (0, 1, 0, 0), keras.ops.ones((6, 2, 6, 2)))


class Centred(layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x - keras.ops.mean(x, axis=0, keepdims=True)


class Categorical(layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x + keras.ops.cast(keras.random.categorical(keras.ops.ones((1, 3)), 1), "float32")[0, 0]


@pytest.mark.parametrize("name", sample(REFUSED, "own op", "loop", "schedule", "nothing to train"))
def test_what_cannot_be_compiled_is_refused_by_name_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    task, sentence = REFUSED[name]
    with pytest.raises(CompileError, match=sentence) as refusal:
        compile_task(task, tmp_path / "case.plan")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_an_op_that_needs_a_newer_runtime_is_named(plan: Plan, tmp_path: Path) -> None:
    for name in (TRAIN, INFER, INFER_INT8):
        assert max(needed for _, _, needed in ops(plan.read(name))) <= (2, 14)
    clipped = task_of(lambda: [layers.Flatten(), layers.Lambda(keras.ops.sign), layers.Dense(3, activation="softmax")])
    compile_task(clipped, tmp_path / "new.plan", check=False)
    with pytest.raises(
        CompileError, match=r"train\.tflite holds op SIGN in version 1, which needs LiteRT 2\.11 or newer"
    ):
        compile_task(clipped, tmp_path / "case.plan", check=False, min_runtime="2.10")
    with pytest.raises(CompileError, match=r"a version such as 2\.14"):
        compile_task(clipped, tmp_path / "case.plan", min_runtime="newest")
    assert [path.name for path in tmp_path.iterdir()] == ["new.plan"]


@pytest.mark.long
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
