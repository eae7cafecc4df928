"""Bytes by address: content-addressed blobs in a folder or a bucket."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.request import url2pathname

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

    def __init__(self, url: str) -> None:
        self._folder: Path | None = None
        if url.startswith("file://"):
            self._folder = Path(url2pathname(url.removeprefix("file://")))
            self._folder.mkdir(parents=True, exist_ok=True)
        self._store: ObjectStore = from_url(url)

    def put(self, data: bytes, durable: bool = False) -> Blob:
        """Store `data` and return its address; with `durable` it also survives a power failure after this returns."""
        blob = Blob.of(data)
        if not self._has_whole(blob):
            obstore.put(self._store, _path(blob.sha256), data)
        if durable and self._folder is not None:
            target = self._folder / _path(blob.sha256)
            _sync(target)
            _sync(target.parent)
            _sync(self._folder)
        return blob

    def _has_whole(self, blob: Blob) -> bool:
        """Whether all its bytes are there: of a blob that was not durable a power failure may have left none."""
        try:
            return self.size(blob.sha256) == blob.size
        except MissingBlob:
            return False

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

    def read_ranges(self, sha256: str, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        """The bytes of several ranges, each from its start to before its stop, in one request where the store can.

        Raises MissingBlob when there is no such blob.
        """
        try:
            return [bytes(part) for part in obstore.get_ranges(self._store, _path(sha256), starts=starts, ends=stops)]
        except FileNotFoundError as error:
            raise MissingBlob(f"blob {sha256[:12]} is not on this server; upload it first") from error

    def place(self, sha256: str, file: Path) -> None:
        """Move `file`, whose bytes are on the disk and have this digest, into the store; durable when this returns.

        Raises FileNotFoundError when the file is gone.
        """
        if self._folder is None:
            obstore.put(self._store, _path(sha256), file)
            file.unlink()
            return
        target = self._folder / _path(sha256)
        if not target.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            _sync(self._folder)
        try:
            os.replace(file, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(file, target)  # the blobs are on another file system than the state folder
            file.unlink()
        _sync(target.parent)


def check_address(sha256: str) -> str:
    """`sha256` when it is a blob's address; raises BlobError otherwise."""
    if not _ADDRESS.fullmatch(sha256):
        raise BlobError(f"a blob's address is 64 lower-case hex digits, got {sha256[:80]!r}")
    return sha256


def _path(sha256: str) -> str:
    return f"{check_address(sha256)[:2]}/{sha256}"


def _copy(file: Path, target: Path) -> None:
    with file.open("rb") as source, tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as copy:
        try:
            shutil.copyfileobj(source, copy, _SPOOL)
            copy.flush()
            os.fsync(copy.fileno())
            os.replace(copy.name, target)
        except BaseException:
            Path(copy.name).unlink(missing_ok=True)
            raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
