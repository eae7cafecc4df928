"""The parts of the server that a run works with."""

from dataclasses import dataclass

from umbel_server.commands.exchange import Exchange
from umbel_server.commands.outbox import Outbox
from umbel_server.commands.received_blobs import ReceivedBlobs
from umbel_server.devices.register import Devices
from umbel_server.limits.quotas import Quotas
from umbel_server.storage.blob_ownership import BlobOwnership
from umbel_server.storage.blobs import Blobs
from umbel_server.storage.database import Database


@dataclass(frozen=True)
class Fleet:
    """The parts of the server that work on devices needs: storage, the register, the outbox and exchange, and quotas."""

    database: Database
    devices: Devices
    outbox: Outbox
    exchange: Exchange
    blobs: Blobs
    ownership: BlobOwnership
    quotas: Quotas
    received_blobs: ReceivedBlobs
