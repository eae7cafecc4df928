"""The agent's memory across restarts: one folder with a database, a key, and the trust in the server."""

import fcntl
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

from joserfc.jwk import ECKey

from umbel import signing
from umbel.enrolment import Trust
from umbel.errors import UmbelError
from umbel_edge.device.cancellations import Cancellations
from umbel_edge.device.database import DATABASE, StateDatabase
from umbel_edge.device.inbox import Inbox
from umbel_edge.device.trust_file import load_trust, save_trust
from umbel_edge.device.upload_records import UploadRecords
from umbel_edge.identity.keys import FileStore, KeyStore

KEPT_SECONDS = 86_400.0
LOCK = "lock"


class AgentState:
    """An opened state folder; only one process can have it open. Safe to use from several threads.

    The signing key is in `store`, by default a file of the folder. Raises UmbelError when the folder is not the agent's,
    another process uses it, or a newer agent made it.
    """

    def __init__(self, folder: Path, store: KeyStore | None = None) -> None:
        foreign = folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _is_ours(folder)))
        if foreign:
            raise UmbelError(f"{folder}: expected a new folder or one that umbel-agent made; name another one as state")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self.folder = folder
        self._lock_file = (folder / LOCK).open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.close()
            raise UmbelError(
                f"{folder}: another umbel-agent uses this state folder; stop it, or name another one"
            ) from error
        self._store = store or FileStore(folder)
        try:
            self.database = StateDatabase(folder)
        except UmbelError:
            self._store.close()
            self._lock_file.close()
            raise
        self.inbox = Inbox(self.database)
        self.cancellations = Cancellations(self.database)
        self.uploads = UploadRecords(self.database)

    @cached_property
    def key(self) -> ECKey:
        """The device's signing key, made when it is asked for the first time.

        Raises UmbelError when its store cannot be used, has lost the key, or has another one.
        """
        known = self.database.fact("key")
        key = self._store.load()
        if key is None:
            if known:
                raise UmbelError(
                    f"{self._store.where}: the key {known[:8]} of this device is gone; restore it, or enrol with a new state folder"
                )
            key = self._store.create()
        found = signing.fingerprint(key)
        if known not in ("", found):
            raise UmbelError(
                f"{self._store.where}: expected the key {known[:8]} that this device is known by, found {found[:8]}; "
                "correct [key], or enrol with a new state folder"
            )
        if not known:
            self.database.remember("key", found)
        return key

    def close(self) -> None:
        """Close the database, let go of the key, and let another process have the folder."""
        self._store.close()
        self.database.close()
        self._lock_file.close()

    def change(self) -> AbstractContextManager[None]:
        """A transaction over everything in the database; see StateDatabase.change."""
        return self.database.change()

    @property
    def epoch(self) -> int:
        """The number of this device's newest session with a broker, 0 before the first."""
        return int(self.database.fact("epoch", "0"))

    def next_epoch(self) -> int:
        """Begin a session: the next epoch."""
        return self.database.count("epoch")

    def raise_epoch(self, epoch: int) -> None:
        """Count sessions on from `epoch`, unless more are known."""
        with self.change():
            self.database.remember("epoch", str(max(self.epoch, epoch)))

    @property
    def rounds(self) -> int:
        """Assignments this device has finished training."""
        return int(self.database.fact("rounds", "0"))

    def count_round(self) -> None:
        """Count one more finished assignment."""
        self.database.count("rounds")

    def claim_device(self, device: str) -> str:
        """The id of the device to which this folder belongs: `device`, unless another one claimed it before."""
        with self.change():
            owner = self.database.fact("device", device)
            self.database.remember("device", owner)
        return owner

    def forget_old(self, now: float) -> None:
        """Forget commands that nobody can send any more, and cancellations and uploads after a day; `now` is the server's time."""
        with self.change():
            self.inbox.forget_old(now)
            self.cancellations.forget_before(now - KEPT_SECONDS)
            self.uploads.forget_before(now - KEPT_SECONDS)

    def pinned(self) -> Trust | None:
        """The server that this device trusts, None before it is enrolled."""
        return load_trust(self.folder)

    def pin(self, trust: Trust) -> None:
        """Trust this server from now on."""
        save_trust(self.folder, trust)


def _is_ours(folder: Path) -> bool:
    return (folder / DATABASE).exists() or (folder / LOCK).exists()
