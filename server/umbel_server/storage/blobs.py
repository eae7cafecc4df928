"""Content-addressed blobs in a folder or an S3 bucket: the address of a blob is its SHA-256."""

import copy
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from umbel.errors import UmbelError
from umbel.messages import Blob
from umbel.tensors import digest

_ADDRESS = re.compile(r"[0-9a-f]{64}")
_SPOOL = 1 << 20
PIECE = 1 << 19
"""Bytes of one piece of a blob that is read and processed piece by piece; small enough for a processor's cache."""


class BlobError(UmbelError):
    """A blob is too large, or its bytes do not match its address."""


class MissingBlob(BlobError):
    """The blob is not stored."""


class Blobs:
    """Blobs at an obstore URL (`file://`, `s3://`), each at `<first two hex digits>/<sha256>`."""

    def __init__(self, url: str) -> None:
        self._folder: Path | None = None
        if url.startswith("file://"):
            self._folder = Path(url2pathname(url.removeprefix("file://")))
            self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._store: ObjectStore = from_url(url)
        except (BaseError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise UmbelError(
                f"the blobs in umbel.toml should be at a URL such as s3://bucket/folder ({first}); correct it"
            ) from error
        self._prefix = ""

    def apart(self, name: str) -> "Blobs":
        """A separate part of the same store under `name`. Its blobs are found only there, and are removed together."""
        view = copy.copy(self)
        view._prefix = f"{self._prefix}{name}/"
        return view

    def _path(self, sha256: str) -> str:
        return f"{self._prefix}{check_address(sha256)[:2]}/{sha256}"

    def put(self, data: bytes, durable: bool = False) -> Blob:
        """Store `data` and return its address. With `durable` it survives a power failure once this returns."""
        blob = Blob.of(data)
        if not self._has_whole(blob):
            obstore.put(self._store, self._path(blob.sha256), data)
        if durable and self._folder is not None:
            self._make_durable(self._folder, blob.sha256)
        return blob

    def _make_durable(self, folder: Path, sha256: str) -> None:
        target = folder / self._path(sha256)
        _sync(target)
        for parent in target.parents:
            _sync(parent)
            if parent == folder:
                break

    def copy_from(self, other: "Blobs", sha256: str) -> None:
        """Copy a blob from another part of the same store; it is durable when this returns. Raises MissingBlob."""
        try:
            obstore.copy(self._store, other._path(sha256), self._path(sha256))
        except FileNotFoundError as error:
            raise missing(sha256) from error
        if self._folder is not None:
            self._make_durable(self._folder, sha256)

    def count(self) -> int:
        """The number of blobs. It lists them all, so ask it of a small part of a store."""
        return sum(len(batch) for batch in obstore.list(self._store, self._prefix))

    def sizes(self) -> dict[str, int]:
        """The size in bytes of every blob in this part of the store, by address, from one listing."""
        found: dict[str, int] = {}
        for batch in obstore.list(self._store, self._prefix or None):
            for one in batch:
                folder, _, sha256 = one["path"].removeprefix(self._prefix).partition("/")
                if _ADDRESS.fullmatch(sha256) and folder == sha256[:2]:
                    found[sha256] = one["size"]
        return found

    def holds_any(self) -> bool:
        """Whether this part of the store may hold anything."""
        return self._folder is None or (self._folder / self._prefix).is_dir()

    def names(self, name: str) -> list[str]:
        """The names of the separate parts below `name`."""
        found = obstore.list_with_delimiter(self._store, prefix=f"{self._prefix}{name}")
        return [prefix.rstrip("/").rsplit("/", 1)[1] for prefix in found["common_prefixes"]]

    def remove_all(self) -> None:
        """Remove every blob of this part of the store. The whole store is refused."""
        assert self._prefix, "only a separate part of the store may be removed"
        if self._folder is not None:
            with suppress(FileNotFoundError):
                shutil.rmtree(self._folder / self._prefix)
            return
        for batch in obstore.list(self._store, self._prefix):
            obstore.delete(self._store, [found["path"] for found in batch])

    def _has_whole(self, blob: Blob) -> bool:
        """Whether the blob is stored whole: a power failure may leave a file without its bytes."""
        try:
            return self.size(blob.sha256) == blob.size
        except MissingBlob:
            return False

    def get(self, sha256: str) -> bytes:
        """The blob's bytes; raises MissingBlob when it is not stored, BlobError when its bytes were changed."""
        try:
            data = bytes(obstore.get(self._store, self._path(sha256)).bytes())
        except FileNotFoundError as error:
            raise missing(sha256) from error
        if digest(data) != sha256:
            raise _changed(sha256)
        return data

    def fill(self, sha256: str, memory: memoryview) -> Iterator[int]:
        """Read a blob of the size of `memory` into it; yields the number of bytes read so far after each PIECE.

        The digest is checked at the end, so consume the iterator completely. Raises MissingBlob, and BlobError when the
        bytes were changed.
        """
        hasher, end = hashlib.sha256(), 0
        for begin, end in self._fill(sha256, memory):
            hasher.update(memory[begin:end])
            yield end
        if end != memory.nbytes or hasher.hexdigest() != sha256:
            raise _changed(sha256)

    def _fill(self, sha256: str, memory: memoryview) -> Iterator[tuple[int, int]]:
        end = 0
        try:
            if self._folder is not None:
                with (self._folder / self._path(sha256)).open("rb", buffering=0) as file:
                    while length := file.readinto(memory[end : end + PIECE]):
                        yield end, end + length
                        end += length
                return
            for piece in obstore.get(self._store, self._path(sha256)).stream(min_chunk_size=PIECE):
                begin, end = end, end + len(piece)
                if end > memory.nbytes:
                    raise _changed(sha256)
                memory[begin:end] = piece
                yield begin, end
        except FileNotFoundError as error:
            raise missing(sha256) from error

    def has(self, sha256: str) -> bool:
        """Whether the blob is stored."""
        try:
            obstore.head(self._store, self._path(sha256))
        except FileNotFoundError:
            return False
        return True

    def size(self, sha256: str) -> int:
        """The size of the blob in bytes; raises MissingBlob when it is not stored."""
        try:
            return int(obstore.head(self._store, self._path(sha256))["size"])
        except FileNotFoundError as error:
            raise missing(sha256) from error

    def read(self, sha256: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` to `stop` (exclusive), in pieces."""
        for offset in range(start, stop, _SPOOL):
            length = min(_SPOOL, stop - offset)
            yield bytes(obstore.get_range(self._store, self._path(sha256), start=offset, length=length))

    def read_ranges(self, sha256: str, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        """The bytes of several ranges, each from its start to its stop (exclusive), in one request if the store can.

        Raises MissingBlob when the blob is not stored.
        """
        try:
            return [
                bytes(part) for part in obstore.get_ranges(self._store, self._path(sha256), starts=starts, ends=stops)
            ]
        except FileNotFoundError as error:
            raise missing(sha256) from error

    def place(self, sha256: str, file: Path) -> None:
        """Move `file` into the store under this address; it is durable when this returns.

        The caller has checked the digest and synced the file. Raises FileNotFoundError when the file is gone.
        """
        if self._folder is None:
            obstore.put(self._store, self._path(sha256), file)
            file.unlink()
            return
        target = self._folder / self._path(sha256)
        if not target.parent.is_dir():
            made = [folder for folder in target.parents if folder.is_relative_to(self._folder) and not folder.is_dir()]
            target.parent.mkdir(parents=True, exist_ok=True)
            for folder in made:
                _sync(folder.parent)
        try:
            os.replace(file, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(file, target)  # the blobs are on another file system than the state folder
            file.unlink()
        _sync(target.parent)


def missing(sha256: str) -> MissingBlob:
    """The error for a blob that is not stored."""
    return MissingBlob(f"blob {sha256[:12]} is not on this server; upload it first")


def _changed(sha256: str) -> BlobError:
    return BlobError(f"blob {sha256[:12]} was changed on the server's disk; restore it from a backup")


def check_address(sha256: str) -> str:
    """`sha256` if it has the form of a blob's address; raises BlobError otherwise."""
    if not _ADDRESS.fullmatch(sha256):
        raise BlobError(f"a blob's address is 64 lower-case hex digits, got {sha256[:80]!r}")
    return sha256


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
