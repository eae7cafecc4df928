"""The installed model. It is verified before it is used, and the model before it is kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from umbel import release
from umbel.atomic import write_atomically
from umbel.errors import NOT_DECODED, UmbelError
from umbel.litert import Predictor
from umbel.messages import Install
from umbel.signing import Keys
from umbel.tensors import Tensors, digest

CURRENT = "installed.json"


class Installed(msgspec.Struct, frozen=True):
    """The installed file: its release, variant and digest, and the digest of the file before it."""

    release: str
    variant: str
    sha256: str
    previous: str = ""


class InstalledModels:
    """The TFLite files in `folder`, named by digest; `installed.json` names the one in use.

    Releases of another population are not installed.
    """

    def __init__(self, folder: Path, threads: int, population: str) -> None:
        self._folder, self._threads, self._population = folder, threads, population
        self._predictor: tuple[str, Predictor] | None = None

    @property
    def installed(self) -> Installed | None:
        """The installed release, None when there is none; raises UmbelError when its record is damaged."""
        path = self._folder / CURRENT
        if not path.exists():
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=Installed)
        except NOT_DECODED as error:
            raise UmbelError(
                f"{path}: the record of the installed release is damaged ({error}); install the release again"
            ) from error

    def install(self, command: Install, model: bytes, server: Keys) -> Installed:
        """Verify the release and its file, run the file once, and install it atomically.

        Raises UmbelError, and then nothing has changed.
        """
        manifest = release.verify(command.manifest.encode(), server)
        if manifest.population != self._population:
            raise UmbelError(
                f"release {manifest.id} is for population {manifest.population}, this device belongs to {self._population}"
            )
        file = manifest.files.get(command.variant)
        if manifest.id != command.release or file is None:
            raise UmbelError(
                f"the manifest is for release {manifest.id} and has no {command.variant} file of {command.release}"
            )
        if digest(model) != file.sha256:
            raise UmbelError(
                f"the {command.variant} file should have digest {file.sha256[:12]}, it has {digest(model)[:12]}; not installed"
            )
        predictor = self._try(model)
        write_atomically(self._folder / f"{file.sha256}.tflite", model)
        before = self.installed
        previous = before.sha256 if before is not None and before.sha256 != file.sha256 else ""
        now = Installed(command.release, command.variant, file.sha256, previous)
        write_atomically(self._folder / CURRENT, msgspec.json.encode(now))
        self._predictor = (file.sha256, predictor)
        for old in self._folder.glob("*.tflite"):
            if old.stem not in (now.sha256, now.previous):
                old.unlink()
        return now

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[Installed, Tensors]:
        """The installed model's outputs; raises UmbelError when none is installed or the inputs do not fit."""
        now = self.installed
        if now is None:
            raise UmbelError("no release is installed on this device; send it an install command first")
        if self._predictor is None or self._predictor[0] != now.sha256:
            path = self._folder / f"{now.sha256}.tflite"
            if not path.is_file() or digest(model := path.read_bytes()) != now.sha256:
                raise UmbelError(f"the file of release {now.release} is missing or damaged; install it again")
            self._predictor = (now.sha256, Predictor(model, self._threads))
        return now, self._predictor[1](inputs)

    def _try(self, model: bytes) -> Predictor:
        try:
            predictor = Predictor(model, self._threads)
            answers = predictor(predictor.blank())
        except (ValueError, RuntimeError) as error:
            raise UmbelError(f"the release's file does not run on this device: {error}; not installed") from error
        if not all(np.isfinite(value).all() for value in answers.values()):
            raise UmbelError("the release's file returns values that are not finite for zeros; not installed")
        return predictor
