"""The command `umbel split`."""

from pathlib import Path
from typing import Annotated

import typer

from umbel_server.cli.output import console


def split(
    data: Annotated[str, typer.Argument(help="data set: digits, mnist, a .npz or .parquet file, a folder of images")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="folder for the files 0.npz, 1.npz, ...")],
    devices: Annotated[int, typer.Option(metavar="N", min=1, help="number of files")] = 10,
    partition: Annotated[
        str,
        typer.Option(
            metavar="HOW", help="how to split: iid, dirichlet:ALPHA, shards:LABELS, ... as in 'umbel simulate'"
        ),
    ] = "iid",
    min_examples: Annotated[int, typer.Option(metavar="N", min=1, help="smallest number of examples in a file")] = 1,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="seed of the split")] = 0,
    task: Annotated[Path | None, typer.Option(metavar="FILE", help="check that the examples fit this task")] = None,
) -> None:
    """Split a data set into one file of examples for each device or each of Flower's simulated nodes."""
    from umbel.keras_import import import_keras
    from umbel.task import load_task
    from umbel_sim import data as sources
    from umbel_sim.example_files import write_examples
    from umbel_sim.partitions import partition as split_by

    if task is not None:
        import_keras()  # before the task's file does, whose TensorFlow would not be silent
    dataset = sources.load(data, None if task is None else load_task(task))
    fleet = split_by(partition, dataset, devices, seed, min_examples)
    written = write_examples(fleet, output)
    console.print(f"{len(written):,} files of {dataset.name} in {output}, {written[0].name} to {written[-1].name}")
