"""A folder of images with one sub-folder a class."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel import Task
from umbel.errors import UmbelError
from umbel_sim.data.dataset import Dataset
from umbel_sim.data.fitting import Arrays, pair, pair_names, target_names, unit_pixels

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def images(folder: Path, task: Task | None = None) -> Dataset:
    """`folder/CLASS/*.png` (or jpg, ...): y is the place of CLASS among the sorted names; with sub-folders `train` and `test`
    that hold the classes, the latter is held out, else nothing is.

    Images are resized to the task's input (grey for one channel, RGB for three; without a task as the first image is) and
    are float32 in [0, 1] unless it wants integers. Raises UmbelError when there are none, or one cannot be read.
    """
    inner = folder / "train", folder / "test"
    parts = inner if all(part.is_dir() for part in inner) else (folder,)
    names = _classes(parts[0])
    if len(parts) == 2 and (unknown := sorted(set(_classes(parts[1])) - set(names))):
        raise UmbelError(f"{parts[1]}: class {unknown[0]!r} is not in {parts[0]}; give both folders the same classes")
    size = _size(task, folder)
    train = _read(parts[0], names, size)
    if train is None:
        raise UmbelError(
            f"{folder}: expected images in one sub-folder a class, found none in {len(names)} sub-folders; "
            f"Umbel reads {', '.join(sorted(SUFFIXES))}"
        )
    test = _read(parts[1], names, train[0].shape[1:]) if len(parts) == 2 else None
    return Dataset(
        str(folder),
        _fitted(task, str(folder), *train),
        _fitted(task, str(folder), *test) if test else {},
        train[1].astype(np.int64),
        targets=target_names(task),
    )


def _fitted(task: Task | None, what: str, x: NDArray[Any], y: NDArray[np.int32]) -> Arrays:
    spec = None if task is None else task.input_specs[pair_names(task, what)[0]]
    return pair(task, what, unit_pixels(x, spec), y)


def _size(task: Task | None, folder: Path) -> tuple[int, ...] | None:
    """[height, width, channels] that the task's input has; None without a task."""
    if task is None:
        return None
    shape = task.input_specs[pair_names(task, str(folder))[0]].shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)):
        raise UmbelError(
            f"{folder}: task {task.name} should take images, [height, width] or [height, width, 1 or 3]; it takes {list(shape)}"
        )
    return shape if len(shape) == 3 else (*shape, 1)


def _classes(folder: Path) -> list[str]:
    """The sorted names of the sub-folders; hidden ones, such as .ipynb_checkpoints, are no classes."""
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
    )


def _read(
    folder: Path, names: list[str], size: tuple[int, ...] | None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]] | None:
    """uint8[n, height, width, channels] and int32[n] of all images; None when there is none."""
    files = [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not files:
        return None
    first = _image(files[0][0], size)
    x = np.empty((len(files), *first.shape), np.uint8)
    for row, (path, _) in enumerate(files):
        x[row] = _image(path, first.shape)
    return x, np.array([label for _, label in files], np.int32)


def _eight_bits(path: Path, image: Any) -> Any:
    """The image with 8 bits a channel; Pillow's own conversion makes all 16-bit grey above 255 white."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and path.suffix.lower() == ".png"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
        return Image.fromarray(np.round(grey / 257).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        raise UmbelError(f"{path}: expected 8 or 16 bits a channel, got pixels of mode {image.mode}; convert the image")
    return image


def _image(path: Path, size: tuple[int, ...] | None) -> NDArray[np.uint8]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UmbelError(f"{path}: reading images needs Pillow: pip install 'umbel[sim]'") from error
    try:
        with Image.open(path) as image:
            upright = _eight_bits(path, ImageOps.exif_transpose(image))
            if size is None:
                size = (upright.height, upright.width, 1 if upright.mode in ("1", "L") else 3)
            channels = upright.convert("L" if size[2] == 1 else "RGB")
            if channels.size != (size[1], size[0]):
                channels = channels.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(channels, np.uint8).reshape(size)
    except (OSError, ValueError) as error:
        raise UmbelError(f"{path}: expected an image, could not read it: {error}; mend or remove it") from error
