"""The audit log: a table of actions, chained by hashes, to which the database only lets entries be added.

Guarantees:
- An entry is committed before the answer to its action is sent.
- A changed, removed, swapped or replaced entry breaks the chain, and `verify` names it.
- Within about a second of an entry a thread writes the end of the chain to a signed file outside the database, the seal.
  The seal is not written at each entry, because that would wait for the disk twice. A killed server can lose the seal of
  its last second, but never an entry.
- Entries cut off the end are detected by the seal, except entries of the last second before a restart.

Someone who has the database and the server's key can write another log. Keep the newest hash, which `verify` prints,
elsewhere.
"""

import json
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from umbel.errors import UmbelError
from umbel.loops import Loop
from umbel_server import answers
from umbel_server.limits.bucket import RateLimit
from umbel_server.security.audit.chain import Entry, Fault, Head, Walk, chained
from umbel_server.security.audit.seal import BadSeal, Seal
from umbel_server.security.keyring import Keyring
from umbel_server.storage.database import AuditEntry, Database

log = logging.getLogger("umbel.audit")

SEAL = "audit-head"
DONE, UNKNOWN, SERVER = "done", "unknown", "server"
SEAL_SECONDS = 0.5
"""Entries within this time are sealed together."""
MOST_TEXT, MOST_DETAILS, MOST_ITEMS = 300, 24, 20
"""The largest number of characters of a text, members of a detail, and items of a list in a detail."""
REFUSALS, REFUSAL_SECONDS = 20, 60.0
"""A burst of refusals of one caller (all unknown callers count as one) that is written, then one every so many seconds."""
_PAGE = 1000
_TOKEN = re.compile(r"(umbel_[0-9a-f]{16})_[A-Za-z0-9_-]+")


class NotRecorded(UmbelError):
    """The entry could not be written."""


