"""The reference models compile, train as Keras does, and stay small."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.sampling import sample
from umbel.keras_import import import_keras
from umbel.plan import TRAIN, Plan
from umbel_sim.reference_models import REFERENCE_MODELS

import_keras()

from umbel_server.compiler import compile_task  # noqa: E402

QUICK = ["mlp", "mnist-cnn", "cifar-cnn", "motion-gru", "vision-transformer", "text-encoder"]
LARGE = ["mobilenet-v2", "character-lstm"]
LARGEST = [name for name in REFERENCE_MODELS if name not in QUICK + LARGE]
"""Minutes each, of what the others are made of too: `make models` trains them."""


@pytest.mark.parametrize("name", sample(QUICK, "mlp"))
def test_reference_models_train_as_in_keras(name: str, tmp_path: Path) -> None:
    plan = compile_task(REFERENCE_MODELS[name], tmp_path / "model.plan")
    assert plan.manifest.parity["loss"] <= 1e-4
    assert plan.manifest.parity["infer"] <= 1e-4


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LARGE + (LARGEST if "UMBEL_MODELS" in os.environ else []))
@pytest.mark.long
def test_large_reference_models_train_as_in_keras(name: str, tmp_path: Path) -> None:
    task = replace(REFERENCE_MODELS[name], batch_size=4)  # a few rows compile as many do, and take less time
    plan = compile_task(task, tmp_path / "model.plan")
    assert plan.manifest.parity["loss"] <= 1e-4
    assert plan.manifest.parity["infer"] <= 1e-4
    assert_little_more_than_its_weights(plan)


@pytest.mark.parametrize("name", sample(["mlp", "mnist-cnn", "cifar-cnn"], "mlp"))
def test_a_training_file_is_little_more_than_its_weights(name: str, tmp_path: Path) -> None:
    assert_little_more_than_its_weights(compile_task(REFERENCE_MODELS[name], tmp_path / "model.plan", check=False))


def assert_little_more_than_its_weights(plan: Plan) -> None:
    weights = sum(4 * int(np.prod(spec.shape)) for spec in plan.manifest.weights)
    assert len(plan.read(TRAIN)) <= 2.2 * weights
