"""Examples in a Parquet file: a row an example, a column an input or target."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel import Task
from umbel.errors import UmbelError
from umbel_sim.data.dataset import Dataset
from umbel_sim.data.fitting import specs_of
from umbel_sim.data.npz import KEY, from_arrays


def parquet(path: Path, task: Task | None = None) -> Dataset:
    """Columns by the names of inputs and targets: numbers, or (nested) lists of one length for tensors; and optionally
    `key`, each example's owner. Nothing is held out; see `hold_out`.

    Raises UmbelError when the file is no such file, has gaps or does not fit the task.
    """
    if not path.is_file():
        raise UmbelError(f"{path}: no such file; expected a Parquet file of examples")
    try:
        import pyarrow as arrow
        import pyarrow.parquet as files
    except ImportError as error:
        raise UmbelError(f"{path}: reading Parquet needs pyarrow: pip install 'umbel[parquet]'") from error
    try:
        file = files.ParquetFile(path)
        wanted = [name for name in file.schema_arrow.names if task is None or name in {*specs_of(task), KEY}]
        table = file.read(columns=wanted)
    except (arrow.ArrowException, OSError) as error:
        raise UmbelError(f"{path}: expected a Parquet file, could not read one: {error}") from error
    arrays = {name: _array(table.column(name).combine_chunks(), path, name) for name in wanted}
    key = arrays.pop(KEY, None)
    return from_arrays(str(path), arrays, {}, key, task)


def _array(column: Any, path: Path, name: str) -> NDArray[Any]:
    """The column as one array: every level of lists is an axis."""
    import pyarrow as arrow

    if isinstance(column, arrow.ChunkedArray):
        column = arrow.concat_arrays(column.chunks) if column.num_chunks else arrow.array([], column.type)
    rows, shape = len(column), []
    while isinstance(column, arrow.ListArray | arrow.LargeListArray | arrow.FixedSizeListArray):
        _complete(column, path, name)
        lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) > 1:
            raise UmbelError(
                f"{path}: the lists of column {name!r} should have one length, got {lengths[0]} to {lengths[-1]}; "
                "cut or fill them"
            )
        shape.append(int(lengths[0]) if len(lengths) else 0)
        column = column.flatten()
    _complete(column, path, name)
    values = column.to_numpy(zero_copy_only=False)
    return np.asarray(values.astype(str) if values.dtype == object else values).reshape(rows, *shape)


def _complete(column: Any, path: Path, name: str) -> None:
    if column.null_count:
        raise UmbelError(
            f"{path}: column {name!r} has {column.null_count} empty values; fill them or leave their rows out"
        )