class Audit:
    """The log in the database, and its seal in the file `audit-head` in `folder`; `start` and `stop` are for one thread.

    The `secrets` are removed from every text, and so is the secret part of every text of the form of an admin's token.
    """

    def __init__(
        self, database: Database, folder: Path, keys: Keyring, clock: Callable[[], float], secrets: Sequence[str] = ()
    ) -> None:
        self._database, self._clock = database, clock
        self._secrets = [secret for secret in secrets if secret]
        self._seal = Seal(folder / SEAL, keys)
        self.refusals = RateLimit(REFUSALS, REFUSAL_SECONDS, clock)
        self._unwritten: dict[str, int] = {}
        self._turn, self._sealing, self._verifying = threading.Lock(), threading.Lock(), threading.Lock()
        self._some, self._stopped = threading.Event(), threading.Event()
        self._thread = Loop("audit", self._work, self._stopped, log)
        self._whole, self._noted = True, Head()
        self._head = self._begin()

    def _begin(self) -> Head:
        """The end of the log, compared with the seal. A difference is logged, and the seal is then never replaced."""
        with self._database.transaction() as session:
            head = _last(session)
            if not head.count and not self._seal.exists():
                self._seal.write(head)
            try:
                sealed = self._seal.read()
                if not _holds(session, sealed):
                    raise BadSeal(f"the audit log does not hold the entry {sealed.count} that the server has noted")
            except BadSeal as error:
                self._broken(str(error))
        return head

    def _broken(self, why: str) -> None:
        self._whole = False
        log.error("the audit log was tampered with: %s; see 'umbel audit verify'", why)

    def start(self) -> None:
        """Begin the thread that seals."""
        self._thread.start()

    def stop(self) -> None:
        """Write the number of refusals that were not written, seal the end of the log, and end the thread."""
        for who, count in sorted(self._unwritten.items()):
            with suppress(NotRecorded):  # `append` has logged the error, and the rest must stop in any case
                self.append(SERVER, "audit.unwritten", subject=who, detail={"refusals": count})
        self._unwritten.clear()
        self._stopped.set()
        self._some.set()
        if self._thread.is_alive():
            self._thread.join()
        self.seal()

    def append(
        self,
        who: str,
        action: str,
        subject: str = "",
        population: str = "",
        detail: Mapping[str, Any] | None = None,
        outcome: str = DONE,
    ) -> Entry:
        """Add an entry; it is committed when this returns. Raises NotRecorded."""
        details = {
            self._text(name)[:40]: self._bounded(value) for name, value in list((detail or {}).items())[:MOST_DETAILS]
        }
        with self._turn:
            try:
                with self._database.transaction() as session:
                    last = _last(session)
                    # The log may be longer than we know: a commit that was reported as failed may have happened.
                    if last != self._head and self._whole and not _holds(session, self._head):
                        with self._sealing:
                            self._broken(f"it ends at entry {last.count}, and ended at {self._head.count}")
                            self._write_seal(self._head)  # the end that we know stays as evidence
                    entry = chained(
                        Entry(
                            sequence=last.count + 1,
                            at=self._clock(),
                            who=self._text(who)[:160],
                            action=action,
                            subject=self._text(subject)[:256],
                            population=self._text(population)[:64],
                            detail=json.dumps(details, sort_keys=True, allow_nan=False),
                            outcome=self._text(outcome),
                            previous=last.hash,
                        )
                    )
                    session.add(AuditEntry(**asdict(entry)))
            except SQLAlchemyError as error:
                what = self._text(outcome)
                log.error(
                    "%s by %s (%s) is not recorded: %s", action, self._text(who), what, str(error).splitlines()[0]
                )
                raise NotRecorded(
                    f"{action} ended ({what}), and the audit log cannot be written; mend the server's database"
                ) from error
            self._head = Head(entry.sequence, entry.hash)
        self._some.set()
        return entry

    def refused(
        self, who: str, action: str, subject: str, population: str, detail: Mapping[str, Any], why: str
    ) -> None:
        """Add the refusal of a caller without the right for an action (`who` is "unknown" for an unknown token).

        Of one caller a burst of REFUSALS is written, then one every REFUSAL_SECONDS: at most 1,460 a day. The next refusal
        that is written, or `stop`, says how many were not. All unknown callers count as one.
        """
        if not self.refusals.use(who):
            with self._turn:
                self._unwritten[who] = self._unwritten.get(who, 0) + 1
            return
        with self._turn:
            unwritten = self._unwritten.pop(who, 0)
        more = {"refusals_not_written": unwritten} if unwritten else {}
        self.append(who, action, subject, population, {**detail, **more}, why)

    def list(
        self, since: float = 0.0, who: str = "", limit: int = 100, populations: Sequence[str] = ()
    ) -> list[answers.AuditEntry]:
        """The newest entries, newest first; `since` (Unix seconds), `who` and `populations` narrow them down."""
        query = select(AuditEntry).where(AuditEntry.at >= since).order_by(AuditEntry.sequence.desc()).limit(limit)
        if who:
            query = query.where(AuditEntry.who == who)
        if populations:
            query = query.where(AuditEntry.population.in_(populations))
        with self._database.transaction() as session:
            return [describe(row) for row in session.scalars(query)]

    def verify(self) -> tuple[Head, Fault | None]:
        """Check the whole chain; returns the end of its intact part, and the fault there or None."""
        with self._verifying:
            try:
                sealed = self._seal.read()
            except BadSeal as error:
                return Head(), Fault(0, str(error))
            with self._turn:
                remembered = self._head
            walk = Walk([sealed, remembered])
            while page := self._page(walk.head.count):
                if (fault := walk.take(page)) is not None:
                    return walk.head, fault
            return walk.head, walk.end()

    def _page(self, after: int) -> Sequence[Entry]:
        query = select(AuditEntry).where(AuditEntry.sequence > after).order_by(AuditEntry.sequence).limit(_PAGE)
        with self._database.transaction() as session:
            return [_entry(row) for row in session.scalars(query)]

    def _work(self) -> None:
        while not self._stopped.is_set():
            self._some.wait()
            self._stopped.wait(SEAL_SECONDS)
            self._some.clear()
            try:
                self.seal()
            except BaseException:
                self._some.set()
                raise

    def seal(self) -> None:
        """Seal the end of the log after the disk has it: after a power failure the seal must not be ahead of the log."""
        with self._turn:
            head = self._head
        if head == self._noted:
            return
        self._database.settle()
        with self._sealing:
            if self._whole:
                self._write_seal(head)

    @property
    def is_sealed_before(self) -> bool:
        """Whether the log is intact, and its seal was signed with an earlier key than the current one."""
        return self._whole and self._seal.is_older

    def reseal(self) -> None:
        """Seal the end of the log again, with the current key."""
        with self._turn:
            self._noted = Head(-1)
        self.seal()

    def _write_seal(self, head: Head) -> None:
        try:
            self._seal.write(head)
            self._noted = head
        except OSError as error:
            log.error("how far the audit log has come cannot be noted: %s", error)

    def _bounded(self, value: Any) -> Any:
        """A detail's value cut to fit a line; a value of another type becomes text."""
        match value:
            case bool() | None:
                return value
            case int() if abs(value) < 2**53:
                return value
            case list() | tuple():
                return [self._text(str(item))[:64] for item in value[:MOST_ITEMS]] + ["..."] * (len(value) > MOST_ITEMS)
            case _:
                return self._text(str(value))

    def _text(self, text: str) -> str:
        """The text without secrets, as one line of at most MOST_TEXT characters."""
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        text = _TOKEN.sub(r"\1_[secret]", text)
        line = "".join(c if c.isprintable() else " " for c in text[: 2 * MOST_TEXT])
        return line if len(line) <= MOST_TEXT else line[: MOST_TEXT - 3] + "..."


def _last(session: Session) -> Head:
    query = select(AuditEntry.sequence, AuditEntry.hash).order_by(AuditEntry.sequence.desc()).limit(1)
    row = session.execute(query).one_or_none()
    return Head() if row is None else Head(row[0], row[1])


def _holds(session: Session, head: Head) -> bool:
    """Whether the log holds the last entry of `head`."""
    row = session.get(AuditEntry, head.count) if head.count else None
    return row.hash == head.hash if row is not None else not head.count


def _entry(row: AuditEntry) -> Entry:
    return Entry(
        sequence=row.sequence,
        at=row.at,
        who=row.who,
        action=row.action,
        subject=row.subject,
        population=row.population,
        detail=row.detail,
        outcome=row.outcome,
        previous=row.previous,
        hash=row.hash,
    )


def describe(row: AuditEntry) -> answers.AuditEntry:
    """An entry as the API shows it; a detail that is not JSON is shown as text."""
    try:
        detail = json.loads(row.detail)
    except (TypeError, ValueError):
        detail = {"text": str(row.detail)}
    return answers.AuditEntry(**asdict(_entry(row)) | {"detail": detail})
