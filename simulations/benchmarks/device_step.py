"""One training step on a device: Keras's `train_on_batch`, Keras as one tf.function, and the plan, on the same threads.

Every measurement runs alone in a process of its own, so that its peak memory is the memory that a device would need. The
three measurements of a row run one after the other. A row's ratio is the plan's time divided by the tf.function's. Times
are medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from umbel.examples import Batch
from umbel.litert import Trainable
from umbel.plan import TRAIN, Plan
from umbel.tensors import Tensors, TensorSpec

MODELS = ("mlp", "mnist-cnn", "mobilenet-v2", "character-lstm")
KINDS = ("train_on_batch", "function", "plan")


def random_batch(specs: Mapping[str, TensorSpec], rows: int) -> Tensors:
    """One full batch of random inputs and targets. Integers are 1 to 9, which are valid tokens and classes in all models."""
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.integers(1, 10, (rows, *spec.shape)) if "int" in spec.dtype else rng.random((rows, *spec.shape))
        ).astype(spec.dtype)
        for name, spec in specs.items()
    }


def plan_step(plan: Path, threads: int) -> Callable[[], object]:
    """The training step of a device, which imports neither Keras nor TensorFlow."""
    opened = Plan.open(plan)
    manifest = opened.manifest
    trainable = Trainable(opened.read(TRAIN), manifest, threads)
    trainable.set_weights(opened.initial_weights())
    trainable.reset()
    rows = manifest.batch_size
    batch = Batch(random_batch({**manifest.inputs, **manifest.targets}, rows), np.ones(rows, np.float32))
    return lambda: trainable.train(batch, 0.01)


def keras_step(name: str, rows: int, threads: int, whole: bool) -> Callable[[], object]:
    """Keras's `train_on_batch`, or with `whole` the same step as one tf.function."""
    from umbel.keras_import import import_keras

    import_keras()
    import keras
    import tensorflow as tf

    from umbel_sim.reference_models import REFERENCE_MODELS

    task = REFERENCE_MODELS[name]
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    model = task.model()
    model.compile(optimizer=keras.optimizers.SGD(task.learning_rate), loss=task.loss, metrics=list(task.metrics))
    batch = random_batch({**task.input_specs, **task.target_specs}, rows)
    x, y = batch["x"], batch["y"]
    if not whole:
        return lambda: model.train_on_batch(x, y)
    model.optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy()
    x, y = tf.constant(x), tf.constant(y)

    @tf.function  # type: ignore[untyped-decorator,unused-ignore]
    def step() -> Any:
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        model.optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
        return value

    return lambda: step().numpy()


def measure(step: Callable[[], object], seconds: float) -> dict[str, float]:
    """Median milliseconds of a step after two to warm up, and the process's peak memory in MB."""
    for _ in range(2):
        step()
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < 5 or time.monotonic() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return {"ms": statistics.median(times) * 1000, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """This process's largest resident memory in MB (Linux).

    It is not from getrusage, whose figure includes the parent's memory from before exec.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def work(kind: str, model: str, batch: int, threads: int, plan: Path, seconds: float) -> None:
    """Make one measurement in this process, and print it as JSON."""
    step = plan_step(plan, threads) if kind == "plan" else keras_step(model, batch, threads, kind == "function")
    print(json.dumps(measure(step, seconds)))


def in_a_process(*arguments: object) -> dict[str, float]:
    """Call `work` in a process of its own; raises CalledProcessError when it fails."""
    done = subprocess.run(
        [sys.executable, __file__, "--work", *map(str, arguments)], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(model: str, batch: int, threads: int, plan: Path, seconds: float) -> dict[str, Any]:
    """Measure one row of the result: the three kinds of step for one model, batch size and number of threads."""
    found = {kind: in_a_process(kind, model, batch, threads, plan, seconds) for kind in KINDS}
    return {
        "model": model,
        "batch": batch,
        "threads": threads,
        **{f"{kind}_ms": round(found[kind]["ms"], 3) for kind in KINDS},
        "ratio": round(found["plan"]["ms"] / found["function"]["ms"], 3),
        "peak_mb": round(found["plan"]["peak_mb"], 1),
    }


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names of umbel_sim.reference_models")
    parser.add_argument("--batches", nargs="+", type=int, default=[10, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each measurement")
    parser.add_argument("--work", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        kind, model, batch, threads, plan, seconds = arguments.work
        work(kind, model, int(batch), int(threads), Path(plan), float(seconds))
        return 0
    from umbel_server.compiler import compile_task
    from umbel_sim.reference_models import REFERENCE_MODELS

    if unknown := sorted(set(arguments.models) - set(REFERENCE_MODELS)):
        parser.error(f"unknown models {', '.join(unknown)}; choose from {', '.join(REFERENCE_MODELS)}")
    rows = []
    cases = [(model, batch) for model in arguments.models for batch in arguments.batches]
    console = Console()
    with tempfile.TemporaryDirectory(prefix="umbel-step-") as folder:
        for model, batch in track(cases, "compiling and measuring", console=console):
            plan = Path(folder) / f"{model}-{batch}.plan"
            compile_task(replace(REFERENCE_MODELS[model], batch_size=batch), plan, check=False)
            rows += [row(model, batch, threads, plan, arguments.seconds) for threads in arguments.threads]
    table = Table(*(name.replace("_", " ") for name in rows[0]), title="one training step")
    for entry in rows:
        table.add_row(*map(str, entry.values()))
    console.print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
