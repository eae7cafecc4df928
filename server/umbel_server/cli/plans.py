"""Plans: compile one on this machine."""

import math
from pathlib import Path
from typing import Annotated

import typer

from umbel.keras_import import import_keras
from umbel.plan import Plan
from umbel.task import load_task
from umbel_server.cli.compile_progress import progress_of
from umbel_server.cli.options import JsonOption
from umbel_server.cli.output import console, plain, print_json, size_text


def add_commands(app: typer.Typer) -> None:
    """Add compile."""
    app.command("compile")(compile_)


def compile_(
    file: Annotated[Path, typer.Argument(help="a Python file that defines one umbel.Task")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the plan to write (default: NAME.plan)")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the initial weights")] = 0,
    check: Annotated[bool, typer.Option(help="compare ten training steps with Keras, and fail if they differ")] = True,
    min_runtime: Annotated[
        str, typer.Option(help="oldest LiteRT or tflite-runtime of the devices; an op that needs a newer one is named")
    ] = "2.14",
    json: JsonOption = False,
) -> None:
    """Compile a task into a plan that devices train without TensorFlow."""
    if file.is_file():
        import_keras()
    task = load_task(file)
    path = output or Path(f"{task.name}.plan")
    from umbel_server.compiler import compile_task

    with progress_of(task.name) as progress:
        plan = compile_task(task, path, seed=seed, check=check, min_runtime=min_runtime, progress=progress)
    if json:
        manifest = plan.manifest
        print_json({"plan": str(path), "sha256": plan.sha256, "parity": manifest.parity, "worst": manifest.worst})
        return
    _print_plan(plan)


def _print_plan(plan: Plan) -> None:
    weights = sum(math.prod(weight.shape) for weight in plan.manifest.weights)
    console.print(f"[bold]{plain(str(plan.path))}[/]: {weights:,} weights in {len(plan.manifest.weights)} tensors")
    for name, file in sorted(plan.manifest.files.items()):
        console.print(f"  {plain(name):22} {size_text(file.size):>10}", highlight=False)
    for quantity, error in plan.manifest.parity.items():
        worst = plan.manifest.worst.get(quantity, "")
        which = f" ({plain(worst)})" if error > 0 and worst else ""
        console.print(f"  differs from Keras by at most {error:.1e} in {quantity}{which}", highlight=False)
