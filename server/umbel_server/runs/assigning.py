"""Assignments given to devices, and ended, each in one transaction with its command."""

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Message
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from umbel.conditions import Rules
from umbel.messages import Blob, Cancel
from umbel.plan import Plan
from umbel_server.commands.assignment_transitions import move_assignment
from umbel_server.commands.outbox import OPEN, Addressed
from umbel_server.commands.quarantine import count_rejection
from umbel_server.devices import register as devices
from umbel_server.fleet.parts import Fleet
from umbel_server.rounds.assignments import WITH_DEVICE, may_follow
from umbel_server.rounds.events import Ended, Finish, Offer
from umbel_server.runs.instructions import instruction
from umbel_server.storage.database import ASSIGNMENTS, DEVICES, Assignment, Command, batches

LEAST_CANCEL_SECONDS = 60.0

_ASSIGNED = update(DEVICES).where(
    DEVICES.c.population == bindparam("of_population"),
    DEVICES.c.id == bindparam("of_device"),
    DEVICES.c.state == devices.ACTIVE,
)


@dataclass(frozen=True)
class Assigning:
    """What the assignments of a run have in common; their work leaves only `sealed` if so wanted."""

    fleet: Fleet
    run: str
    population: str
    plan: Plan
    plan_blob: Blob
    sealed: bool

    def note(
        self,
        session: Session,
        offers: Sequence[tuple[Offer, Message, Blob]],
        attempt: int,
        requires: Rules,
        now: float,
    ) -> tuple[list[Addressed], list[Ended]]:
        """Note assignments and their commands, within the caller's transaction.

        Returns the commands to send, and the end of what a device was to get that was barred since it was chosen.
        """
        rate = self.plan.manifest.learning_rate
        bodies = [
            instruction(message, offer.id, self.run, self.plan_blob, weights, offer.closes, rate, requires)
            for offer, message, weights in offers
        ]
        barred = self._hold(session, sorted({offer.device for offer, _, _ in offers}), now)
        commands = self.fleet.outbox.add_all(
            session,
            [
                (self.population, offer.device, body, max(0.0, offer.closes - now))
                for (offer, _, _), body in zip(offers, bodies, strict=True)
            ],
            self.sealed,
        )
        rows = [
            {
                "id": offer.id,
                "run": self.run,
                "round": body.round,
                "population": self.population,
                "device": offer.device,
                "command": command.id,
                "kind": message.metadata.message_type,
                "offered": now,
                "updated": now,
                "attempt": attempt,
                "closes": offer.closes,
                "bytes_down": weights.size,
            }
            for (offer, message, weights), body, command in zip(offers, bodies, commands, strict=True)
        ]
        if rows:
            session.execute(insert(ASSIGNMENTS), rows)
        ended = [
            self._withdraw(session, offer, command, barred[offer.device], now)
            for (offer, _, _), command in zip(offers, commands, strict=True)
            if offer.device in barred
        ]
        return [command for command in commands if command.device not in barred], ended

    def _hold(self, session: Session, names: Sequence[str], now: float) -> dict[str, str]:
        """Note that devices have work, which holds them against changes until the transaction ends, in the order of `names`.

        Returns the states of those that are barred.
        """
        if names:
            of = [{"of_population": self.population, "of_device": name, "assigned": now} for name in names]
            session.execute(_ASSIGNED, of)
        states: dict[str, str] = {}
        for some in batches(names):
            query = select(*DEVICES.c["id", "state"]).where(
                DEVICES.c.population == self.population, DEVICES.c.id.in_(some), DEVICES.c.state != devices.ACTIVE
            )
            states.update({row.id: row.state for row in session.execute(query)})
        return states

    def _withdraw(self, session: Session, offer: Offer, command: Addressed, state: str, now: float) -> Ended:
        """End what a barred device may not be offered, in the transaction that notes it."""
        row = session.get_one(Command, command.id)
        row.state, row.reason = "cancelled", f"the device was {state}"
        move_assignment(session, command.id, row.state, row.reason, now)
        return Ended(now, offer.id, f"{offer.device} cancelled: {row.reason}")


def finish_assignment(fleet: Fleet, finish: Finish, now: float) -> None:
    """Give an assignment its final state unless it has one, and tell its device if that is still at work."""
    cancel: list[Addressed] = []
    with fleet.database.transaction() as session:
        row = session.get_one(Assignment, finish.id)
        command = session.get_one(Command, row.command)
        at_work = row.state in WITH_DEVICE
        if not may_follow(row.state, finish.state):
            return
        row.state, row.reason, row.updated = finish.state, finish.reason, now
        if command.state in OPEN:
            command.state, command.reason, command.updated = finish.state, finish.reason, now
        if finish.state == "rejected":
            count_rejection(session, row.run, row.population, row.device, row.reason)
        if at_work and finish.tell:
            ttl = max(LEAST_CANCEL_SECONDS, row.closes - now)
            cancel.append(fleet.outbox.add(session, row.population, row.device, Cancel(row.id), ttl))
    fleet.exchange.send(cancel)
    fleet.received_blobs.remove_soon([command.id])
