"""Blob ownership: a population sees a blob only if it has a row here.

Bytes are stored once, by their digest; several populations may own the same blob. The row is written in the transaction
that gives the population something that refers to the blob (a run, a checkpoint, a release, a command, an outcome), or when
an administrator uploads the blob for the population. A blob that a device sent has no row until the server publishes it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from sqlalchemy import event, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from umbel.messages import Blob
from umbel_server.storage.blobs import Blobs, missing
from umbel_server.storage.database import BlobPopulation, Database

MOST_REMEMBERED = 65_536
"""Rows kept in memory. A population never loses a blob, so a remembered row stays true."""
UNMEASURED = -1
"""The size of a blob from before this table existed, until `measure` has looked it up."""


class BlobOwnership:
    """The rows in the database; those read lately are also in memory."""

    def __init__(self, database: Database, blobs: Blobs, clock: Callable[[], float]) -> None:
        self._database, self._blobs, self._clock = database, blobs, clock
        self._remembered: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = threading.Lock()
        self.changes = 0
        """Grows with each committed claim: a sum of sizes is out of date when this has changed."""

    def claim(self, session: Session, population: str, *blobs: Blob) -> None:
        """Note, within the caller's transaction, that a population owns these blobs."""
        new = [blob for blob in blobs if (population, blob.sha256) not in self._remembered]
        if not new:
            return
        rows = [
            {"population": population, "sha256": blob.sha256, "size": blob.size, "since": self._clock()}
            for blob in {blob.sha256: blob for blob in new}.values()
        ]
        dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
        session.execute(dialect.insert(BlobPopulation).values(rows).on_conflict_do_nothing())
        event.listen(session, "after_commit", self._changed, once=True)

    def _changed(self, _: Session) -> None:
        self.changes += 1

    def claim_stored(self, session: Session, population: str, *addresses: str) -> None:
        """As `claim`, for blobs in the store; empty addresses are skipped. Raises MissingBlob."""
        self.claim(
            session,
            population,
            *(Blob(sha256, self._blobs.size(sha256)) for sha256 in dict.fromkeys(addresses) if sha256),
        )

    def owns(self, population: str, sha256: str) -> bool:
        """Whether a population owns a blob."""
        name = population, sha256
        if name in self._remembered:
            return True
        with self._database.transaction() as session:
            if session.get(BlobPopulation, name) is None:
                return False
        with self._lock:
            self._remembered[name] = None
            if len(self._remembered) > MOST_REMEMBERED:
                self._remembered.popitem(last=False)
        return True

    def check(self, populations: Sequence[str], sha256: str) -> str:
        """The first of `populations` that owns a blob; raises MissingBlob when none does, also when the store has the bytes."""
        for population in populations:
            if self.owns(population, sha256):
                return population
        raise missing(sha256)

    def measure(self) -> None:
        """Fill in the sizes that an older server left unmeasured; a blob that is not in the store has size 0."""
        query = select(BlobPopulation.sha256).where(BlobPopulation.size == UNMEASURED).distinct()
        with self._database.transaction() as session:
            addresses = session.scalars(query).all()
        if not addresses:
            return
        sizes = self._blobs.sizes()
        with self._database.transaction() as session:
            for sha256 in addresses:
                session.execute(
                    update(BlobPopulation)
                    .where(BlobPopulation.sha256 == sha256, BlobPopulation.size == UNMEASURED)
                    .values(size=sizes.get(sha256, 0))
                )
