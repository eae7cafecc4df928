"""The compiled engine makes of a job the update that a plan's interpreter makes of it, or says what it does not train."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import keras
import msgspec
import numpy as np
import pytest
from keras import layers
from numpy.typing import NDArray

from umbel import Task, TensorSpec
from umbel.errors import TensorError
from umbel.messages import Blob, Train
from umbel.plan import Plan
from umbel_server.compiler import compile_task
from umbel_sim.data import FunctionFleet
from umbel_sim.engines import Done, Job
from umbel_sim.engines.litert import LiteRTDevice
from umbel_sim.engines.native import NativeDevice, library
from umbel_sim.engines.native import layers as described
from umbel_sim.engines.native.layers import Unsupported, chain_of
from umbel_sim.tasks import digits

NOWHERE = Blob("0" * 64, 1)
HOW = Train("0" * 16, "run", 1, NOWHERE, NOWHERE, 0.0, learning_rate=0.1, seed=7)


def edges() -> keras.Model:
    """Every border: strides, windows that overlap, and channels that fill no vector."""
    return keras.Sequential(
        [
            keras.Input((9, 11, 3)),
            layers.Conv2D(6, 3, strides=2, padding="same", activation="tanh"),
            layers.AveragePooling2D(2, strides=1, padding="same"),
            layers.Conv2D(21, (2, 3), use_bias=False, activation="relu"),
            layers.MaxPooling2D(3, strides=1, padding="same"),
            layers.Conv2D(5, 2, strides=(1, 2), activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(7, activation="sigmoid"),
            layers.Dense(5),
        ]
    )


def reshaped() -> keras.Model:
    """Pictures from vectors and back, activations of their own, and a functional model."""
    given = keras.Input((54,))
    x = layers.Reshape((6, 3, 3))(given)
    x = layers.Activation("relu")(layers.Conv2D(33, 3, padding="same")(x))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.ReLU()(layers.Dense(40, use_bias=False)(x))
    x = layers.Reshape((5, 4, 2))(x)
    x = layers.Flatten()(layers.Conv2D(17, 3, activation="relu")(x))
    return keras.Model(given, layers.Softmax()(layers.Dense(6)(x)))


def pooled() -> keras.Model:
    """Pools before anything else, of few channels."""
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.AveragePooling2D(2),
            layers.MaxPooling2D(2, strides=1, padding="same"),
            layers.Conv2D(10, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Reshape((1, 1, 10)),
            layers.MaxPooling2D(1),
            layers.Conv2D(3, 1, activation="sigmoid"),
            layers.Flatten(),
            layers.Dense(4, activation="softmax"),
        ]
    )


def task(name: str, model: Callable[[], Any], shape: tuple[int, ...], batch: int, logits: bool = False) -> Task:
    def loss() -> Any:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)

    target = TensorSpec((1,) if logits else (), "int32")
    metrics = () if logits else ("accuracy",)
    return Task(name, model, loss, TensorSpec(shape), target, learning_rate=0.1, batch_size=batch, metrics=metrics)


TASKS = {
    "edges": (task("edges", edges, (9, 11, 3), 4, logits=True), 5),
    "reshaped": (task("reshaped", reshaped, (54,), 23), 6),
    "pooled": (task("pooled", pooled, (9, 8, 3), 5), 4),
    "digits": (digits.task, 10),
}
EXAMPLES = 37


@pytest.fixture(scope="module", params=TASKS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Plan, FunctionFleet]:
    own, classes = TASKS[request.param]
    path = tmp_path_factory.mktemp("plans") / f"{own.name}.plan"
    compile_task(own, path, check=False)
    (x,), (y,) = own.input_specs.values(), own.target_specs.values()

    def examples(device: int) -> Mapping[str, NDArray[Any]]:
        rng = np.random.default_rng(device)
        # Whole numbers, so that windows hold equal ones, of which the first is the largest.
        given = rng.integers(-3, 4, (EXAMPLES, *x.shape)).astype(np.float32) / 3
        return {"x": given, "y": rng.integers(0, classes, (EXAMPLES, *y.shape), np.int32)}

    return own, Plan.open(path), FunctionFleet(examples, 5, size=lambda device: EXAMPLES)


def assert_same(ours: Done, theirs: Done) -> None:
    assert ours.examples == theirs.examples
    assert ours.squares == pytest.approx(theirs.squares, rel=1e-3)
    assert ours.metrics.keys() == theirs.metrics.keys()
    for name, value in theirs.metrics.items():
        assert ours.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert ours.delta.keys() == theirs.delta.keys()
    for name, delta in theirs.delta.items():
        assert np.abs(delta).max() > 1e-5
        np.testing.assert_allclose(ours.delta[name], delta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", [{"epochs": 2}, {"max_steps": 1}, {"epochs": 3, "max_steps": 4, "proximal_mu": 0.5}])
@pytest.mark.parametrize("lanes", [16, 8, 4])
def test_updates_are_those_of_the_interpreter(
    case: tuple[Task, Plan, FunctionFleet], how: dict[str, Any], lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, plan, fleet = case
    monkeypatch.setattr("umbel_sim.engines.native.WIDEST", lanes)
    job = Job(3, "device-3", plan.initial_weights(), msgspec.structs.replace(HOW, **how))
    native = NativeDevice(chain_of(own), plan, fleet)
    theirs = LiteRTDevice(plan, fleet).train(job)
    assert_same(native.train(job), theirs)
    assert_same(native.train(job), theirs)  # nothing of the first device is left


@pytest.mark.parametrize("broken", [np.nan, np.inf, 3e38])
def test_one_device_s_broken_numbers_are_not_the_next_one_s(
    case: tuple[Task, Plan, FunctionFleet], broken: float
) -> None:
    own, plan, fleet = case

    def one_is_broken(device: int) -> Mapping[str, NDArray[Any]]:
        given = fleet.examples(device)
        if device == 1:
            given["x"].reshape(-1)[7] = broken
        return given

    jobs = [Job(device, f"device-{device}", plan.initial_weights(), HOW) for device in (2, 1, 2)]
    device = NativeDevice(chain_of(own), plan, FunctionFleet(one_is_broken, 5))
    before, _, after = (device.train(job) for job in jobs)
    assert {n: d.tobytes() for n, d in after.delta.items()} == {n: d.tobytes() for n, d in before.delta.items()}


def test_a_class_that_the_model_does_not_have_is_refused(
    case: tuple[Task, Plan, FunctionFleet],
) -> None:
    own, plan, fleet = case

    def wrong(device: int) -> Mapping[str, NDArray[Any]]:
        given = fleet.examples(device)
        return {**given, "y": np.full_like(given["y"], 1000)}

    job = Job(0, "device-0", plan.initial_weights(), HOW)
    with pytest.raises(TensorError, match="device 0: array 'y' has the label or id 1000 in row 0"):
        NativeDevice(chain_of(own), plan, FunctionFleet(wrong, 1)).train(job)


def dense(*more: Any, first: dict[str, Any] | None = None) -> Callable[[], Any]:
    return lambda: keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, **(first or {})), *(layer() for layer in more), layers.Dense(2, "softmax")]
    )


def branching() -> keras.Model:
    given = keras.Input((4,))
    x = layers.Dense(4)(given)
    return keras.Model(given, layers.Dense(2, "softmax")(layers.Add()([x, given])))


class Tripled(keras.losses.SparseCategoricalCrossentropy):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return 3.0 * super().call(y_true, y_pred)


def sparse_categorical_crossentropy(y_true: Any, y_pred: Any) -> Any:
    return 3.0 * keras.losses.sparse_categorical_crossentropy(y_true, y_pred)


def one_class() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), layers.Dense(1, "softmax")])


PLAIN = Task("plain", dense(), "sparse_categorical_crossentropy", TensorSpec((4,)), TensorSpec((), "int32"))


def with_options(**options: Any) -> Callable[[], Any]:
    return lambda: keras.optimizers.SGD(0.1, **options)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"model": dense(lambda: layers.Dropout(0.5))}, "Dropout layers"),
        ({"model": dense(layers.BatchNormalization)}, "BatchNormalization layers"),
        ({"model": dense(first={"activation": "gelu"})}, "the activation gelu"),
        ({"model": dense(first={"kernel_regularizer": "l2"})}, "kernel_regularizer"),
        ({"model": dense(first={"trainable": False})}, "frozen"),
        ({"model": dense(lambda: layers.Activation("softmax"))}, "softmax before the end"),
        ({"model": branching}, "no chain of layers|Add layers"),
        ({"optimizer": "adam"}, "Adam: plain SGD only"),
        ({"optimizer": with_options(momentum=0.9)}, "SGD with momentum"),
        ({"optimizer": with_options(clipnorm=1.0)}, "SGD with clipnorm"),
        ({"loss": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True)}, "from_logits=True"),
        ({"loss": lambda: keras.losses.SparseCategoricalCrossentropy(ignore_class=1)}, "ignore_class"),
        ({"loss": Tripled}, "the loss"),
        ({"loss": lambda: sparse_categorical_crossentropy}, "the loss sparse_categorical_crossentropy"),
        ({"model": one_class}, "a single class"),
        ({"model": dense(lambda: layers.ReLU(activity_regularizer="l2"))}, "activity_regularizer"),
        ({"loss": "mse", "targets": TensorSpec((2,))}, "one class an example"),
        ({"metrics": ("accuracy", "sparse_top_k_categorical_accuracy")}, "metrics other than accuracy"),
        ({"inputs": TensorSpec((4,), "int32")}, "inputs of int32"),
    ],
)
def test_what_it_does_not_train_is_said(changed: dict[str, Any], what: str) -> None:
    with pytest.raises(Unsupported, match=what):
        chain_of(replace(PLAIN, **changed))


def test_the_plain_one_is_trained() -> None:
    assert [layer.kind for layer in chain_of(PLAIN).layers] == [described.DENSE] * 2


def test_an_engine_that_was_not_compiled_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "compiled", None)
    with pytest.raises(Unsupported, match="install a C compiler"):
        library.Net(chain_of(PLAIN), 1, 4)
