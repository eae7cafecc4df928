"""Losses, metrics, optimizers, several inputs and outputs: ten steps in the plan and in Keras."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, losses, metrics, optimizers

from tests.contract.server.compiler.tasks import head, random_batch, task_of
from tests.sampling import sample
from umbel import Plan, Task, TensorSpec
from umbel.litert import Trainable
from umbel.plan import TRAIN
from umbel_server.compiler import compile_task

CLASSES: dict[str, Any] = {
    "smooth": lambda: losses.CategoricalCrossentropy(label_smoothing=0.1),
    "categorical_focal_crossentropy": "categorical_focal_crossentropy",
    "kl_divergence": "kl_divergence",
    "categorical_hinge": "categorical_hinge",
    "poisson": "poisson",
}
LOGITS: dict[str, Any] = {
    "sparse": lambda: losses.SparseCategoricalCrossentropy(from_logits=True),
    "categorical": lambda: losses.CategoricalCrossentropy(from_logits=True),
    "hinge": "hinge",
    "squared_hinge": "squared_hinge",
}
NUMBERS = ["mse", "mae", "mape", "msle", "huber", "log_cosh", "cosine_similarity"]


def with_outputs(wanted: dict[str, Any], size: int, activation: str | None, targets: dict[str, TensorSpec]) -> Task:
    """A model with one output a loss."""

    def model() -> Any:
        x = keras.Input((5,))
        hidden = layers.Dense(6, activation="tanh")(x)
        return keras.Model(x, {name: layers.Dense(size, activation=activation)(hidden) for name in wanted})

    return Task("losses", model, wanted, TensorSpec((5,)), targets, batch_size=6, learning_rate=0.05)


def test_losses_of_probabilities(tmp_path: Path) -> None:
    compile_task(with_outputs(CLASSES, 3, "softmax", {name: TensorSpec((3,)) for name in CLASSES}), tmp_path / "p.plan")


@pytest.mark.long
def test_losses_of_logits(tmp_path: Path) -> None:
    targets = {name: TensorSpec((3,)) for name in LOGITS} | {"sparse": TensorSpec((), "int32")}
    compile_task(with_outputs(LOGITS, 3, None, targets), tmp_path / "p.plan")


@pytest.mark.long
def test_losses_of_numbers(tmp_path: Path) -> None:
    wanted = {name: name for name in NUMBERS}
    compile_task(with_outputs(wanted, 2, "softplus", {name: TensorSpec((2,)) for name in NUMBERS}), tmp_path / "p.plan")


class Power(losses.Loss):  # type: ignore[misc]
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean(keras.ops.abs(y_true - y_pred) ** 1.5, axis=-1)


@pytest.mark.parametrize("loss", [Power, lambda: losses.SparseCategoricalCrossentropy(ignore_class=0)])
@pytest.mark.long
def test_losses_of_ones_own_and_classes_left_out(loss: Any, tmp_path: Path) -> None:
    target = TensorSpec((3,)) if loss is Power else TensorSpec((), "int32")
    compile_task(task_of(head, (5,), loss=loss, metrics=(), targets=target), tmp_path / "p.plan")


@pytest.mark.long
def test_binary_losses_and_counts_that_merge(tmp_path: Path) -> None:
    wanted = {"plain": lambda: losses.BinaryCrossentropy(label_smoothing=0.1), "focal": "binary_focal_crossentropy"}
    task = with_outputs(wanted, 1, "sigmoid", {name: TensorSpec((1,), "int32") for name in wanted})
    counted = ("accuracy", metrics.Precision, metrics.Recall, metrics.AUC, lambda: metrics.AUC(curve="PR", name="pr"))
    task = Task(**{**vars(task), "metrics": {"plain": counted}})
    plan = compile_task(task, tmp_path / "p.plan")
    kinds = {metric.name: metric.kind for metric in plan.manifest.metrics}
    assert kinds == {
        "plain_accuracy": "mean",
        "plain_precision": "precision",
        "plain_recall": "recall",
        "plain_auc": "auc_roc",
        "plain_pr": "auc_pr",
    }
    assert plan.manifest.parity["metrics"] < 1e-5


def test_metrics_of_classes(tmp_path: Path) -> None:
    wanted = ("accuracy", "sparse_categorical_accuracy", lambda: metrics.SparseTopKCategoricalAccuracy(2))
    task = task_of(head, metrics=wanted)
    assert compile_task(task, tmp_path / "p.plan").manifest.parity["metrics"] < 1e-6
    one_hot = task_of(
        head,
        loss="categorical_crossentropy",
        targets=TensorSpec((3,)),
        metrics=("accuracy", lambda: metrics.TopKCategoricalAccuracy(2)),
    )
    assert compile_task(one_hot, tmp_path / "q.plan").manifest.parity["metrics"] < 1e-6


@pytest.mark.long
def test_metrics_of_numbers(tmp_path: Path) -> None:
    task = task_of(
        lambda: [layers.Dense(4, activation="tanh"), layers.Dense(1)],
        (5,),
        loss="mse",
        metrics=("mae", "mse", metrics.RootMeanSquaredError),
        targets=TensorSpec((1,)),
    )
    plan = compile_task(task, tmp_path / "case.plan")
    assert plan.manifest.metric_names == ("loss", "mae", "mse", "root_mean_squared_error")


@pytest.mark.long
def test_an_output_that_is_one_number(tmp_path: Path) -> None:
    def stack() -> list[Any]:
        return [layers.Dense(4, activation="tanh"), layers.Dense(1), layers.Reshape(())]

    task = task_of(stack, (5,), loss="mse", metrics=("mae",), targets=TensorSpec(()))
    assert compile_task(task, tmp_path / "case.plan").manifest.outputs["output"].shape == ()


OPTIMIZERS: dict[str, Any] = {
    **{name: name for name in "adam adamw rmsprop adagrad adamax nadam lion adadelta ftrl".split()},
    "momentum": lambda: optimizers.SGD(momentum=0.9),
    "nesterov": lambda: optimizers.SGD(momentum=0.9, nesterov=True, weight_decay=0.01),
    "clipnorm": lambda: optimizers.Adam(clipnorm=0.1, amsgrad=True),
    "clipvalue": lambda: optimizers.RMSprop(clipvalue=0.01, centered=True, momentum=0.5),
    "global clipnorm": lambda: optimizers.SGD(global_clipnorm=0.1),
}


@pytest.mark.parametrize("name", sample(OPTIMIZERS, "adam"))
def test_optimizers_and_their_slots(name: str, tmp_path: Path) -> None:
    task = task_of(
        lambda: [layers.Dense(6, activation="tanh"), layers.Dense(3, activation="softmax")],
        (5,),
        optimizer=OPTIMIZERS[name],
        learning_rate=0.01,
    )
    plan = compile_task(task, tmp_path / "case.plan")
    assert max(plan.manifest.parity.values()) <= 1e-5


@pytest.fixture(scope="module")
def adam(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return compile_task(task_of(head, optimizer="adam"), tmp_path_factory.mktemp("adam") / "case.plan")


def test_reset_forgets_the_slots(adam: Plan) -> None:
    trainable, batch = Trainable(adam.read(TRAIN), adam.manifest), random_batch(adam)
    ends = []
    for _ in range(2):
        trainable.set_weights(adam.initial_weights())
        trainable.reset()
        for _ in range(3):
            trainable.train(batch, 0.1)
        ends.append(trainable.get_weights())
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_training_goes_on_from_weights_and_slots_that_were_kept(adam: Plan) -> None:
    batch = random_batch(adam)
    first, second = (Trainable(adam.read(TRAIN), adam.manifest) for _ in range(2))
    first.set_weights(adam.initial_weights())
    first.reset()
    first.train(batch, 0.1)
    second.set_weights(first.get_weights())
    second.set_slots(first.get_slots())
    for trainable in (first, second):
        trainable.train(batch, 0.1)
    ours, theirs = first.get_weights(), second.get_weights()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    def model() -> Any:
        a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b", dtype="int32")
        hidden = layers.Dense(8, activation="relu")(
            layers.Concatenate()([a, layers.Flatten()(layers.Embedding(5, 2)(b))])
        )
        return keras.Model(
            [a, b], {"kind": layers.Dense(3, activation="softmax")(hidden), "size": layers.Dense(1)(hidden)}
        )

    task = Task(
        "several",
        model,
        {"kind": "sparse_categorical_crossentropy", "size": "mse"},
        inputs={"b": TensorSpec((3,), "int32"), "a": TensorSpec((4,))},
        targets={"size": TensorSpec((1,)), "kind": TensorSpec((), "int32")},
        metrics={"kind": ("accuracy",), "size": ("mae",)},
        loss_weights={"size": 0.3},
        batch_size=6,
    )
    plan = compile_task(task, tmp_path / "case.plan")
    assert set(plan.manifest.outputs) == {"kind", "size"}
    assert set(plan.manifest.metric_names) == {"loss", "kind_accuracy", "size_mae"}


@pytest.mark.long
def test_inputs_in_a_nest(tmp_path: Path) -> None:
    def model() -> Any:
        a, b, c = (keras.Input((n,), name=name) for n, name in ((4, "a"), (3, "b"), (2, "c")))
        return keras.Model(
            [a, {"b": b, "c": c}], layers.Dense(3, activation="softmax")(layers.Concatenate()([a, b, c]))
        )

    specs = {"b": TensorSpec((3,)), "c": TensorSpec((2,)), "a": TensorSpec((4,))}
    compile_task(task_of(list, model=model, inputs=specs), tmp_path / "case.plan")


def test_the_same_seed_draws_the_same_numbers_and_another_seed_others(tmp_path: Path) -> None:
    plan = compile_task(task_of(lambda: [layers.Dropout(0.5), *head()]), tmp_path / "case.plan")
    trainable, batch = Trainable(plan.read(TRAIN), plan.manifest), random_batch(plan)

    def loss(seed: int) -> Any:
        trainable.set_weights(plan.initial_weights())
        return trainable.train(batch, 0.0, seed=seed)["loss"]

    assert loss(5) == loss(5)
    assert len({loss(seed) for seed in range(20)}) == 20
