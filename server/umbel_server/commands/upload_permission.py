"""Upload permission: a device may upload the blob that its own open command asks for, up to the largest size of that blob."""

from sqlalchemy import bindparam, select

from umbel import messages
from umbel.errors import UmbelError
from umbel.messages import Export, Infer, Train
from umbel.plan import PLACED
from umbel_server.aggregation import largest_update
from umbel_server.commands.outbox import OPEN
from umbel_server.commands.received_blobs import ReceivedBlobs, uploads_folder
from umbel_server.models.plans import Plans
from umbel_server.security.keyring import Keyring
from umbel_server.storage.database import COMMANDS, Database
from umbel_server.storage.partial_uploads import Sender

_ASKED = select(*COMMANDS.c["population", "device", "kind", "state", "token"]).where(COMMANDS.c.id == bindparam("of"))


class UploadNotAllowed(UmbelError):
    """An upload that no open command of its sender asks for."""


class UploadPermission:
    """Decides who may upload how much; an answer of unknown size may have `most` bytes."""

    def __init__(
        self, database: Database, received_blobs: ReceivedBlobs, plans: Plans, keys: Keyring, most: int
    ) -> None:
        self._database, self._received_blobs, self._plans = database, received_blobs, plans
        self._keys, self._most = keys, most
        self._sizes: dict[tuple[str, str], int] = {}

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
        most = min(self._most, self._largest(row.kind, row.token))
        return Sender(uploads_folder(command), self._received_blobs.of(command), most, population=population)

    def _largest(self, kind: str, token: bytes) -> int:
        body = messages.decode_command(token, self._keys.lineage.all).body
        match body:
            case Infer():
                return self._most
            case Train():
                return self._size(body.plan.sha256, "")
            case Export():
                return self._size(body.plan.sha256, PLACED[body.variant])
            case _:
                raise UploadNotAllowed(f"a command of kind {kind} is answered without an upload; send its answer alone")

    def _size(self, plan: str, file: str) -> int:
        """The bytes of a plan's file, or of its largest update without one; remembered, as opening a plan reads it all."""
        if (plan, file) not in self._sizes:
            manifest = self._plans.get(plan).manifest
            self._sizes[plan, file] = manifest.files[file].size if file else largest_update(manifest.weights)
        return self._sizes[plan, file]
