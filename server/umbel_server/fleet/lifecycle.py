"""The lifecycle of a device: suspend, resume, revoke, delete, rename and label it."""

import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from umbel import signing
from umbel.errors import SignatureError, UmbelError
from umbel.messages import Standing
from umbel.sizes import SENTENCE, WORD, check_labels, cut
from umbel_server.commands.assignment_transitions import move_assignment
from umbel_server.commands.listeners import Transition
from umbel_server.commands.outbox import OPEN
from umbel_server.devices.register import ACTIVE, DELETED, REVOKED, SUSPENDED, key_of
from umbel_server.fleet.parts import Fleet
from umbel_server.storage.database import Command, Device, RefusedKey

log = logging.getLogger("umbel.devices")


class Lifecycle:
    """Changes of devices by an administrator. A change holds from the device's next message or request on.

    Barring a device also ends its open commands and assignments, in the same transaction. The device is told of it.
    An update that is folded into a round's sum stays there; an update that waits to be folded is rejected.
    """

    def __init__(self, fleet: Fleet, clock: Callable[[], float]) -> None:
        self._fleet, self._clock = fleet, clock

    def suspend(self, population: str, device: str, reason: str = "") -> Device:
        """Bar a device until it is resumed; raises UmbelError when it is suspended or revoked already."""
        return self._bar(population, device, SUSPENDED, reason)

    def revoke(self, population: str, device: str, reason: str = "") -> Device:
        """Bar a device and its key for ever; raises UmbelError when it is revoked already."""
        return self._bar(population, device, REVOKED, reason)

    def _bar(self, population: str, device: str, state: str, reason: str) -> Device:
        with self._fleet.database.transaction() as session:
            row = self._fleet.devices.row(session, population, device)
            if row.state in (REVOKED, state):
                raise UmbelError(f"device {device} of {population} is {row.state} already")
            self._set_state(row, state, reason)
            if state == REVOKED:
                self._refuse_key(session, row)
            ended = self._end_work(session, row)
        self._forget(row, ended)
        self._tell(row)
        return row

    def resume(self, population: str, device: str) -> Device:
        """Make a suspended device active again; raises UmbelError when it is not suspended."""
        with self._fleet.database.transaction() as session:
            row = self._fleet.devices.row(session, population, device)
            if row.state != SUSPENDED:
                never = "; a revoked one never takes part again" if row.state == REVOKED else ""
                raise UmbelError(f"device {device} of {population} is {row.state}, only a suspended one resumes{never}")
            self._set_state(row, ACTIVE, "")
        self._forget(row, ())
        self._tell(row)
        return row

    def delete(self, population: str, device: str) -> None:
        """Remove a device from the register; raises UmbelError unless it is revoked or was never online.

        A revoked key never enrols again; any other key enrols again only with a new invitation. Another device may have
        the id once no certificate of the deleted device can be valid any more.
        """
        with self._fleet.database.transaction() as session:
            row = self._fleet.devices.row(session, population, device)
            if row.state != REVOKED and row.last_seen > row.enrolled:
                raise UmbelError(
                    f"device {device} of {population} has been online: revoke it first ('umbel devices revoke')"
                )
            self._set_state(row, DELETED, "")
            self._refuse_key(session, row)
            row.name, row.labels, row.set_labels, row.reasons = "", {}, {}, []
            row.rejections, row.quarantined, row.fingerprint = 0, "", None
            ended = self._end_work(session, row)
        self._forget(row, ended)
        self._fleet.exchange.clear_status(population, device)

    def rename(self, population: str, device: str, name: str) -> Device:
        """Set the display name of a device, "" for none; its id stays. Raises UmbelError when the name is not printable."""
        if len(name) > WORD or not name.isprintable():
            raise UmbelError(f"a name should be at most {WORD} characters on one line, got {name[:40]!r}")
        with self._fleet.database.transaction() as session:
            row = self._fleet.devices.row(session, population, device)
            row.name = name
        return row

    def label(self, population: str, device: str, labels: Mapping[str, str], remove: Sequence[str] = ()) -> Device:
        """Set labels that override the device's own, and remove labels that were set so; raises UmbelError."""
        with self._fleet.database.transaction() as session:
            row = self._fleet.devices.row(session, population, device)
            for name in remove:
                if name not in row.set_labels:
                    own = "; the device itself says so" if name in row.labels else ""
                    raise UmbelError(f"no label {name!r} was set on device {device} of {population} here{own}")
            kept = {name: value for name, value in row.set_labels.items() if name not in remove}
            row.set_labels = {**kept, **labels}
            check_labels(row.set_labels, "a device's labels")
        self._fleet.exchange.tell(population, device, ())
        return row

    def _set_state(self, row: Device, state: str, reason: str) -> None:
        row.state, row.state_reason, row.state_since = state, cut(reason, SENTENCE), self._clock()
        if row.online:  # so that an "online" of the same session counts once the device is resumed
            row.online, row.epoch = False, row.epoch - 1

    def _refuse_key(self, session: Session, row: Device) -> None:
        try:
            fingerprint = signing.fingerprint(key_of(row))
        except SignatureError as error:
            log.warning("the key of %s/%s cannot be refused: %s", row.population, row.id, error)
            return
        refused = session.get(RefusedKey, fingerprint)
        if refused is not None and refused.state == REVOKED:
            return  # a revoked key stays revoked when its device is deleted
        session.merge(
            RefusedKey(
                fingerprint=fingerprint,
                state=row.state,
                population=row.population,
                device=row.id,
                since=row.state_since,
            )
        )

    def _end_work(self, session: Session, row: Device) -> list[Transition]:
        """Cancel the device's open commands and their assignments."""
        why = f"the device was {row.state}" + (f": {row.state_reason}" if row.state_reason else "")
        open = (Command.population == row.population, Command.device == row.id, Command.state.in_(OPEN))
        commands = session.scalars(select(Command).where(*open).with_for_update()).all()
        ended = []
        for command in commands:
            command.state, command.reason, command.updated = "cancelled", why, row.state_since
            moved = move_assignment(session, command.id, "cancelled", why, row.state_since)
            of = command.id, command.population, command.device, command.kind
            ended.append(Transition(*of, command.state, why, command.updated, assignment=moved))
        return ended

    def _forget(self, row: Device, ended: Sequence[Transition]) -> None:
        self._fleet.devices.forget(row.population, row.id)
        self._fleet.exchange.tell(row.population, row.id, ended)
        self._fleet.received_blobs.remove_soon([transition.command for transition in ended])
        log.warning("device %s/%s is %s (%s)", row.population, row.id, row.state, row.state_reason or "no reason given")

    def _tell(self, row: Device) -> None:
        standing = msgspec.convert({"type": "standing", "state": row.state, "reason": row.state_reason}, Standing)
        self._fleet.exchange.send([self._fleet.outbox.notice(row.population, row.id, standing)])
