"""Rotation of the server's signing key: make a new key, tell the devices, sign with the new key after an overlap."""

import logging
import threading
from collections.abc import Callable, Sequence

from sqlalchemy import ColumnElement, and_, exists, func, select

from umbel import signing
from umbel.errors import UmbelError
from umbel.loops import Loop
from umbel.messages import Rekey, kind_of
from umbel_server import answers, moments
from umbel_server.devices.register import ACTIVE
from umbel_server.fleet.parts import Fleet
from umbel_server.security.audit.log import SERVER, Audit
from umbel_server.security.keyring import Keyring
from umbel_server.storage.database import Command, Device

log = logging.getLogger("umbel.keys")

SHORTEST, LONGEST = 60.0, 366 * 86_400.0
"""The shortest and longest overlap, in seconds."""
LOOK_SECONDS = 60.0
TOLD_SECONDS = 30 * 86_400.0
"""How long the command about a new key waits in the outbox for an absent device.

A device that comes back later learns of the key when it connects, or when it receives a command signed with it.
"""
_PAGE = 500


class Rotation:
    """Rotations of the key; `start` and `stop` are for one thread.

    A device learns of a new key by a command, when it asks for the broker's address, or when it receives a message that
    the new key signed. So no single way needs to work during the overlap. Each step after the new key is written can be
    repeated, so that a server that was killed continues the rotation.
    """

    def __init__(self, keys: Keyring, fleet: Fleet, audit: Audit, clock: Callable[[], float]) -> None:
        self._keys, self._fleet, self._audit, self._clock = keys, fleet, audit, clock
        self._turn, self._some, self._stopping = threading.Lock(), threading.Event(), threading.Event()
        self._thread = Loop("keys", self._work, self._stopping, log)

    def start(self) -> None:
        """Start the thread that switches to a new key when its time has come, and continue a rotation that was interrupted."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread that carries out rotations, and wait until it has ended."""
        self._stopping.set()
        self._some.set()
        if self._thread.is_alive():
            self._thread.join()

    def rotate(self, overlap: float) -> None:
        """Make a new key that signs after `overlap` seconds. With 0 it signs at once, and the old key is rejected at once.

        Raises UmbelError while another new key waits for its overlap, unless `overlap` is 0.
        """
        if overlap and not SHORTEST <= overlap <= LONGEST:
            raise UmbelError(
                f"an overlap takes 1 minute to 366 days, got {overlap:g} seconds; or rotate at once with --now"
            )
        with self._turn:
            self._keys.begin(overlap, self._clock())
            newest = signing.fingerprint(self._keys.lineage.newest)
            log.warning("the signing key %s follows, %s", newest, f"in {overlap:.0f} s" if overlap else "at once")
        self._some.set()

    def step(self) -> None:
        """Do the steps that are due: switch to the new key, and tell the devices that do not know it."""
        with self._turn:
            switched = self._keys.advance(self._clock())
            if switched or self._audit.is_sealed_before:
                current = signing.fingerprint(self._keys.current)
                log.warning("the signing key is %s now", current)
                self._audit.append(SERVER, "keys.switch", current)
                self._audit.reseal()
            if self._keys.successions:
                self._announce()

    def describe(self, populations: Sequence[str] = ()) -> list[answers.Key]:
        """Every key as the API shows it, oldest first; times in Unix seconds.

        `state` is signing, announced, accepted (for messages still on their way) or retired. `made` is 0 for the first
        key, `until` is None for the newest. `devices` counts the active devices of `populations` (all if empty) that have
        to learn of the newest key; `confirmed` counts those that have confirmed it.
        """
        lineage, current, now = self._keys.lineage, signing.fingerprint(self._keys.current), self._clock()
        rows = []
        for i, key in enumerate(lineage.keys):
            fingerprint, newest = signing.fingerprint(key), i == len(lineage.keys) - 1
            accepted: answers.KeyState = "announced" if newest else "accepted" if now < lineage.until[i] else "retired"
            told = self._told(lineage.made[i], populations) if newest and i else (0, 0)
            rows.append(
                answers.Key(
                    fingerprint,
                    "signing" if fingerprint == current else accepted,
                    lineage.made[i],
                    None if newest else lineage.until[i],
                    self._keys.switches if newest else None,
                    *told,
                )
            )
        return rows

    def _told(self, made: float, populations: Sequence[str]) -> tuple[int, int]:
        asked = [Device.state == ACTIVE, Device.enrolled < made]
        if populations:
            asked.append(Device.population.in_(populations))
        with self._fleet.database.transaction() as session:
            devices = session.scalar(select(func.count()).select_from(Device).where(*asked)) or 0
            confirmed = _news(made, Command.state == "done")
            done = session.scalar(select(func.count()).select_from(Device).where(*asked, confirmed)) or 0
        return devices, done

    def _announce(self) -> None:
        """Send one command about the newest key to every device that enrolled before the key was made."""
        key, made = signing.fingerprint(self._keys.lineage.newest), self._keys.lineage.made[-1]
        query = select(Device.population, Device.id).where(Device.state == ACTIVE, Device.enrolled < made, ~_news(made))
        while not self._stopping.is_set():
            with self._fleet.database.transaction() as session:
                untold = session.execute(query.limit(_PAGE)).all()
                news = [(population, device, Rekey(key), TOLD_SECONDS) for population, device in untold]
                commands = self._fleet.outbox.add_all(session, news)
            moments.reached("key announced")
            self._fleet.exchange.send(commands)
            if len(commands) < _PAGE:
                return

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._some.clear()
            self.step()
            switches = self._keys.switches
            left = LOOK_SECONDS if switches is None else min(LOOK_SECONDS, max(0.1, switches - self._clock()))
            self._some.wait(left)


def _news(made: float, *which: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether the outbox has a command to the device about the key made at `made`."""
    same = and_(Command.population == Device.population, Command.device == Device.id)
    return exists().where(same, Command.kind == kind_of(Rekey), Command.issued >= made, *which)
