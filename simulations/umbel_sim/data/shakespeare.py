"""A play, one owner a speaking role: the next character from the 80 before it (LEAF: Caldas et al., arXiv 1812.01097).

The vocabulary is fixed, so models of different texts agree: 0 fills up, 1 is any other character, and 2 to 81 are the 80
characters of LEAF in its order. A model's embedding needs VOCABULARY_SIZE rows (LEAF's own models have 80, others 90).
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from umbel import Task
from umbel.errors import UmbelError
from umbel.keras_import import import_keras
from umbel_sim.data.dataset import Dataset
from umbel_sim.data.fitting import Arrays, pair, specs_of, target_names
from umbel_sim.data.folders import VARIABLE, keras_cache, own_file, own_place

CHARACTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
FILLING, OTHER, FIRST = 0, 1, 2
VOCABULARY_SIZE = FIRST + len(CHARACTERS)
WINDOW = 80
HELD_OUT = 5
"""The last 1/5 of what a role says is held out."""
FILES = ("shakespeare.txt", "tinyshakespeare.txt")
URL = "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_BLANK_LINE = re.compile(r"\n[ \t\r]+\n")
_ROLE = re.compile(r"(?:\A|(?<=\n\n))[ \t]*([^\s:][^\n:]*):[ \t]*(?:\n|\Z)")


def from_keras() -> Path:
    """The text that TensorFlow's tutorials use, 1.1 MB of it, downloaded into Keras's cache."""
    import_keras()
    import keras

    # The progress of a download is no part of a command's output.
    with contextlib.redirect_stdout(sys.stderr):
        return Path(keras.utils.get_file(FILES[0], URL, file_hash=SHA256))


def shakespeare(path: Path | None = None, task: Task | None = None, fetch: Callable[[], Path] = from_keras) -> Dataset:
    """x: int32[80] characters; y: int32, the next character, or int32[80], the characters one place on, as the task's
    target is. The window is as long as the task's input.

    A single target has an example for every character, whose window is filled from the left at a role's first ones; of
    sequences there is one every 80 characters, the last of a role reaching back to be whole. The last fifth of each role's
    text is held out, and no window crosses the border. The text at `path` has paragraphs of `ROLE NAME:` and lines; without
    one it is shakespeare.txt or tinyshakespeare.txt of the folder of UMBEL_DATA, or what `fetch` gives.
    """
    path = path or own_file(*FILES) or _fetched(fetch)
    window, sequences = _form(task)
    roles = spoken(path)
    train, keys = _examples((text[: len(text) - len(text) // HELD_OUT] for text in roles.values()), window, sequences)
    test, _ = _examples((text[len(text) - len(text) // HELD_OUT :] for text in roles.values()), window, sequences)
    what = "shakespeare"
    return Dataset(
        what, pair(task, what, *train), _test(task, what, *test), keys, keys, tuple(roles), target_names(task)
    )


def spoken(path: Path) -> dict[str, str]:
    """All that each role says, by its name, in the order of the text; raises UmbelError when no role speaks."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UmbelError(f"{path}: expected a text in UTF-8, could not read it: {error}") from error
    parts = _ROLE.split(_BLANK_LINE.sub("\n\n", text.strip()))
    roles: dict[str, list[str]] = {}
    for name, speech in zip(parts[1::2], parts[2::2], strict=True):
        roles.setdefault(name.strip(), []).append(speech.strip())
    said = {name: text for name, speeches in roles.items() if len(text := "\n".join(filter(None, speeches))) > 1}
    if not said:
        raise UmbelError(
            f"{path}: expected paragraphs that begin with a line 'ROLE NAME:' and what the role says, found none"
        )
    return said


def encode(text: str) -> NDArray[np.int32]:
    """int32[len(text)] places in the vocabulary."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    table = np.full(128, OTHER, np.int32)
    table[[ord(character) for character in CHARACTERS]] = np.arange(FIRST, VOCABULARY_SIZE)
    return np.where(codes < 128, table[np.minimum(codes, 127)], OTHER).astype(np.int32)


def _form(task: Task | None) -> tuple[int, bool]:
    """Length of the window, and whether targets are sequences."""
    specs = list(specs_of(task).values())
    if task is None or len(specs) != 2:
        return WINDOW, False  # more inputs or targets are refused where they are named
    x, y = specs
    if len(x.shape) != 1 or y.shape not in ((), (1,), x.shape):
        raise UmbelError(
            f"shakespeare: task {task.name} should take characters, int32[{WINDOW}], and aim at the next one, int32[], or at "
            f"those one place on, int32[{WINDOW}]; it takes {x.dtype}{list(x.shape)} and aims at {y.dtype}{list(y.shape)}"
        )
    return x.shape[0], y.shape == x.shape


def _examples(
    texts: Iterable[str], window: int, sequences: bool
) -> tuple[tuple[NDArray[np.int32], NDArray[np.int32]], NDArray[np.int64]]:
    """(x, y) of all texts, and the number of the text that each example is from."""
    xs, ys, counts = [np.zeros((0, window), np.int32)], [], []
    for text in texts:
        filled = np.concatenate([np.full(window, FILLING, np.int32), encode(text)])
        windows = np.lib.stride_tricks.sliding_window_view(filled, window)
        # A window at s ends at the character s - 1 and is followed by the character s.
        starts = np.arange(len(text))
        if sequences:
            last = len(text) - 1
            starts = np.unique(np.minimum(np.arange(window, last + window, window), last))
        xs.append(windows[starts])
        ys.append(windows[starts + 1] if sequences else filled[starts + window])
        counts.append(len(starts))
    y = np.concatenate(ys) if ys else np.zeros(0, np.int32)
    return (np.concatenate(xs), y), np.repeat(np.arange(len(counts)), counts)


def _test(task: Task | None, what: str, x: NDArray[np.int32], y: NDArray[np.int32]) -> Arrays:
    return pair(task, f"{what}, held out", x, y) if len(x) else {}


def _fetched(fetch: Callable[[], Path]) -> Path:
    try:
        return fetch()
    except UmbelError:
        raise
    except Exception as error:  # Keras raises bare Exceptions when a download fails
        raise UmbelError(
            f"shakespeare is neither in {own_place(' or '.join(FILES))} nor in {keras_cache()}, and could not be fetched: "
            f"{error}; name a text with speaking roles, shakespeare:FILE, or put one into a folder: export {VARIABLE}=FOLDER"
        ) from error
