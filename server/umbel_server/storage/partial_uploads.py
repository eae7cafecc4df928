"""Resumable uploads of blobs: an interrupted upload continues where it stopped; the store gets whole blobs only.

After the IETF draft Resumable Uploads for HTTP (draft-ietf-httpbis-resumable-upload): `Upload-Offset` is the number of
bytes that have arrived.
"""

import asyncio
import errno
import hashlib
import math
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from starlette.concurrency import run_in_threadpool

from umbel.messages import Blob
from umbel_server.storage.blobs import BlobError, Blobs, check_address

KEPT_SECONDS = 86_400.0
"""An unfinished upload is removed after this long without a new byte."""
SWEEP_SECONDS = 3600.0
DRAIN_SECONDS = 0.2
PARTS_OF_ONE = 1
"""Unfinished uploads kept for one sender; a further one removes the oldest."""
BLOBS_OF_ONE = 2
"""Blobs that one sender may store: a device that was killed before its answer may upload a second one."""
_CHUNK = 1 << 20


class WrongOffset(BlobError):
    """The upload does not begin at the end of the bytes that have arrived; `offset` is that end."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"{offset} bytes of this upload are here; go on from there")
        self.offset = offset


class StoreFull(BlobError):
    """The server's disk is full."""


class TooLarge(BlobError):
    """The upload has more bytes than its sender may send."""


@dataclass(frozen=True)
class Sender:
    """The sender of an upload: the `folder` of its unfinished uploads, the store of its blobs, the `most` bytes of a blob.

    A `bounded` sender may store BLOBS_OF_ONE blobs. The blobs belong to `population`, unless it is empty. `sees(sha256)`
    says whether the sender may know that a stored blob exists. A bounded sender's `count(sizes)`
    is told the bytes of each blob in its store, by address, whenever one was added.
    """

    folder: str
    blobs: Blobs
    most: int
    bounded: bool = True
    population: str = ""
    sees: Callable[[str], bool] = lambda sha256: True
    count: Callable[[Mapping[str, int]], None] = lambda sizes: None

    def has(self, sha256: str) -> bool:
        """Whether the sender's store has a blob that the sender may see."""
        return self.sees(sha256) and self.blobs.has(sha256)


