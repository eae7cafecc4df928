"""Updates as they arrived from devices: read from their blobs, with what the devices say of them."""

from sqlalchemy import and_, bindparam, select

from umbel.errors import TensorError, UmbelError
from umbel.messages import Blob
from umbel.metrics import sums_of
from umbel.updates import Pipeline
from umbel_server.aggregation import Buffers, Update, WeightPieces, from_blob
from umbel_server.aggregation.device_metrics import check_metrics
from umbel_server.devices import register as devices
from umbel_server.runs.fleet_run import FleetRun
from umbel_server.runs.port import Arrival
from umbel_server.storage.blobs import MissingBlob
from umbel_server.storage.database import ASSIGNMENTS, DEVICES

NO_UPDATE = Update({}, WeightPieces({}, {}))
_ARRIVED = (
    select(
        *ASSIGNMENTS.c["device", "command", "update", "bytes_up", "examples", "metrics"],
        DEVICES.c.state,
        DEVICES.c.examples.label("reported"),
    )
    .join_from(
        ASSIGNMENTS,
        DEVICES,
        and_(ASSIGNMENTS.c.population == DEVICES.c.population, ASSIGNMENTS.c.device == DEVICES.c.id),
    )
    .where(ASSIGNMENTS.c.id == bindparam("of"))
)


class Arrivals:
    """Reads the updates of one run into memory that is used again."""

    def __init__(self, run: FleetRun) -> None:
        self._run = run
        self._buffers, self._pipeline = Buffers(), Pipeline(run.plan.manifest.weights)

    def close(self) -> None:
        """Free the memory that updates were read into."""
        self._buffers.close()

    def read(self, id: str) -> Arrival:
        """The update of an assignment; raises UmbelError when its metrics or its blob cannot be used."""
        with self._run.fleet.database.transaction() as session:
            row = session.execute(_ARRIVED, {"of": id}).one()
        if row.state != devices.ACTIVE:
            raise UmbelError(f"{row.device} was {row.state} before its update was folded")
        check_metrics(row.device, row.metrics, self._run.plan.manifest.metrics)
        metrics = sums_of(row.metrics)
        most = self._pipeline.largest
        if row.bytes_up > most:  # it is read whole, so its size is checked first
            raise UmbelError(f"the update of {row.device} should have at most {most} bytes, it has {row.bytes_up}")
        try:
            update = self._read(row.command, Blob(row.update, row.bytes_up)) if row.update else NO_UPDATE
        except TensorError as error:
            raise UmbelError(f"the update of {row.device}: {error}") from error
        return Arrival(row.device, update, row.examples, metrics, row.reported)

    def _read(self, command: str, blob: Blob) -> Update:
        received = self._run.fleet.received_blobs
        try:
            return from_blob(self._pipeline, received.of(command), blob, self._buffers)
        except MissingBlob:  # the device may have answered with a blob that its population owns
            owned = received.owned(self._run.population, blob.sha256)
            return from_blob(self._pipeline, owned, blob, self._buffers)
