"""Puts the package umbel, which lies outside this folder, into the distribution umbel-edge, and reads its version there."""

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

PLACES = ("shared/umbel", "../shared/umbel")
"""Of the package: in a source distribution, and in the repository."""


def shared_package(root: str) -> Path:
    """The folder of the package umbel. Raises FileNotFoundError where there is none."""
    for place in PLACES:
        if (folder := Path(root, place)).is_dir():
            return folder.resolve()
    raise FileNotFoundError(f"the package umbel is neither at {' nor at '.join(PLACES)} of {root}")


class SharedPackage(BuildHookInterface):  # type: ignore[misc]
    """Adds the package to a wheel, an editable one included, and to a source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the build."""
        folder = shared_package(self.root)
        if self.target_name == "sdist":
            build_data["force_include"][str(folder)] = PLACES[0]
        elif version == "standard":
            build_data["force_include"][str(folder)] = "umbel"
        else:
            build_data["force_include_editable"] = {**build_data["force_include_editable"], str(folder): "umbel"}


class SharedVersion(MetadataHookInterface):  # type: ignore[misc]
    """Reads the version of the distribution from umbel.__version__."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Before the metadata is used."""
        text = (shared_package(self.root) / "__init__.py").read_text(encoding="utf-8")
        found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
        if found is None:
            raise ValueError("umbel/__init__.py has no __version__")
        metadata["version"] = found[1]
