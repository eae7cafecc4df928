"""Commands about releases: releases list|show|export."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from umbel.errors import UmbelError
from umbel.examples import load_examples
from umbel.task import Task
from umbel_server import answers
from umbel_server.cli.checkpoints import (
    all_weights,
    check_keras_file,
    checkpoint_of,
    plan_of,
    save_keras,
    task_of,
)
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, RunArgument, StateOption
from umbel_server.cli.output import ago, console, duration_text, plain, print_json, print_table, size_text
from umbel_server.client import Client
from umbel_server.models.variants import VARIANTS, WITHOUT_EXAMPLES, check_variants

EXPORT_SECONDS = 600.0


def add_commands(app: typer.Typer) -> None:
    """Add the group releases."""
    releases = typer.Typer(no_args_is_help=True, help="Make TFLite releases from checkpoints.")
    releases.command("list")(list_releases)
    releases.command("show")(show_release)
    releases.command("export")(export)
    app.add_typer(releases, name="releases")


def list_releases(state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """List the releases, newest first."""
    rows = open_client(state).releases.list()
    if json:
        print_json(rows)
        return
    print_table(
        ("release", "run", "round", "files", "made"),
        ((row.id, row.run, str(row.round), _files_text(row), ago(row.created)) for row in rows),
        "No releases yet; make one with 'umbel releases export RUN'.",
    )


def show_release(
    release: Annotated[str, typer.Argument(help="the release's id")],
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Show a release: its files, and how they compare with the plan and Keras."""
    row = open_client(state).releases.show(release)
    if json:
        print_json(row)
        return
    console.print(f"release [bold]{row.id}[/] of {plain(row.task)}, run {row.run}, round {row.round}")
    _print_files(row)


def export(
    run: RunArgument,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help=f"a file to make: {', '.join(VARIANTS)}; repeatable (default: {', '.join(WITHOUT_EXAMPLES)})"
        ),
    ] = None,
    representative: Annotated[
        Path | None, typer.Option(help="an .npz of a few hundred inputs that calibrates int8-full, and adds it")
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="an .npz to measure the files on (default: the run's held-out examples)")
    ] = None,
    task: Annotated[
        Path | None, typer.Option(help="the run's task file: Keras evaluates the checkpoint here, too")
    ] = None,
    keras: Annotated[
        Path | None, typer.Option(help="also save the checkpoint as this .keras model; needs --task")
    ] = None,
    round: Annotated[int | None, typer.Option(help="the checkpoint's round (default: the newest)")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="also write the files into this folder")] = None,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Make a release from a checkpoint: TFLite files, measured beside the plan (and Keras), and signed."""
    client = open_client(state)
    variants = list(dict.fromkeys(variant or WITHOUT_EXAMPLES))
    if representative is not None and "int8-full" not in variants:
        variants.append("int8-full")
    check_variants(variants, representative is not None)
    if keras is not None:
        check_keras_file(keras)
        if task is None:
            raise UmbelError(f"{keras}: a Keras model is made by the run's task; give --task FILE.py")
    body: dict[str, Any] = {"round": round, "variants": variants}
    population = ""
    if representative is not None or examples is not None:
        population = client.runs.show(run).population
    if representative is not None:
        body["representative"] = client.put_blob(_read(representative, "a representative set"), population)
    if examples is not None:
        body["examples"] = client.put_blob(_read(examples, "examples"), population)
    if task is not None:
        details = client.runs.show(run)
        made = task_of(details, task)
        if keras is not None:
            checkpoint = checkpoint_of(details, round)
            save_keras(client, details, checkpoint, made, keras)
            body["round"] = checkpoint.round
        if keras is None or examples is not None or details.settings.get("held_out"):
            body |= _ask_keras(client, details, round, made, examples)
    row = client.releases.export(run, EXPORT_SECONDS, **body)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name, file in row.files.items():
            (output / f"{row.id}.{name}.tflite").write_bytes(client.get_blob(file.sha256))
    if json:
        print_json(row)
        return
    console.print(f"release [bold]{row.id}[/]")
    _print_files(row)


def _read(path: Path, what: str) -> bytes:
    if not path.is_file():
        raise UmbelError(f"{path}: expected {what} in an .npz file, found no such file")
    return path.read_bytes()


def _ask_keras(
    client: Client, run: answers.RunDetails, round: int | None, task: Task, examples: Path | None
) -> dict[str, Any]:
    """The checkpoint's round, and Keras's metrics for it; Keras runs in this process, not in the server's."""
    checkpoint, held_out = checkpoint_of(run, round), run.settings.get("held_out")
    if examples is None and not held_out:
        raise UmbelError(
            "--task compares with Keras on held-out examples, and the run has none: give --examples FILE.npz"
        )
    with tempfile.TemporaryDirectory() as name:
        plan, rows = plan_of(client, run, Path(name)), examples or Path(name) / "held-out.npz"
        if examples is None:
            rows.write_bytes(client.get_blob(str(held_out)))
        from umbel_server.compiler.keras_eval import evaluate

        weights = all_weights(client, checkpoint, plan)
        what = str(examples or "the run's held-out examples")
        return {
            "round": checkpoint.round,
            "keras": evaluate(task, weights, load_examples(rows, plan.manifest, what)),
        }


def _files_text(row: answers.Release) -> str:
    files = row.files
    return ", ".join(f"{variant} {size_text(files[variant].size)}" for variant in VARIANTS if variant in files)


def _print_files(row: answers.Release) -> None:
    parity = row.parity
    measured = [parity.plan, parity.keras] if parity is not None else []
    known = [*measured, *(file.metrics for file in row.files.values())]
    names = list(dict.fromkeys(name for metrics in known for name in metrics))
    print_table(
        ("model", "size", *map(plain, names), "difference", "one row", "sha256"), _rows(row, parity, names), "No files."
    )
    if parity is not None:
        console.print(
            f"[dim]Measured on {parity.rows} rows. difference: the largest between an output and float32's; one row: the "
            f"median time on the server ({plain(parity.machine)}, one thread).[/]",
            highlight=False,
        )


def _rows(row: answers.Release, parity: answers.Parity | None, names: list[str]) -> Iterator[tuple[str, ...]]:
    for model, metrics in (("Keras", parity.keras), ("plan", parity.plan)) if parity is not None else ():
        if metrics:
            yield model, "", *_values(metrics, names), "", "", ""
    for variant in (variant for variant in VARIANTS if variant in row.files):
        file = row.files[variant]
        measured = "-" if file.difference is None else f"{file.difference:.1e}"
        latency = "-" if file.latency_ms is None else duration_text(file.latency_ms)
        values = _values(file.metrics, names)
        yield variant, size_text(file.size), *values, measured, latency, file.sha256[:12]


def _values(metrics: dict[str, float | None], names: list[str]) -> list[str]:
    values = [metrics.get(name) for name in names]
    return ["-" if value is None else f"{value:.4f}" for value in values]
