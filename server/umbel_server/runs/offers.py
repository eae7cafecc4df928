"""Assignments offered to devices and ended, each in one transaction with its command."""

from collections.abc import Callable, Sequence

from flwr.app import Message
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from umbel.conditions import Rules
from umbel.messages import Blob, Cancel
from umbel_server.commands.assignment_transitions import move_assignment
from umbel_server.commands.listeners import Transition
from umbel_server.commands.outbox import OPEN, Addressed
from umbel_server.commands.quarantine import count_rejection
from umbel_server.devices import register as devices
from umbel_server.fleet.parts import Fleet
from umbel_server.rounds.assignments import WITH_DEVICE, may_follow
from umbel_server.rounds.events import Ended, Event, Finish, Offer, Open
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.runs.fleet_run import FleetRun
from umbel_server.runs.instructions import instruction
from umbel_server.storage.database import ASSIGNMENTS, DEVICES, Assignment, Command, Round, batches

LEAST_CANCEL_SECONDS = 60.0

_ASSIGNED = update(DEVICES).where(
    DEVICES.c.population == bindparam("of_population"),
    DEVICES.c.id == bindparam("of_device"),
    DEVICES.c.state == devices.ACTIVE,
)


class Offers:
    """Offers assignments of one run to devices.

    `put` takes the events of devices that were suspended or revoked since they were chosen.
    """

    def __init__(self, run: FleetRun, put: Callable[[Event], None]) -> None:
        self._run, self._put = run, put

    def in_round(
        self,
        opened: Open | None,
        offers: Sequence[tuple[Offer, Message]],
        weights: Blob,
        attempt: int,
        policy: RoundPolicy,
    ) -> None:
        """Note the assignments, and the round that they open if they do, in one transaction; then send their commands.

        Raises QuotaReached before anything is noted.
        """
        if opened is not None:
            self._check_quotas(weights, policy.quorum)
        with self._run.fleet.database.transaction() as session:
            if opened is not None:
                session.merge(  # it is there already when it is opened again
                    Round(
                        run=self._run.id,
                        number=opened.number,
                        attempt=opened.attempt,
                        opened=opened.opened,
                        closes=opened.closes,
                        wanted=opened.wanted,
                        quorum=policy.quorum,
                    )
                )
            batch = [(offer, message, weights) for offer, message in offers]
            commands = self._note(session, batch, attempt, policy.requires)
        self._run.fleet.exchange.send(commands)

    def outside_rounds(
        self, offers: Sequence[tuple[Offer, Message, Blob]], requires: Rules, claim: bool = False
    ) -> None:
        """Note assignments outside any round, each with its own weights, in one transaction; then send their commands.

        With `claim` the weights become the population's: without it they already are.
        """
        with self._run.fleet.database.transaction() as session:
            if claim:
                own = [weights for _, _, weights in offers]
                self._run.fleet.ownership.claim(session, self._run.population, *own)
            commands = self._note(session, offers, 0, requires)
        self._run.fleet.exchange.send(commands)

    def _check_quotas(self, weights: Blob, quorum: int) -> None:
        """Raise QuotaReached unless a checkpoint and an update more can be stored, and those of a quorum can move today."""
        travels = weights.size if weights.data is None else 0
        self._run.fleet.quotas.check_round(self._run.population, 2 * weights.size, quorum * 2 * travels)

    def _note(
        self,
        session: Session,
        offers: Sequence[tuple[Offer, Message, Blob]],
        attempt: int,
        requires: Rules,
    ) -> list[Addressed]:
        """Note assignments and their commands, within the caller's transaction; returns the commands to send.

        The assignment of a device that was barred since it was chosen ends at once.
        """
        now = self._run.now
        rate = self._run.plan.manifest.learning_rate
        bodies = [
            instruction(message, offer.id, self._run.id, self._run.plan_blob, weights, offer.closes, rate, requires)
            for offer, message, weights in offers
        ]
        barred = self._hold(session, sorted({offer.device for offer, _, _ in offers}), now)
        commands = self._run.fleet.outbox.add_all(
            session,
            [
                (self._run.population, offer.device, body, max(0.0, offer.closes - now))
                for (offer, _, _), body in zip(offers, bodies, strict=True)
            ],
            self._run.sealed,
        )
        rows = [
            {
                "id": offer.id,
                "run": self._run.id,
                "round": body.round,
                "population": self._run.population,
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
        for (offer, _, _), command in zip(offers, commands, strict=True):
            if offer.device in barred:
                self._put(self._withdraw(session, offer, command, barred[offer.device], now))
        return [command for command in commands if command.device not in barred]

    def _hold(self, session: Session, names: Sequence[str], now: float) -> dict[str, str]:
        """Note that devices have work, which holds them against changes until the transaction ends, in the order of `names`.

        Returns the states of those that are barred.
        """
        if names:
            of = [{"of_population": self._run.population, "of_device": name, "assigned": now} for name in names]
            session.execute(_ASSIGNED, of)
        states: dict[str, str] = {}
        for some in batches(names):
            query = select(*DEVICES.c["id", "state"]).where(
                DEVICES.c.population == self._run.population, DEVICES.c.id.in_(some), DEVICES.c.state != devices.ACTIVE
            )
            states.update({row.id: row.state for row in session.execute(query)})
        return states

    def _withdraw(self, session: Session, offer: Offer, command: Addressed, state: str, now: float) -> Ended:
        """End the assignment of a barred device in the transaction that notes it."""
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
        was_open = command.state in OPEN
        if was_open:
            command.state, command.reason, command.updated = finish.state, finish.reason, now
        of = command.id, command.population, command.device, command.kind
        if finish.state == "rejected":
            count_rejection(session, row.run, row.population, row.device, row.reason)
        if at_work and finish.tell:
            ttl = max(LEAST_CANCEL_SECONDS, row.closes - now)
            cancel.append(fleet.outbox.add(session, row.population, row.device, Cancel(row.id), ttl))
    if was_open:  # the run itself knows
        fleet.exchange.listeners.tell(Transition(*of, finish.state, finish.reason, now))
    fleet.exchange.send(cancel)
    fleet.received_blobs.remove_soon([command.id])
