"""Loss and metrics of an inference file's outputs: every metric of the plan, for several outputs, as Keras gives them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umbel import Plan, Task, TensorSpec
from umbel.examples import Examples
from umbel.keras_import import import_keras
from umbel.litert import Predictor
from umbel.plan import INFER, INFER_INT8
from umbel.tensors import Tensors

import_keras()
import keras  # noqa: E402
from keras import layers  # noqa: E402

from tests.contract.server.compiler.tasks import head, task_of  # noqa: E402
from umbel_server.compiler import compile_task  # noqa: E402
from umbel_server.compiler.keras_eval import evaluate  # noqa: E402
from umbel_server.models.held_out import HeldOut  # noqa: E402


def two_heads() -> Any:
    x = keras.Input((12,))
    shared = layers.Dense(40, activation="relu", kernel_regularizer="l2")(x)
    kind = layers.Dense(3, activation="softmax", name="kind")(shared)
    sure = layers.Dense(1, activation="sigmoid", name="sure")(shared)
    return keras.Model(x, {"kind": kind, "sure": sure})


def two_headed() -> Task:
    return Task(
        name="two-heads",
        model=two_heads,
        loss={"kind": "sparse_categorical_crossentropy", "sure": "binary_crossentropy"},
        loss_weights={"kind": 2.0},
        metrics={
            "kind": ("accuracy",),
            "sure": (
                lambda: keras.metrics.AUC(num_thresholds=20, name="auc"),
                lambda: keras.metrics.Precision(name="precision"),
                lambda: keras.metrics.RootMeanSquaredError(name="rmse"),
            ),
        },
        inputs=TensorSpec((12,)),
        targets={"kind": TensorSpec((), "int32"), "sure": TensorSpec((1,))},
        batch_size=8,
    )


def held_out(count: int) -> Examples:
    rng = np.random.default_rng(1)
    tensors: Tensors = {
        "x": rng.uniform(0, 1, (count, 12)).astype(np.float32),
        "kind": rng.integers(0, 3, count).astype(np.int32),
        "sure": rng.integers(0, 2, (count, 1)).astype(np.float32),
    }
    return Examples(tensors, count)


def test_outputs_alone_give_the_loss_and_every_metric(tmp_path: Path) -> None:
    task, examples = two_headed(), held_out(37)
    plan = compile_task(task, tmp_path / "two.plan", check=False)
    weights, held = plan.initial_weights(), HeldOut(plan, examples)
    reference, keras_says = held(weights), evaluate(task, weights, examples)
    assert set(reference) == {"loss", "kind_accuracy", "sure_auc", "sure_precision", "sure_rmse"}
    for file, close in ((INFER, 1e-5), (INFER_INT8, 0.05)):
        outputs = Predictor(plan.read(file))({"x": examples.tensors["x"]})
        scored = held.score(outputs)
        assert scored.keys() == reference.keys()
        for name, value in scored.items():
            assert value == pytest.approx(reference[name], rel=close, abs=close)
            assert value == pytest.approx(keras_says[name], rel=close, abs=close)
    right = {"kind": np.eye(3, dtype=np.float32)[examples.tensors["kind"]], "sure": examples.tensors["sure"]}
    perfect = held.score(right)
    assert (perfect["kind_accuracy"], perfect["sure_precision"], perfect["sure_rmse"]) == (1.0, 1.0, 0.0)


@pytest.mark.long
def test_a_plan_whose_loss_is_not_of_its_outputs_alone_does_not_score(tmp_path: Path) -> None:
    adds = task_of(lambda: [layers.Dense(4, activity_regularizer="l2"), *head()], (5,))
    masks = task_of(
        lambda: [layers.Embedding(9, 4, mask_zero=True), layers.LSTM(4, return_sequences=True), layers.Dense(3)],
        (5,),
        "int32",
        loss="mse",
        metrics=("mae",),
        targets=TensorSpec((5, 3)),
    )
    for name, task in (("adds", adds), ("masks", masks)):
        plan: Plan = compile_task(task, tmp_path / f"{name}.plan", check=False)
        x, y = plan.manifest.inputs["x"], plan.manifest.targets["y"]
        examples = Examples({"x": np.ones((3, *x.shape), x.dtype), "y": np.ones((3, *y.shape), y.dtype)}, 3)
        held = HeldOut(plan, examples)
        assert held(plan.initial_weights())["loss"] > 0
        assert held.score(Predictor(plan.read(INFER))({"x": examples.tensors["x"]})) == {}
