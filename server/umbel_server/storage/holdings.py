"""Which blobs belong to which population: for everybody else they do not exist, also when the same bytes are theirs too.

Bytes are stored once, by their digest, and belong to every population with a row here. A row is written in the transaction
that gives the population something made of the blob: a run, a checkpoint, a release, a command, an outcome; or when an
administrator uploads for it. What a device sent, and nobody has published, is under its command's own name and has no row.
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
"""Holdings that need no look into the database; a population never loses one, so what is remembered stays true."""
UNMEASURED = -1
"""The size of a blob that was there before there were holdings, until the server has looked."""


class Holdings:
    """The rows in the database, with those that were asked for lately in memory."""

    def __init__(self, database: Database, blobs: Blobs, clock: Callable[[], float]) -> None:
        self._database, self._blobs, self._clock = database, blobs, clock
        self._remembered: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = threading.Lock()
        self.changes = 0
        """Grows once a claim is committed, so that who adds up sizes knows when to do so again."""

    def claim(self, session: Session, population: str, *blobs: Blob) -> None:
        """Note, within the caller's transaction, that these belong to a population too."""
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
        """As `claim`, of blobs that are in the store, where they are not empty addresses; raises MissingBlob."""
        self.claim(
            session,
            population,
            *(Blob(sha256, self._blobs.size(sha256)) for sha256 in dict.fromkeys(addresses) if sha256),
        )

    def holds(self, population: str, sha256: str) -> bool:
        """Whether a blob belongs to a population."""
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
        """The first of `populations` that a blob belongs to; raises MissingBlob, without a look into the store, when none is."""
        for population in populations:
            if self.holds(population, sha256):
                return population
        raise missing(sha256)

    def measure(self) -> None:
        """Note the sizes of blobs that an older server left without; one that is not in the store counts as nothing."""
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
