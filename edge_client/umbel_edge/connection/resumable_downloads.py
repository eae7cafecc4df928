"""Downloading blobs: an interrupted download continues where it stopped, also after a restart."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from umbel.atomic import write_atomically
from umbel.enrolment import BLOB_PATH
from umbel.errors import UmbelError
from umbel.messages import Blob
from umbel.tensors import digest
from umbel_edge.connection.http import CHUNK, ServerHttp, read_limited

IN_MEMORY = 1 << 18
"""Blobs up to this many bytes are downloaded in memory, not through a file."""
_ADDRESS = re.compile(r"[0-9a-f]{64}")


class Downloads:
    """Fetches blobs from the server and checks their digests.

    Every method takes `check`, which is called again and again and raises when the work should end; with it the
    download is tried however long it takes, else as often as ServerHttp.attempt does. Raises UmbelError when the download
    fails.
    """

    def __init__(self, http: ServerHttp) -> None:
        self._http = http

    def fetch(self, blob: Blob, folder: Path, check: Callable[[], None] | None = None) -> bytes:
        """The blob's bytes, from the message, or by HTTP; `folder` keeps the beginning of a broken download."""
        _check_address(blob)
        if (data := blob.content()) is not None:
            return data
        if blob.size > IN_MEMORY:
            part = self._fetch_part(blob, folder, check)
            data = part.read_bytes()
            part.unlink()
            return data
        data = self._http.attempt(lambda: self._get(blob), check=check)
        if len(data) != blob.size or digest(data) != blob.sha256:
            raise UmbelError(f"blob {blob.sha256[:12]} arrived with digest {digest(data)[:12]}; it is not used")
        return data

    def fetch_file(self, blob: Blob, path: Path, check: Callable[[], None] | None = None) -> Path:
        """The blob as a file at `path`, fetched unless it is there already with the right digest."""
        _check_address(blob)
        if path.is_file() and path.stat().st_size == blob.size and file_digest(path) == blob.sha256:
            return path
        if blob.data is None and blob.size > IN_MEMORY:
            os.replace(self._fetch_part(blob, path.parent, check), path)
        else:
            write_atomically(path, self.fetch(blob, path.parent, check))
        return path

    def _fetch_part(self, blob: Blob, folder: Path, check: Callable[[], None] | None) -> Path:
        part = folder / f"{blob.sha256}.part"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._http.attempt(
                lambda: self._download(blob, part, check), lambda: part.stat().st_size if part.exists() else 0, check
            )
            found = file_digest(part)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        if found != blob.sha256:
            part.unlink()
            raise UmbelError(f"blob {blob.sha256[:12]} arrived with digest {found[:12]}; it is not used")
        return part

    def _get(self, blob: Blob) -> bytes:
        return read_limited(self._http.request("GET", BLOB_PATH.format(sha256=blob.sha256)), blob.size)

    def _download(self, blob: Blob, part: Path, check: Callable[[], None] | None) -> None:
        have = part.stat().st_size if part.exists() else 0
        if have > blob.size:
            part.unlink()
            have = 0
        if have == blob.size:
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        response = self._http.request("GET", BLOB_PATH.format(sha256=blob.sha256), headers=headers)
        with part.open("ab" if response.status == 206 else "wb") as file:
            for chunk in response.stream(CHUNK, decode_content=False):
                file.write(chunk)
                if file.tell() > blob.size:
                    raise UmbelError(f"blob {blob.sha256[:12]} should have {blob.size} bytes, the server sends more")
                self._http.raise_if_stopping()
                if check is not None:
                    check()


def _check_address(blob: Blob) -> None:
    if not _ADDRESS.fullmatch(blob.sha256):  # the address becomes part of a path
        raise UmbelError(f"a blob's address is 64 lower-case hex digits, got {blob.sha256[:80]!r}")


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
