"""The checkpoints of a run on this machine: as files, and as Keras models."""

import tempfile
from pathlib import Path
from typing import Any

from umbel.errors import UmbelError
from umbel.keras_import import import_keras
from umbel.plan import Plan
from umbel.task import Task, load_task
from umbel.tensors import Tensors, load
from umbel_server import answers
from umbel_server.client import Client

KERAS = ".keras"
"""The suffix that Keras wants of a model's file."""


def checkpoint_of(run: answers.RunDetails, round: int | None) -> answers.Checkpoint:
    """The checkpoint of a round, or the newest one; raises UmbelError when there is none."""
    found = [c for c in run.checkpoints if round is None or c.round == round]
    if not found:
        raise UmbelError(f"run {run.id} has no checkpoint of round {round if round is not None else 'any'} yet")
    return found[-1]


def task_of(run: answers.RunDetails, file: Path) -> Task:
    """The task in a file; raises UmbelError unless it has the name of the run's task. Imports Keras."""
    if file.is_file():
        import_keras()
    task = load_task(file)
    if task.name != run.task:
        raise UmbelError(f"{file}: the run trains task {run.task}, this file defines task {task.name}")
    return task


def plan_of(client: Client, run: answers.RunDetails, folder: Path) -> Plan:
    """The run's plan, downloaded into a folder."""
    bundle = folder / "run.plan"
    bundle.write_bytes(client.get_blob(run.plan))
    return Plan.open(bundle)


def all_weights(client: Client, checkpoint: answers.Checkpoint, plan: Plan) -> Tensors:
    """Every weight of the model by its variable path: those of the checkpoint, and those that the plan keeps frozen."""
    return {**plan.frozen_weights(), **load(client.get_blob(checkpoint.weights))}


def check_keras_file(path: Path) -> None:
    """Raise UmbelError unless Keras can save a model at `path`."""
    if path.suffix != KERAS:
        raise UmbelError(f"{path}: expected a file that ends in {KERAS} for a Keras model; name another one")
    if not path.parent.is_dir():
        raise UmbelError(f"{path}: there is no folder {path.parent} for this file; make it first")


def save_keras(client: Client, run: answers.RunDetails, checkpoint: answers.Checkpoint, task: Task, path: Path) -> None:
    """Save a checkpoint as a Keras model at `path`, atomically; `keras.saving.load_model` reads it."""
    from umbel_server.compiler.keras_eval import keras_model

    with tempfile.TemporaryDirectory(prefix=".umbel-", dir=path.parent) as name:
        plan = plan_of(client, run, Path(name))
        model: Any = keras_model(task, all_weights(client, checkpoint, plan))
        made = Path(name) / f"model{KERAS}"
        model.save(made)
        made.replace(path)
