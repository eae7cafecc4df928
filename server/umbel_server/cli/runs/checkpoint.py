"""Commands about a run's checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from umbel.atomic import write_atomically
from umbel.errors import UmbelError
from umbel_server.cli.checkpoints import KERAS, check_keras_file, checkpoint_of, save_keras, task_of
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, RunArgument, StateOption
from umbel_server.cli.output import console, plain, print_json, size_text


def add_commands(runs: typer.Typer) -> None:
    """Add the group runs checkpoint."""
    checkpoint = typer.Typer(no_args_is_help=True, help="Get the weights of a run's rounds.")
    checkpoint.command("download")(download)
    runs.add_typer(checkpoint, name="checkpoint")


def download(
    run: RunArgument,
    round: Annotated[int | None, typer.Option(help="the checkpoint's round (default: the newest)")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="the file to write: NAME.safetensors, or NAME.keras with --task (default: RUN-rROUND.safetensors)",
        ),
    ] = None,
    task: Annotated[Path | None, typer.Option(help="the run's task file, which makes the Keras model")] = None,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Write a checkpoint into a file: trained weights by Keras's variable paths, or the whole Keras model."""
    client = open_client(state)
    details = client.runs.show(run)
    checkpoint = checkpoint_of(details, round)
    path = output or Path(f"{details.id}-r{checkpoint.round}.safetensors")
    if path.suffix == KERAS:
        check_keras_file(path)
        if task is None:
            raise UmbelError(f"{path}: a Keras model is made by the run's task; give --task FILE.py")
        save_keras(client, details, checkpoint, task_of(details, task), path)
    elif task is not None:
        raise UmbelError(f"{path}: --task makes a Keras model; name a file that ends in {KERAS}")
    else:
        write_atomically(path, client.get_blob(checkpoint.weights))
    if json:
        print_json({"run": details.id, "round": checkpoint.round, "file": str(path), "weights": checkpoint.weights})
    else:
        size = size_text(path.stat().st_size)
        console.print(f"round {checkpoint.round} of run {details.id} is in [bold]{plain(str(path))}[/] ({size})")
