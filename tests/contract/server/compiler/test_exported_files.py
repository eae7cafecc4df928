"""Every exported file against TFLite's own converter, over kinds of layers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sampling import sample
from umbel import Task, TensorSpec
from umbel.errors import UmbelError
from umbel.keras_import import import_keras
from umbel.litert import Predictor
from umbel.placement import place
from umbel.tensors import Tensors

import_keras()
import keras  # noqa: E402
from ai_edge_litert import schema_py_generated as schema  # noqa: E402
from ai_edge_litert.interpreter import Interpreter  # noqa: E402
from keras import layers  # noqa: E402

from tests.contract.server.compiler.tasks import task_of  # noqa: E402
from umbel_server.compiler import CompileError  # noqa: E402
from umbel_server.compiler.converter import convert  # noqa: E402
from umbel_server.compiler.full_integer import full_integer, quantise  # noqa: E402
from umbel_server.compiler.inference_file import InferenceFile, InferenceFiles, converted, saved_model  # noqa: E402
from umbel_server.compiler.keras_model import KerasParts, keras_parts  # noqa: E402
from umbel_server.compiler.runtimes import ops  # noqa: E402
from umbel_server.compiler.step import Traced, trace  # noqa: E402
from umbel_server.tflite.file import constant, unpack  # noqa: E402
from umbel_server.tflite.float16 import float16  # noqa: E402


def two_inputs() -> Any:
    image, words = keras.Input((6, 6, 2), name="image"), keras.Input((5,), dtype="int32", name="words")
    x = layers.Flatten()(layers.Conv2D(8, 3, activation="relu")(image))
    y = layers.GlobalAveragePooling1D()(layers.Embedding(60, 40)(words))
    z = layers.Dense(12, activation="relu")(layers.Concatenate()([x, y]))
    return keras.Model([image, words], layers.Dense(3, activation="softmax")(z))


pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")

NETWORKS: dict[str, Callable[[], Task]] = {
    "conv, depthwise, batch norm, dense": lambda: task_of(
        lambda: [
            layers.Conv2D(40, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(2),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ],
        (8, 8, 2),
    ),
    "embedding, LSTM": lambda: task_of(
        lambda: [layers.Embedding(60, 40), layers.LSTM(40), layers.Dense(3, activation="softmax")], (4,), "int32"
    ),
    "attention, layer norm": lambda: task_of(
        lambda: [
            layers.Dense(48, activation="relu"),
            Attending(),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ],
        (4, 32),
    ),
    "two inputs": lambda: task_of(
        list, model=two_inputs, inputs={"image": TensorSpec((6, 6, 2)), "words": TensorSpec((5,), "int32")}
    ),
}


class Attending(layers.Layer):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = layers.MultiHeadAttention(2, 24), layers.LayerNormalization()

    def call(self, x: Any) -> Any:
        return self.norm(x + self.attention(x, x))


@dataclass(frozen=True)
class Case:
    """A network whose plan's files were made, and other weights for it."""

    task: Task
    parts: KerasParts
    traced: Traced
    whole: InferenceFile
    int8: dict[bool, InferenceFile]
    weights: Tensors

    def saved(self, folder: Path, file: InferenceFile) -> Path:
        """The other weights' model, ready for the converter."""
        return saved_model(self.task, self.parts, self.traced, list(self.weights.values()), folder, file.apart)

    def placed(self) -> bytes:
        return place(self.whole.data, self.weights, self.whole.placements)

    def rows(self, count: int) -> Tensors:
        rng = np.random.default_rng(3)
        return {
            name: (
                rng.integers(0, 60, (count, *spec.shape))
                if spec.dtype.startswith("int")
                else rng.uniform(0, 1, (count, *spec.shape))
            ).astype(spec.dtype)
            for name, spec in self.task.input_specs.items()
        }


@cache
def case_of(name: str) -> Case:
    task = NETWORKS[name]()
    parts = keras_parts(task, 0)
    traced = trace(task, parts)
    rng = np.random.default_rng(5)
    weights = {w.path: rng.normal(0, 0.3, tuple(w.shape)).astype(np.float32) for w in parts.weights}
    weights |= {path: np.abs(value) + 0.1 for path, value in weights.items() if "variance" in path}
    with InferenceFiles(task, parts, traced) as files:
        whole = files.make(int8=False)
        return Case(task, parts, traced, whole, {by: files.make(True, by) for by in (False, True)}, weights)


