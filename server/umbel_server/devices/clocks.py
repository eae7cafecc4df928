"""How far the clocks of devices are off, from what they sign: noted in the register, and warned of beyond the bound."""

import logging
import threading

from sqlalchemy import func, select, update

from umbel.messages import MOST_SKEW
from umbel.skew import is_wrong, sentence
from umbel_server.storage.database import Database, Device

log = logging.getLogger("umbel.devices")

NOTICED_SECONDS = 5.0
"""Less is the way and the waiting of a message, and not worth a transaction."""


class Clocks:
    """The clocks of all devices. For any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        off = select(Device.population, Device.id, Device.skew).where(func.abs(Device.skew) >= NOTICED_SECONDS)
        with database.transaction() as session:
            self._off = {(population, device): skew for population, device, skew in session.execute(off)}

    def measured(self, population: str, device: str, skew: float) -> None:
        """A device's clock is `skew` seconds ahead; noted when that is news, and said once while it is beyond the bound."""
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
        """A request was signed `skew` seconds from now: by a clock as it is beyond the bound, within it by a corrected one."""
        with self._lock:
            before = self._off.get((population, device), 0.0)
        if is_wrong(skew) or is_wrong(before):
            self.measured(population, device, skew)

    def signed_at(self, population: str, device: str, ahead: float) -> None:
        """Something was signed `ahead` seconds from now by its sender's clock; only the future proves a wrong one: the rest may
        have been on its way for so long."""
        if is_wrong(ahead) and ahead > 0:
            self.measured(population, device, ahead)
