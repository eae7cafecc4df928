"""The server's parts, assembled once for one process.

Several processes cannot serve one state folder or one database. These things work in one process only:

- `commands`: the listeners that are told of transitions and presence; the connection to the broker, under one client id;
  the thread that repeats and expires commands; messages that wait for the database; the time before which a barred
  device is not told its state again; the bytes received for open commands, and the commands whose blobs are to be removed.
- `Outbox.sequence`: the sequence numbers of commands ascend.
- `Runs`: one thread for each run, and the orders to it; `RunProgress`: what travelled for a run, added up a moment ago.
- `Devices`: the names of all devices, the keys and states of those in use, and the errors of their clocks.
- `BlobOwnership`: the rows read lately. `UploadSizes`: the sizes that follow from a plan.
- `Uploads`: the request that has each unfinished upload, and the uploads that are moving into the store.
- `Transfers`: the transfers in progress of each device.
- `RequestLimits`, `MessageLimits`, `Refusals`: the buckets of all rates, and the counts of what was refused.
- `Quotas`: the limits, the bytes that are arriving, and sums of stored bytes. `DailyBytes`: the bytes that moved today.
- `UsedTokens`: the tokens that were used. `Admins`: the tokens verified lately, and the buckets of failures.
- `Audit`: the head of the chain of entries, and the buckets of refusals. `Keyring`: the keys in the state folder.
- `Database`: with SQLite, the turn of the one transaction.
"""

import logging
import time
from collections.abc import Callable

from umbel import sealing
from umbel_server.broker.embedded import EmbeddedBroker
from umbel_server.commands.exchange import Exchange
from umbel_server.commands.outbox import Outbox
from umbel_server.commands.received_blobs import ReceivedBlobs
from umbel_server.commands.upload_permission import UploadPermission
from umbel_server.commands.upload_sizes import UploadSizes
from umbel_server.devices.invitations import Invitations
from umbel_server.devices.register import Devices
from umbel_server.fleet.key_rotation import Rotation
from umbel_server.fleet.lifecycle import Lifecycle
from umbel_server.fleet.parts import Fleet
from umbel_server.limits.concurrent_transfers import Transfers
from umbel_server.limits.daily_bytes import DailyBytes
from umbel_server.limits.quotas import Quotas
from umbel_server.limits.rates import MessageLimits, RequestLimits
from umbel_server.limits.refusals import Refusals
from umbel_server.models.plans import Plans
from umbel_server.models.releases import Releases
from umbel_server.runs.run_progress import RunProgress
from umbel_server.runs.runs import Runs
from umbel_server.security import pki
from umbel_server.security.admins import Admins
from umbel_server.security.audit.log import Audit
from umbel_server.security.used_tokens import UsedTokens
from umbel_server.state_folder import State, reachable
from umbel_server.storage.blob_ownership import BlobOwnership
from umbel_server.storage.blobs import Blobs
from umbel_server.storage.database import Database
from umbel_server.storage.partial_uploads import Uploads

log = logging.getLogger("umbel.server")


class Server:
    """Everything that `umbel serve` runs beside HTTP; `start` and `stop` are for one thread."""

    def __init__(self, state: State, clock: Callable[[], float] = time.time) -> None:
        self.state, self.clock = state, clock
        mqtt = state.config.mqtt
        certificate = state.folder if mqtt.tls else None
        self._broker = EmbeddedBroker(mqtt.host, mqtt.port, certificate) if mqtt.embedded else None
        self.broker_port = mqtt.port
        self.database = Database(state.database_url)
        self.admins = Admins(self.database, clock)
        secrets = (state.admin_token, state.enrolment_secret)
        self.audit = Audit(self.database, state.folder, state.keys, clock, secrets)
        self.refusals = Refusals(time.monotonic)
        self.request_limits = RequestLimits(state.config.limits)
        self.transfers = Transfers(state.config.limits.transfers)
        self.used_tokens = UsedTokens(clock)
        self.blobs = Blobs(state.blobs_url)
        parts, self.most = state.folder / "uploads", state.config.max_blob_mb * 1_000_000
        self.uploads = Uploads(parts, clock)
        self.ownership = BlobOwnership(self.database, self.blobs, clock)
        self.traffic = DailyBytes(self.database, clock)
        keeps = state.config.keep_updates
        self.received_blobs = ReceivedBlobs(self.database, self.blobs, self.ownership, parts, keeps)
        self.quotas = Quotas(
            self.database,
            self.ownership,
            self.traffic,
            self.refusals,
            clock,
            keeps,
            self.received_blobs.unanswered_bytes,
        )
        kept = pki.DEVICE_DAYS * 86_400.0 if state.tls else 0.0
        self.devices = Devices(self.database, clock, self.quotas.check_devices, kept)
        open_secret = state.enrolment_secret if state.config.enrolment.open else ""
        self.invitations = Invitations(self.database, self.devices, clock, open_secret)
        self.outbox = Outbox(self.database, state.keys, clock, state.config.encrypted, lambda: state.agreement_key)
        tls = state.broker_context() if mqtt.tls else None
        limits = MessageLimits(state.config.limits, self.refusals)
        self.exchange = Exchange(
            self.database,
            self.devices,
            self.outbox,
            self.received_blobs,
            limits,
            reachable(mqtt.host),
            mqtt.port,
            tls,
            self._unseal,
            clock,
            mqtt.silence_seconds,
        )
        self.plans = Plans(state.folder / "plans", self.blobs, state.keys)
        sizes = UploadSizes(self.plans, self.most)
        self.upload_permission = UploadPermission(self.database, self.received_blobs, state.keys, sizes)
        self.releases = Releases(self.database, self.blobs, self.ownership, self.quotas, state.keys, clock)
        fleet = Fleet(
            self.database,
            self.devices,
            self.outbox,
            self.exchange,
            self.blobs,
            self.ownership,
            self.quotas,
            self.received_blobs,
        )
        self.lifecycle = Lifecycle(fleet, clock)
        self.rotation = Rotation(state.keys, fleet, self.audit, clock)
        self.runs = Runs(fleet, self.plans, clock)
        self.run_progress = RunProgress(self.database, clock)

    def _unseal(self, token: bytes) -> bytes:
        return sealing.unseal(token, self.state.agreement_key)

    @property
    def problem(self) -> str:
        """Why the broker cannot be used at this moment; empty while it can."""
        if self._broker is not None and self._broker.problem:
            return self._broker.problem
        mqtt = self.state.config.mqtt
        return "" if self.exchange.is_up else f"the server is not connected to the broker at {mqtt.host}:{mqtt.port}"

    def start(self) -> None:
        """Start the embedded broker if there is one, connect, and go on with the runs that were running."""
        if self._broker is not None:
            self._broker.start()
            log.info("embedded broker on %s:%s", self.state.config.mqtt.host, self.broker_port)
        self.audit.start()
        self.ownership.measure()
        self.traffic.start()
        self.received_blobs.start()
        self.exchange.start()
        self.rotation.start()
        self.runs.go_on()

    def stop(self) -> None:
        """Leave every run where it is, disconnect, and stop the embedded broker."""
        self.runs.shutdown()
        self.rotation.stop()
        self.exchange.stop()
        self.received_blobs.stop()
        if self._broker is not None:
            self._broker.stop()
        self.audit.stop()
        self.traffic.stop()
        self.database.close()
