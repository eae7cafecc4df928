"""The parts of the server that a run works with."""

from dataclasses import dataclass

from umbel_server.blobs import Blobs
from umbel_server.database import Database
from umbel_server.devices import Devices
from umbel_server.exchange import Exchange
from umbel_server.holdings import Holdings
from umbel_server.outbox import Outbox
from umbel_server.quotas import Quotas
from umbel_server.received import Received


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
