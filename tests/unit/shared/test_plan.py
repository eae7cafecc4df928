import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from umbel import signing, tensors
from umbel.errors import PlanError
from umbel.plan import INITIAL, MANIFEST, SCHEMA, Manifest, Plan
from umbel.tensors import TensorSpec, WeightSpec


def manifest(schema: int = SCHEMA) -> Manifest:
    return Manifest(
        schema=schema,
        task="line",
        batch_size=2,
        learning_rate=0.1,
        loss="mse",
        optimizer="sgd",
        metrics=(),
        inputs={"x": TensorSpec((1,))},
        targets={"y": TensorSpec((1,))},
        outputs={"output": TensorSpec((1,))},
        weights=(WeightSpec("dense/kernel", (1, 1)),),
        weight_maps={},
        parity={},
        producer={},
        files={},
    )


FILES = {
    "train.tflite": b"not really a model" * 9,
    INITIAL: tensors.dump({"dense/kernel": np.ones((1, 1), np.float32)}),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return Plan.write(tmp_path_factory.mktemp("plan") / "line.plan", manifest(), FILES)


def test_the_same_content_gives_the_same_bytes(plan: Plan, tmp_path: Path) -> None:
    again = Plan.write(tmp_path / "again.plan", manifest(), dict(reversed(FILES.items())))
    assert again.path.read_bytes() == plan.path.read_bytes()
    assert again.sha256 == tensors.digest(plan.path.read_bytes())


def test_a_plan_gives_back_what_was_written(plan: Plan) -> None:
    assert plan.read("train.tflite") == FILES["train.tflite"]
    assert plan.initial_weights()["dense/kernel"].tolist() == [[1.0]]
    with pytest.raises(PlanError, match=r"no file other\.bin"):
        plan.read("other.bin")


def test_a_signed_plan_verifies_with_its_key_only(plan: Plan, tmp_path: Path) -> None:
    key, other = signing.generate_key(), signing.generate_key()
    signed = plan.sign(tmp_path / "signed.plan", key)
    signed.verify(key)
    with pytest.raises(PlanError, match="does not verify"):
        signed.verify(other)
    with pytest.raises(PlanError, match="not signed"):
        plan.verify(key)


def test_a_signature_of_another_manifest_is_refused(plan: Plan, tmp_path: Path) -> None:
    key = signing.generate_key()
    signed = plan.sign(tmp_path / "signed.plan", key)
    other = Plan.write(tmp_path / "other.plan", msgspec.structs.replace(manifest(), task="other"), FILES)
    other.signature = signed.signature
    with pytest.raises(PlanError, match="another manifest"):
        other.verify(key)


@given(position=st.integers(0, 10**9), flip=st.integers(1, 255))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_refused_with_one_sentence(plan: Plan, tmp_path: Path, position: int, flip: int) -> None:
    data = bytearray(plan.path.read_bytes())
    data[position % len(data)] ^= flip
    path = tmp_path / "changed.plan"
    path.write_bytes(data)
    with pytest.raises(PlanError) as refusal:
        Plan.open(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@given(length=st.integers(0, 10**9))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_plan_is_refused(plan: Plan, tmp_path: Path, length: int) -> None:
    data = plan.path.read_bytes()
    path = tmp_path / "cut.plan"
    path.write_bytes(data[: length % len(data)])
    with pytest.raises(PlanError):
        Plan.open(path)


def test_a_newer_schema_is_refused_before_anything_else_is_read(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "newer.plan"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MANIFEST, msgspec.json.encode({"schema": SCHEMA + 1, "shape_of_things": "to come"}))
    with pytest.raises(PlanError, match=f"schema {SCHEMA + 1}.*upgrade"):
        Plan.open(path)


def test_a_missing_file_a_folder_and_another_archive_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    for path in (tmp_path / "absent.plan", tmp_path, other):
        with pytest.raises(PlanError):
            Plan.open(path)
