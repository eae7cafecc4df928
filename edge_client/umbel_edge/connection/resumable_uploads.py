"""Uploading blobs: an interrupted upload continues where it stopped, also after a restart."""

import io
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import urllib3

from umbel.enrolment import BLOB_PATH, COMPLETE, OFFSET, UPLOAD_PATH
from umbel.messages import Blob
from umbel_edge.connection.http import CHUNK, Refused, ServerHttp, drain
from umbel_edge.device.upload_records import UploadRecords

log = logging.getLogger("umbel.agent")

_OFFSET = re.compile(r"[0-9]{1,19}")


def _always() -> str:
    return ""


class Uploads:
    """Sends the server the blobs that answer its commands; the server accepts no others.

    The first attempt is one PUT of the whole blob. When `records` hold that the upload was begun before, the server is
    asked for the offset that it reached (HEAD of the upload, `Upload-Offset`), and the rest is sent (PATCH).
    """

    def __init__(self, http: ServerHttp, records: UploadRecords) -> None:
        self._http, self._records = http, records

    def send(self, command: str, data: bytes) -> Blob:
        """Upload `data`, unless it is small enough to travel in a message; returns its address. Raises UmbelError."""
        blob = Blob.of(data)
        if blob.data is None:
            self._send(command, blob, lambda: io.BytesIO(data), None, _always)
            self.forget(blob)
        return blob

    def send_file(
        self, command: str, blob: Blob, path: Path, check: Callable[[], None], ready: Callable[[], str] = _always
    ) -> None:
        """Upload the file at `path`, whose address is `blob`, however often the link breaks.

        `check` is called again and again, and raises when the work should end. While `ready` returns a reason not to send
        now, the upload waits. A blob that the server has is not sent again, until `forget`.
        """
        self._send(command, blob, lambda: path.open("rb"), check, ready)

    def _send(
        self,
        command: str,
        blob: Blob,
        open_source: Callable[[], IO[bytes]],
        check: Callable[[], None] | None,
        ready: Callable[[], str],
    ) -> None:
        reached = 0

        def attempt() -> None:
            nonlocal reached
            if check is not None:
                check()
            if reason := ready():
                raise urllib3.exceptions.HTTPError(f"not sending now: {reason}")
            offset: int | None = 0
            if self._records.begin(blob.sha256, time.time()):
                offset = self._arrived(command, blob)
                reached = max(reached, offset or 0)
            if offset is not None:
                with open_source() as source:
                    source.seek(offset)
                    self._send_from(command, blob, offset, source, check)

        self._http.attempt(attempt, lambda: reached, check)

    def forget(self, blob: Blob) -> None:
        """Forget that the upload of `blob` was begun."""
        self._records.end(blob.sha256)

    def _arrived(self, command: str, blob: Blob) -> int | None:
        """The number of bytes of the upload that the server has; None when it has the whole blob."""
        response = self._http.request("HEAD", UPLOAD_PATH.format(sha256=blob.sha256), command=command)
        drain(response)
        if response.headers.get(COMPLETE) == "?1":
            return None
        offset = response.headers.get(OFFSET, "")
        arrived = int(offset) if _OFFSET.fullmatch(offset) else 0
        return arrived if arrived <= blob.size else 0

    def _send_from(
        self, command: str, blob: Blob, offset: int, source: IO[bytes], check: Callable[[], None] | None
    ) -> None:
        headers = {"Content-Length": str(blob.size - offset), "Content-Type": "application/octet-stream"}
        body = _pieces(source, check)
        if offset == 0:
            drain(self._http.request("PUT", BLOB_PATH.format(sha256=blob.sha256), body, headers, command))
            return
        log.info("upload of %s continues from byte %d of %d", blob.sha256[:12], offset, blob.size)
        headers |= {"Content-Type": "application/partial-upload", OFFSET: str(offset), COMPLETE: "?1"}
        try:
            drain(self._http.request("PATCH", UPLOAD_PATH.format(sha256=blob.sha256), body, headers, command))
        except Refused as error:
            if error.status not in (409, 422):
                raise
            # The server had the beginning of another upload, or lost ours: the next attempt asks for the offset again.
            raise urllib3.exceptions.HTTPError(str(error)) from error


def _pieces(source: IO[bytes], check: Callable[[], None] | None) -> Iterator[bytes]:
    while piece := source.read(CHUNK):
        yield piece
        if check is not None:
            check()
