"""The folders of data sets that do not come with Umbel."""

import os
from pathlib import Path

VARIABLE = "UMBEL_DATA"


def own_file(*names: str) -> Path | None:
    """The first of these files in the folder that the environment variable UMBEL_DATA names, if there is one."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    return next((path for name in names if (path := Path(folder).expanduser() / name).is_file()), None)


def own_place(name: str) -> str:
    """The place where `own_file` looked, as words of a sentence."""
    folder = os.environ.get(VARIABLE)
    return f"{Path(folder) / name} ({VARIABLE})" if folder else f"a folder named by {VARIABLE} (not set)"


def keras_cache() -> Path:
    """Keras's folder of downloaded data sets."""
    home = os.environ.get("KERAS_HOME")
    return (Path(home) if home else Path.home() / ".keras") / "datasets"