@pytest.fixture(params=sample(NETWORKS, "embedding, LSTM"))
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param)


def test_placing_weights_gives_the_bytes_that_the_converter_makes(case: Case, tmp_path: Path) -> None:
    assert case.placed() == converted(case.task, case.saved(tmp_path, case.whole), int8=False)


@pytest.mark.parametrize("channels", [False, True])
def test_quantising_weights_gives_the_bytes_that_the_converter_makes(
    case: Case, channels: bool, tmp_path: Path
) -> None:
    made = case.int8[channels]
    quantised = [placement for placement in made.placements if placement.scale_offset is not None]
    assert quantised
    assert not channels or any(placement.axis >= 0 for placement in quantised)
    expected = converted(case.task, case.saved(tmp_path, made), True, channels)
    assert place(made.data, case.weights, made.placements) == expected


def halves(model: bytes) -> set[bytes]:
    file = unpack(model)
    found = [constant(file, t) for g in file.subgraphs for t in g.tensors if t.type == schema.TensorType.FLOAT16]
    return {data.tobytes() for data in found if data is not None and len(data) > 2}


def test_float16_holds_the_constants_that_the_converter_makes(case: Case, tmp_path: Path) -> None:
    whole, saved = case.placed(), case.saved(tmp_path, case.whole)
    flags = {"post_training_quantize": True, "quantize_to_float16": True}
    ours, theirs = float16(whole), convert(saved, ["infer"], "case", **flags)
    assert halves(ours) == halves(theirs)
    weights = sum(value.nbytes for value in case.weights.values())
    assert len(whole) - len(ours) > 0.4 * weights - 200 * len(case.weights)
    assert max(needed for _, _, needed in ops(ours)) <= (2, 14)
    rows = case.rows(70)
    expected = Predictor(theirs)(rows)["output"]
    if np.isfinite(expected).all():  # the converter's own rounds batch norm's smallest numbers to 0
        assert np.allclose(Predictor(ours)(rows)["output"], expected, atol=1e-4)
    assert np.allclose(Predictor(ours)(rows)["output"], Predictor(whole)(rows)["output"], atol=0.01)


def test_full_integer_computes_in_integers_for_any_number_of_rows(case: Case) -> None:
    rows, whole = case.rows(70), case.placed()
    model = quantise(whole, rows)
    details = Interpreter(model_content=model).get_tensor_details()
    floats = [t["name"] for t in details if t["dtype"] == np.float32]
    boundary = sum(spec.dtype == "float32" for spec in case.task.input_specs.values()) + 1
    assert len(floats) == boundary
    assert max(needed for _, _, needed in ops(model)) <= (2, 14)
    predictor, expected = Predictor(model), Predictor(whole)(rows)["output"]
    answers = predictor(rows)["output"]
    assert answers.shape == expected.shape
    assert np.abs(answers - expected).mean() < 0.05
    one = predictor({name: value[:1] for name, value in rows.items()})["output"]
    assert np.allclose(one, answers[:1], atol=1e-6)


@pytest.mark.long
def test_what_has_no_int8_form_is_named() -> None:
    task = task_of(lambda: [layers.Dense(8, activation="elu"), layers.Lambda(keras.ops.sin), layers.Dense(3)], (7,))
    parts = keras_parts(task, 0)
    with InferenceFiles(task, parts, trace(task, parts)) as files:
        model = files.make(int8=False).data
    rows = {"x": np.random.default_rng(0).uniform(0, 1, (9, 7)).astype(np.float32)}
    with pytest.raises(CompileError, match=r"ELU, SIN have no int8 form in LiteRT 2\.14; use int8, which") as refusal:
        full_integer(model, rows)
    assert "\n" not in str(refusal.value)
    grouped = task_of(lambda: [layers.Conv2D(4, 3, groups=2, activation="relu"), layers.Flatten(), layers.Dense(3)])
    parts = keras_parts(grouped, 0)
    with InferenceFiles(grouped, parts, trace(grouped, parts)) as files:
        model_of_groups = files.make(int8=False).data
    with pytest.raises(CompileError, match=r"cannot run the file that TensorFlow's quantiser made .*use int8"):
        quantise(model_of_groups, {"x": np.random.default_rng(0).normal(0, 1, (9, 6, 6, 2)).astype(np.float32)})
    with pytest.raises(UmbelError, match="was not done after 0 s"):
        full_integer(model, rows, seconds=0.1)
    with pytest.raises(CompileError, match="use int8"):
        full_integer(b"not a model", rows)
