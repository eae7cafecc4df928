"""The error of each device's clock, taken from the times in what the device signs.

The register keeps the error. The log warns when a clock is wrong by more than the bound of `umbel.skew`.
"""

import logging
import threading

from sqlalchemy import func, select, update

from umbel.messages import MOST_SKEW
from umbel.skew import is_wrong, sentence
from umbel_server.storage.database import Database, Device

log = logging.getLogger("umbel.devices")

NOTICED_SECONDS = 5.0
"""A change smaller than this comes from the message's travel time, and is not written to the database."""


class Clocks:
    """The clock errors of all devices. Safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        off = select(Device.population, Device.id, Device.skew).where(func.abs(Device.skew) >= NOTICED_SECONDS)
        with database.transaction() as session:
            self._off = {(population, device): skew for population, device, skew in session.execute(off)}

    def measured(self, population: str, device: str, skew: float) -> None:
        """Record that a device's clock is `skew` seconds ahead of the server's.

        A change of less than NOTICED_SECONDS is ignored. The log says once that a clock has become wrong or right.
        """
        name, skew = (population, device), max(-MOST_SKEW, min(MOST_SKEW, skew))
        with self._lock:
            before = self._off.get(name, 0.0)
            if abs(skew - before) < NOTICED_SECONDS:
                return
            self._off[name] = skew
        device_row = (Device.population == population, Device.id == device)
        with self._database.transaction() as session:
            session.execute(update(Device).where(*device_row).values(skew=skew))
        if is_wrong(skew) and not is_wrong(before):
            log.warning("the clock of device %s/%s is %s", *name, sentence(skew))
        elif is_wrong(before) and not is_wrong(skew):
            log.info("the clock of device %s/%s is right again", *name)

    def asked(self, population: str, device: str, skew: float) -> None:
        """Record the clock error that the time of a signed request shows, when this error or the one before is too large.

        A smaller error is not recorded: a device corrects the time of its requests by the server's.
        """
        with self._lock:
            before = self._off.get((population, device), 0.0)
        if is_wrong(skew) or is_wrong(before):
            self.measured(population, device, skew)

    def signed_at(self, population: str, device: str, ahead: float) -> None:
        """Record the clock error that a message signed `ahead` seconds in the future shows.

        A message signed in the past proves nothing: it may have travelled for that long.
        """
        if is_wrong(ahead) and ahead > 0:
            self.measured(population, device, ahead)
