"""A bucket that counts: an HTTP server on this machine that speaks as much of the S3 protocol as the server's blobs need."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "/bucket/"


class CountingBucket:
    """Objects in memory by key; `requests` holds the method and the key or listed prefix of each request, in order."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        bucket = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                if "list-type" in query:
                    bucket.requests.append(("LIST", query.get("prefix", "")))
                    self._answer(200, bucket.listing(query.get("prefix", ""), query.get("delimiter", "")))
                else:
                    self._object("GET")

            def do_HEAD(self) -> None:
                self._object("HEAD")

            def _object(self, method: str) -> None:
                bucket.requests.append((method, key := self._key()))
                data = bucket.objects.get(key)
                self._answer(404 if data is None else 200, data or b"")

            def do_PUT(self) -> None:
                bucket.requests.append(("PUT", key := self._key()))
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if (source := self.headers.get("x-amz-copy-source")) is not None:
                    data = bucket.objects[unquote(source).removeprefix("bucket/").removeprefix(BUCKET)]
                bucket.objects[key] = data
                self._answer(200, b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>" if source else b"", data)

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"])).decode()
                keys = [part.split("</Key>")[0] for part in content.split("<Key>")[1:]]
                for key in keys:
                    bucket.requests.append(("DELETE", key))
                    bucket.objects.pop(key, None)
                gone = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
                self._answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())

            def _key(self) -> str:
                return unquote(urlsplit(self.path).path).removeprefix(BUCKET)

            def _answer(self, status: int, content: bytes, tagged: bytes | None = None) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Last-Modified", formatdate(0, usegmt=True))
                self.send_header(
                    "ETag", f'"{md5(content if tagged is None else tagged, usedforsecurity=False).hexdigest()}"'
                )
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def listing(self, prefix: str, delimiter: str) -> bytes:
        """The answer to ListObjectsV2, all on one page."""
        found, folders = "", set()
        for key, data in sorted(self.objects.items()):
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                continue
            found += (
                f"<Contents><Key>{escape(key)}</Key><LastModified>1970-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>x</ETag><Size>{len(data)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        for folder in sorted(folders):
            found += f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode()

    @contextmanager
    def serving(self) -> Iterator["CountingBucket"]:
        """The bucket, serving until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join(10)
            self._server.server_close()
