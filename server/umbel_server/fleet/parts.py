"""The parts of the server that a run works with."""

from dataclasses import dataclass

from umbel_server.commands.exchange import Exchange
from umbel_server.commands.outbox import Outbox
from umbel_server.commands.received_blobs import Received
from umbel_server.devices.register import Devices
from umbel_server.limits.quotas import Quotas
from umbel_server.storage.blobs import Blobs
from umbel_server.storage.database import Database
from umbel_server.storage.holdings import Holdings


@dataclass(frozen=True)
class Fleet:
    """The database, the register of devices, what goes out to them and comes in, the blobs, whose they are,
    how much a population may use, and what came in."""

    database: Database
    devices: Devices
    outbox: Outbox
    exchange: Exchange
    blobs: Blobs
    holdings: Holdings
    quotas: Quotas
    received: Received