class Uploads:
    """Unfinished uploads as files at `<folder>/<sender's folder>/<sha256>.part`, separate for each sender.

    A sender has one upload of a blob at a time. The newest request takes it over, and the request before it, whose
    connection may be dead, writes no more. Methods are for the event loop's thread.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock
        self._turns: dict[Path, object] = {}
        self._placing: dict[Path, asyncio.Future[None]] = {}
        self._swept = float("-inf")

    async def offset(self, sender: Sender, sha256: str) -> tuple[int, bool]:
        """The number of bytes of an upload that have arrived, and whether it is complete.

        This ends an upload in progress, after it has written the bytes that this process has already received.
        """
        part = self._part(sender, sha256)
        await self._drained(part)
        self._turns.pop(part, None)
        await self._placed(part)
        size = _size(part)
        if not await run_in_threadpool(sender.has, sha256):
            return size, False
        return await run_in_threadpool(sender.blobs.size, sha256), True

    async def _drained(self, part: Path) -> None:
        """Wait until the upload in progress ends, or has received nothing for DRAIN_SECONDS; its sender has come back."""
        size, since = -1, time.monotonic()
        while part in self._turns and time.monotonic() - since < DRAIN_SECONDS:
            now = _size(part)
            if now != size:
                size, since = now, time.monotonic()
            await asyncio.sleep(DRAIN_SECONDS / 20)

    async def receive(self, sender: Sender, sha256: str, offset: int, chunks: AsyncIterator[bytes]) -> Blob:
        """Receive the bytes from `offset` to the end. Bytes that have arrived are kept when `chunks` ends early.

        The blob is on the disk when this returns. Raises WrongOffset; BlobError, and keeps nothing, when the upload is
        too large, has another digest, or exceeds BLOBS_OF_ONE; StoreFull.
        """
        await self._sweep()
        part, turn = self._part(sender, sha256), object()
        await self._placed(part)
        part.parent.mkdir(parents=True, exist_ok=True)
        here = _size(part)
        if offset and offset != here:
            if not here and await run_in_threadpool(sender.has, sha256):
                return Blob(sha256, await run_in_threadpool(sender.blobs.size, sha256))
            raise WrongOffset(here)
        if not here:
            self._make_room(part.parent)
        self._turns[part] = turn
        try:
            # Unbuffered: after another request takes over, this one must not write any more.
            with part.open("r+b" if offset else "wb", buffering=0) as file:
                hasher = await run_in_threadpool(_hash, file) if offset else hashlib.sha256()
                size = offset
                async for chunk in chunks:
                    self._check_turn(part, turn)
                    size += len(chunk)
                    if size > sender.most:
                        part.unlink(missing_ok=True)
                        raise TooLarge(
                            f"this upload may have at most {sender.most} bytes, it has more; send no more of it"
                        )
                    hasher.update(chunk)
                    _write(file, chunk)
                self._check_turn(part, turn)
                if hasher.hexdigest() != sha256:
                    part.unlink(missing_ok=True)
                    raise BlobError(
                        f"the upload should have digest {sha256[:12]}, its {size} bytes have {hasher.hexdigest()[:12]}; "
                        "send it again"
                    )
            placing = self._placing[part] = asyncio.ensure_future(run_in_threadpool(self._place, sender, sha256, part))
            placing.add_done_callback(lambda _: self._placing.pop(part))
            await asyncio.shield(placing)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull("the server's disk is full; make room there, then send the upload again") from error
            if error.errno == errno.ENOENT:
                raise BlobError("the upload was removed, as the command that it answers is over; drop it") from error
            raise
        finally:
            if self._turns.get(part) is turn:
                del self._turns[part]
        return Blob(sha256, size)

    def _check_turn(self, part: Path, turn: object) -> None:
        if self._turns.get(part) is not turn:
            raise BlobError("this upload was taken up again by its sender; this request is over")

    async def receive_once(self, sender: Sender, sha256: str, chunks: AsyncIterator[bytes]) -> Blob:
        """Receive a whole blob from a sender that does not resume, and may send several at once; raises as `receive`."""
        one = replace(sender, folder=f"once/{secrets.token_hex(8)}")
        try:
            return await self.receive(one, sha256, 0, chunks)
        finally:
            shutil.rmtree(self._folder / one.folder, ignore_errors=True)

    async def _placed(self, part: Path) -> None:
        """Wait while an earlier request moves the part into the store: no other request may touch it then."""
        while (placing := self._placing.get(part)) is not None:
            await asyncio.wait({placing})

    def _place(self, sender: Sender, sha256: str, part: Path) -> None:
        sizes = sender.blobs.sizes() if sender.bounded else {}
        if len(sizes.keys() - {sha256}) >= BLOBS_OF_ONE:
            part.unlink(missing_ok=True)
            raise BlobError(f"{BLOBS_OF_ONE} blobs came for this command already; send its answer with one of them")
        with part.open("rb") as file:
            os.fsync(file.fileno())
            sizes[sha256] = file.seek(0, os.SEEK_END)
        sender.blobs.place(sha256, part)
        if sender.bounded:
            sender.count(sizes)

    def _part(self, sender: Sender, sha256: str) -> Path:
        return self._folder / sender.folder / f"{check_address(sha256)}.part"

    def _make_room(self, folder: Path) -> None:
        parts = sorted(set(folder.glob("*.part")) - self._placing.keys(), key=_modified)
        for part in parts[: max(0, len(parts) - PARTS_OF_ONE + 1)]:
            part.unlink(missing_ok=True)
            self._turns.pop(part, None)

    async def _sweep(self) -> None:
        now = self._clock()
        if now - self._swept < SWEEP_SECONDS:
            return
        self._swept = now
        await run_in_threadpool(self._remove_older, now - KEPT_SECONDS)

    def _remove_older(self, oldest: float) -> None:
        for part in self._folder.rglob("*.part"):
            if _modified(part) < oldest:
                part.unlink(missing_ok=True)


def _size(part: Path) -> int:
    """The bytes of an unfinished upload; 0 when there is none, which a thread may bring about at any moment."""
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def _modified(part: Path) -> float:
    """The time in seconds of the last byte of an unfinished upload; infinity when it was finished meanwhile."""
    try:
        return part.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _write(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _hash(file: IO[bytes]) -> "hashlib._Hash":
    """The hash of the whole file; leaves the file at its end."""
    hasher = hashlib.sha256()
    while data := file.read(_CHUNK):
        hasher.update(data)
    return hasher
