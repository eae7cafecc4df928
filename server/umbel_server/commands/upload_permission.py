"""Upload permission: a device may upload the blob that its own open command asks for, up to the largest size of that blob."""

import functools

from sqlalchemy import bindparam, select

from umbel import messages
from umbel.errors import UmbelError
from umbel_server.commands import kinds
from umbel_server.commands.outbox import OPEN
from umbel_server.commands.received_blobs import ReceivedBlobs, uploads_folder
from umbel_server.commands.upload_sizes import UploadSizes
from umbel_server.security.keyring import Keyring
from umbel_server.storage.database import COMMANDS, Database
from umbel_server.storage.partial_uploads import Sender

_ASKED = select(*COMMANDS.c["population", "device", "kind", "state", "token"]).where(COMMANDS.c.id == bindparam("of"))


class UploadNotAllowed(UmbelError):
    """An upload that no open command of its sender asks for."""


class UploadPermission:
    """Decides who may upload how much; no upload has more than the `most` bytes of `sizes`."""

    def __init__(self, database: Database, received_blobs: ReceivedBlobs, keys: Keyring, sizes: UploadSizes) -> None:
        self._database, self._received_blobs, self._keys, self._sizes = database, received_blobs, keys, sizes

    def sender(self, population: str, device: str, command: str) -> Sender:
        """The sender of an upload in answer to a command; raises UploadNotAllowed unless it is open and that device's."""
        if not command:
            raise UploadNotAllowed("an upload names the command that it answers; upgrade this device's agent")
        with self._database.transaction() as session:
            row = session.execute(_ASKED, {"of": command}).one_or_none()
        if row is None or (row.population, row.device) != (population, device):
            raise UploadNotAllowed(
                f"no command {command[:64]!r} was given to this device; upload for its own commands only"
            )
        if row.state not in OPEN:
            raise UploadNotAllowed(
                f"command {command} is over ({row.state}), nothing is uploaded for it any more; drop it and wait for the next"
            )
        most = min(self._sizes.most, self._largest(row.kind, row.token))
        count = functools.partial(self._received_blobs.count_whole, population, command)
        store = self._received_blobs.of(command)
        return Sender(uploads_folder(command), store, most, population=population, count=count)

    def _largest(self, name: str, token: bytes) -> int:
        body = messages.decode_command(token, self._keys.lineage.all).body
        if (upload := kinds.named(name).upload) is None:
            raise UploadNotAllowed(f"a command of kind {name} is answered without an upload; send its answer alone")
        return upload.largest(body, self._sizes)
