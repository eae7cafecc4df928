"""The compilation of a task into a plan, from building the Keras model to writing the bundle."""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import absl.logging
import msgspec
import numpy as np
import tensorflow as tf

from umbel import __version__, tensors
from umbel.keras_import import native_stderr_silenced
from umbel.plan import FROZEN, INFER, INFER_INT8, INITIAL, SCHEMA, TRAIN, Manifest, Plan
from umbel.task import Task
from umbel_server.compiler.inference_file import CHANNELS_OF_DENSE, InferenceFiles
from umbel_server.compiler.keras_model import keras_parts, value_counts
from umbel_server.compiler.parity import check_parity
from umbel_server.compiler.reemit import key
from umbel_server.compiler.runtimes import check_runtime, version_of
from umbel_server.compiler.stages import Stage, stages
from umbel_server.compiler.step import trace
from umbel_server.compiler.training_file import training_file

absl.logging.set_verbosity(absl.logging.ERROR)
tf.get_logger().setLevel("ERROR")


def compile_plan(
    task: Task, path: Path, seed: int, check: bool, min_runtime: str, progress: Callable[[Stage], None]
) -> Plan:
    """Compile a task; see umbel_server.compiler.compile_task."""
    oldest = version_of(min_runtime)
    upcoming = stages(check)
    progress(next(upcoming))
    parts = keras_parts(task, seed)
    progress(next(upcoming))
    traced = trace(task, parts)
    changed = traced.train.assigned
    parts = replace(parts, fixed=frozenset(w.path for w in parts.weights if key(w) not in changed))
    progress(next(upcoming))
    train = training_file(task, parts, traced)
    check_runtime(TRAIN, train, oldest)
    with InferenceFiles(task, parts, traced) as files:
        progress(next(upcoming))
        infer = files.make(int8=False)
        check_runtime(INFER, infer.data, oldest)
        progress(next(upcoming))
        int8 = files.make(int8=True, channels=oldest >= CHANNELS_OF_DENSE)
        check_runtime(INFER_INT8, int8.data, oldest)
    manifest = Manifest(
        schema=SCHEMA,
        task=task.name,
        batch_size=task.batch_size,
        learning_rate=task.learning_rate,
        loss=task.loss if isinstance(task.loss, str) else "custom",
        optimizer=parts.optimizer.name,
        metrics=traced.metrics.specs,
        inputs=task.input_specs,
        targets=task.target_specs,
        outputs=parts.outputs,
        weights=parts.weight_specs,
        weight_maps={INFER: infer.placements, INFER_INT8: int8.placements},
        parity={},
        producer={"umbel": __version__, "tensorflow": tf.__version__, "keras": version("keras")},
        files={},
        value_counts=value_counts(parts),
    )
    initial = {w.path: np.array(w.numpy()) for w in parts.weights}
    if check:
        progress(next(upcoming))
        with native_stderr_silenced():  # LiteRT prints a line about its delegate
            worst = check_parity(task, parts, manifest, train, infer.data)
        parity = {quantity: error for quantity, (error, _) in worst.items()}
        names = {quantity: name for quantity, (_, name) in worst.items()}
        manifest = msgspec.structs.replace(manifest, parity=parity, worst=names)
    progress(next(upcoming))
    members = {TRAIN: train, INFER: infer.data, INFER_INT8: int8.data, INITIAL: tensors.dump(initial)}
    if parts.constants:
        members[FROZEN] = tensors.dump({w.path: np.array(w.numpy()) for w in parts.constants})
    return Plan.write(path, manifest, members)
