"""Finished updates, kept until the server has them, so that a restart does not train again."""

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from umbel.atomic import write_atomically
from umbel.messages import Blob, Trained
from umbel_edge.connection.resumable_downloads import file_digest
from umbel_edge.connection.resumable_uploads import Uploads
from umbel_edge.device.upload_records import UploadRecords

log = logging.getLogger("umbel.agent")


class PendingUpdates:
    """The updates in `folder`, by the command that they answer."""

    def __init__(self, folder: Path, records: UploadRecords, uploads: Uploads) -> None:
        self._folder, self._records, self._uploads = folder, records, uploads

    def keep(self, command: str, trained: Trained, update: bytes) -> None:
        """Keep an update before it is sent, unless it is small enough to travel in the result."""
        if trained.update.data is None:
            write_atomically(self._path(trained.update), update)
            self._records.keep_outcome(command, msgspec.json.encode(trained))

    def kept(self, command: str) -> Trained | None:
        """The outcome kept for a command; None when there is none, or its file is missing or damaged."""
        encoded = self._records.outcome_of(command)
        if encoded is None:
            return None
        trained = msgspec.json.decode(encoded, type=Trained)
        path = self._path(trained.update)
        if not path.is_file() or file_digest(path) != trained.update.sha256:
            log.warning("the update of command %s was damaged; training again", command)
            self.drop(command)
            return None
        return trained

    def send(self, command: str, trained: Trained, check: Callable[[], None], ready: Callable[[], str]) -> None:
        """Upload the update kept for a command; see Uploads.send_file."""
        if trained.update.data is None:
            self._uploads.send_file(command, trained.update, self._path(trained.update), check, ready)

    def drop(self, command: str) -> None:
        """Remove the update kept for a command."""
        if (encoded := self._records.outcome_of(command)) is not None:
            update = msgspec.json.decode(encoded, type=Trained).update
            self._path(update).unlink(
                missing_ok=True
            )  # first: forgetting needs room in the database, which may be full
            self._records.drop_outcome(command)
            self._uploads.forget(update)

    def drop_others(self, commands: set[str]) -> None:
        """Remove every update but those of `commands`."""
        for command in self._records.commands():
            if command not in commands:
                self.drop(command)
        known = {self._path(trained.update) for c in commands if (trained := self.kept(c)) is not None}
        for path in self._folder.glob("*"):
            if path not in known:
                path.unlink()

    def _path(self, update: Blob) -> Path:
        return self._folder / f"{update.sha256}.safetensors"
