"""Bytes by address: content-addressed blobs in a folder or a bucket."""

import hashlib
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO

import obstore
from obstore.store import ObjectStore, from_url

from umbel.errors import UmbelError
from umbel.messages import Blob
from umbel.tensors import digest

_ADDRESS = re.compile(r"[0-9a-f]{64}")
_SPOOL = 1 << 20


class BlobError(UmbelError):
    """A blob that is too large, or whose bytes are not those of its address."""


class MissingBlob(BlobError):
    """A blob that is not there."""


class Blobs:
    """Blobs at an obstore URL (`file://`, `s3://`), each at `<first two hex digits>/<sha256>`."""

    def __init__(self, url: str, max_bytes: int) -> None:
        if url.startswith("file://"):
            Path(url.removeprefix("file://")).mkdir(parents=True, exist_ok=True)
        self._store: ObjectStore = from_url(url)
        self._max = max_bytes

    def put(self, data: bytes) -> Blob:
        """Store `data` and return its address."""
        blob = Blob.of(data)
        if not self.has(blob.sha256):
            obstore.put(self._store, _path(blob.sha256), data)
        return blob

    def get(self, sha256: str) -> bytes:
        """The blob's bytes; raises MissingBlob when there is none, BlobError when its bytes were changed."""
        try:
            data = bytes(obstore.get(self._store, _path(sha256)).bytes())
        except FileNotFoundError as error:
            raise MissingBlob(f"blob {sha256[:12]} is not on this server; upload it first") from error
        if digest(data) != sha256:
            raise BlobError(f"blob {sha256[:12]} was changed on the server's disk; restore it from a backup")
        return data

    def has(self, sha256: str) -> bool:
        """Whether the blob is stored."""
        try:
            obstore.head(self._store, _path(sha256))
        except FileNotFoundError:
            return False
        return True

    def size(self, sha256: str) -> int:
        """The number of bytes of the blob; raises MissingBlob when there is none."""
        try:
            return int(obstore.head(self._store, _path(sha256))["size"])
        except FileNotFoundError as error:
            raise MissingBlob(f"blob {sha256[:12]} is not on this server; upload it first") from error

    def read(self, sha256: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` to before `stop`, in pieces."""
        for offset in range(start, stop, _SPOOL):
            length = min(_SPOOL, stop - offset)
            yield bytes(obstore.get_range(self._store, _path(sha256), start=offset, length=length))

    async def receive(self, sha256: str, chunks: AsyncIterator[bytes]) -> Blob:
        """Store a streamed upload; raises BlobError, storing nothing, when it is too large or has another digest."""
        total, hasher = 0, hashlib.sha256()
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL) as spool:
            async for chunk in chunks:
                total += len(chunk)
                if total > self._max:
                    raise BlobError(f"a blob may have at most {self._max} bytes; this upload is larger")
                hasher.update(chunk)
                spool.write(chunk)
            if hasher.hexdigest() != sha256:
                raise BlobError(
                    f"the upload should have digest {sha256[:12]}, its {total} bytes have {hasher.hexdigest()[:12]}; "
                    "send it again"
                )
            spool.seek(0)
            self._put_stream(sha256, spool)
        return Blob(sha256, total)

    def _put_stream(self, sha256: str, stream: IO[bytes]) -> None:
        obstore.put(self._store, _path(sha256), stream)


def _path(sha256: str) -> str:
    if not _ADDRESS.fullmatch(sha256):
        raise BlobError(f"a blob's address is 64 lower-case hex digits, got {sha256[:80]!r}")
    return f"{sha256[:2]}/{sha256}"
