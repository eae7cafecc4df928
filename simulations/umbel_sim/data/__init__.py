"""Sources of examples for simulations: data sets by name, files and folders. One source a file."""

from pathlib import Path

from umbel import Task
from umbel.errors import UmbelError
from umbel_sim.data.dataset import Dataset, hold_out
from umbel_sim.data.digits import digits
from umbel_sim.data.function import FunctionFleet
from umbel_sim.data.images import images
from umbel_sim.data.keras_datasets import NAMES, keras_dataset
from umbel_sim.data.npz import npz
from umbel_sim.data.parquet import parquet
from umbel_sim.data.shakespeare import shakespeare
from umbel_sim.data.tf_data import tf_data

__all__ = ["SOURCES", "Dataset", "FunctionFleet", "hold_out", "load", "tf_data"]

SOURCES = f"digits, {', '.join(NAMES)}, shakespeare, shakespeare:FILE, FILE.npz, FILE.parquet or a folder of images"
"""What `load` understands, for a command's help."""


def load(source: str, task: Task | None = None) -> Dataset:
    """The data set `source`, its arrays named, shaped and cast for the task (unchanged without a task).

    Raises UmbelError when there is no such data set, it cannot be read or fetched, or does not fit the task.
    """
    if source == "digits":
        return digits(task)
    if source in NAMES:
        return keras_dataset(source, task)
    kind, _, rest = source.partition(":")
    if kind == "shakespeare":
        return shakespeare(Path(rest).expanduser() if rest else None, task)
    path = Path(source).expanduser()
    if source and path.is_dir():
        return images(path, task)
    match path.suffix.lower():
        case ".npz":
            return npz(path, task)
        case ".parquet":
            return parquet(path, task)
    raise UmbelError(f"no data called {source!r}; there are {SOURCES}")
