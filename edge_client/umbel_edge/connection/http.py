"""Requests to the server, signed by the device, tried again when the link breaks."""

import logging
import math
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import msgspec
import urllib3
from joserfc.jwk import ECKey

from umbel.enrolment import (
    CLOCK,
    CLOCK_TOLERANCE,
    OFFSET,
    TRUST_PATH,
    Access,
    Trust,
    bearer,
    make_nonce,
    read_trust,
)
from umbel.errors import NOT_DECODED, SignatureError, UmbelError
from umbel.printable import printable
from umbel.tensors import digest
from umbel.tls import blind_context, client_context
from umbel_edge.config import AgentConfig
from umbel_edge.device.full_storage import is_full
from umbel_edge.waiting import Stopped, back_off

log = logging.getLogger("umbel.agent")

ATTEMPTS = 5
CHUNK = 1 << 16
ANSWER_BYTES = 1 << 16
TRUST_BYTES = 1 << 20
"""Longest answers, in bytes, that are read; the answer about trust is longer because it holds every succession of keys."""
FIRST_PAUSE, LAST_PAUSE = 0.2, 20.0
CLOCK_NEWS = 2.0
"""A request is signed again with the server's time only if that differs by more seconds than this from the time used before."""
LONGEST_WAIT = 60.0
"""A busy server is asked again after at most so many seconds, even if it names a longer time."""
BUSY = (429, 503)
"""HTTP statuses that mean: ask again after the seconds in Retry-After."""
READS = ("GET", "HEAD")
_NOT_NOW = (9, 10)
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


T = TypeVar("T")


class Refused(UmbelError):
    """The server refused a request; `status` is the HTTP status, and `foreign` says that no Umbel server wrote the answer.

    `code` is a reason that the device can act on: umbel.enrolment.UNKNOWN, umbel.enrolment.CLOCK, "suspended", "revoked",
    or empty.
    """

    def __init__(self, status: int, reason: str, code: str = "", foreign: bool = False) -> None:
        super().__init__(reason)
        self.status, self.code, self.foreign = status, code, foreign

    @property
    def bars(self) -> bool:
        """Whether the server refuses every request of this device, because it is suspended or revoked."""
        return self.code in ("suspended", "revoked")


class Busy(urllib3.exceptions.HTTPError):
    """The server is busy; ask again after `wait` seconds."""

    def __init__(self, sentence: str, wait: float) -> None:
        super().__init__(sentence)
        self.wait = wait


class ServerHttp:
    """Requests to one server, signed by the device. When `stopping` is set, every wait ends.

    `on_barred` is called with an answer that bars the device, in the thread of the request.
    """

    def __init__(
        self, config: AgentConfig, key: ECKey, stopping: threading.Event, clock: Callable[[], float] = time.time
    ) -> None:
        self._config, self._key, self._stopping, self._clock = config, key, stopping, clock
        self.url = self._base = config.server.rstrip("/")
        self.secure = self._base.startswith("https:")
        self.on_barred: Callable[[Refused], None] = lambda refused: None
        self.ca = ""
        """PEM of the authority that issues the server's certificates; empty without TLS, or before `use`."""
        self._pool = _pool(None)
        self._random = random.Random()
        self._ahead = 0.0
        """Seconds added to this device's clock in signed requests, learned from an answer that refused its clock."""

    def use(self, trust: Trust) -> None:
        """Accept only certificates of this authority from now on; raises UmbelError when the URL is not https."""
        if trust.ca and not self.secure:
            raise UmbelError(f"{self.url}: this server uses TLS; write its URL with https://")
        if self.secure:
            self.ca = trust.ca
            self._pool = _pool(client_context(trust.ca))

    def ask_trust(self, fingerprint: str, attempts: float) -> Trust:
        """The trust that the server states, if it has the expected fingerprint; certificates are not checked before that.

        Raises UmbelError on another fingerprint, and after `attempts` attempts without an answer.
        """
        urllib3.disable_warnings(
            urllib3.exceptions.InsecureRequestWarning
        )  # on purpose: the answer's fingerprint is checked
        self._pool = _pool(blind_context())
        trust = self.told_trust(attempts)
        try:
            return trust.anchored(fingerprint)
        except SignatureError:
            self.check(trust.fingerprint(), fingerprint)
            raise

    def told_trust(self, attempts: float = math.inf) -> Trust:
        """The trust that the server states, not yet checked; waits as `until_answered`. Raises UmbelError on any other answer."""
        answer = self.until_answered("GET", TRUST_PATH, signed=False, attempts=attempts, most=TRUST_BYTES)
        try:
            return read_trust(answer)
        except SignatureError as error:
            raise UmbelError(f"{self.url} does not answer like an Umbel server ({error}); correct its URL") from error

    def check(self, found: str, expected: str) -> None:
        """Raise UmbelError unless the fingerprint `found` is the `expected` one."""
        if found != expected:
            raise UmbelError(
                f"{self.url} has the key {found[:8]}, this device trusts {expected[:8]}: it is another server; "
                "correct its URL or the enrolment token"
            )

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
        command: str = "",
    ) -> urllib3.BaseHTTPResponse:
        """Send one signed request; the caller releases the answer's connection. An upload names the `command` it answers.

        Raises Refused when the server refuses it, Busy when the server is busy, and another HTTPError of urllib3 when no
        answer or a 5xx status comes back.
        """
        access = Access(
            population=self._config.population,
            device=self._config.device,
            method=method,
            path=path,
            at=self._clock() + self._ahead,
            command=command,
            body=digest(body) if isinstance(body, bytes) else "",
            offset=int((headers or {}).get(OFFSET, "0")),
            nonce="" if method in READS else make_nonce(),
        )
        response = self._pool.request(
            method,
            self._base + path,
            body=body,
            headers={**(headers or {}), "Authorization": bearer(access, self._key)},
            preload_content=False,
            redirect=False,
        )
        if response.status in BUSY:
            raise _busy(response)
        if response.status >= 500:
            drain(response)
            raise urllib3.exceptions.HTTPError(f"the server answered {response.status}")
        if response.status >= 300:
            refused = _refused(response)
            if refused.code == CLOCK and self._set_clock(response.headers.get("Date", "")):
                raise urllib3.exceptions.HTTPError(f"{refused}; asking again with the server's time")
            if refused.bars:
                self.on_barred(refused)
            raise refused
        return response

    def _set_clock(self, date: str) -> bool:
        """Sign with the server's time from now on; returns False when `date` is missing, is not new, or differs by more than
        CLOCK_TOLERANCE."""
        try:
            ahead = parsedate_to_datetime(date).timestamp() + 0.5 - self._clock()  # the header has whole seconds
        except (ValueError, OverflowError):
            return False
        if abs(ahead) > CLOCK_TOLERANCE or abs(ahead - self._ahead) < CLOCK_NEWS:
            return False
        self._ahead = ahead
        return True

    def attempt(
        self,
        call: Callable[[], T],
        progress: Callable[[], int] = lambda: 0,
        check: Callable[[], None] | None = None,
    ) -> T:
        """Call `call`, and again with jittered back-off while the link breaks; returns its result.

        `progress` returns a number that grows while the work gets further. Raises UmbelError after ATTEMPTS failures in a
        row without progress. With `check`, which raises when the work should end, there is no such limit. After Busy the
        next call waits as long as the server says, but at most LONGEST_WAIT.
        """
        failures, reached = 0, progress()
        while True:
            try:
                return call()
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if is_full(error):
                    raise
                failures = failures + 1 if progress() <= reached else 0
                reached = max(reached, progress())
                if failures >= ATTEMPTS and check is None:
                    raise UmbelError(
                        f"{self._base} could not be reached in {ATTEMPTS} attempts: {self._explained(error)}"
                    ) from error
                log.info("%s: %s; trying again", self._base, self._explained(error))
                least = error.wait if isinstance(error, Busy) else 0.0
                try:
                    self._pause(max(0, failures - 1), check, least)
                except UmbelError as ended:
                    if least and type(ended) is UmbelError:
                        raise UmbelError(f"{ended}; the server had answered: {error}") from error
                    raise

    def until_answered(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        signed: bool = True,
        attempts: float = math.inf,
        most: int = ANSWER_BYTES,
        is_answer: Callable[[bytes], bool] | None = None,
    ) -> bytes:
        """The answer to a request, at most `most` + 1 bytes of it; logs once that it waits while the server does not answer.

        With `is_answer` it also waits while something else answers in the server's place, as a captive portal or a proxy does:
        with bytes for which `is_answer` is False, or with a refusal that no Umbel server wrote. Raises Refused when the server
        refuses the request, and UmbelError after `attempts` attempts without an answer.
        """
        attempt, said = 0, None
        while True:
            least, clock = 0.0, ""
            try:
                if signed:
                    response = self.request(method, path, body)
                    answer = read_limited(response, most)
                    if is_answer is None or is_answer(answer):
                        return answer
                    kind = printable(response.headers.get("Content-Type", "no content type")[:80])
                    raise Refused(response.status, f"the server answered {response.status} with {kind}", foreign=True)
                response = self._pool.request(
                    method, self._base + path, body=body, preload_content=False, redirect=False
                )
                if response.status in BUSY:
                    raise _busy(response)
                if response.status < 500:
                    if response.status >= 300:
                        raise _refused(response)
                    return read_limited(response, most)
                drain(response)
                why = f"it answered {response.status}"
            except Refused as error:
                if is_answer is None or not error.foreign:
                    raise
                why = f"{error}, which no Umbel server does: a captive portal, a proxy or another server may be in its place"
            except (urllib3.exceptions.HTTPError, OSError) as error:
                why, least = printable(str(error)), error.wait if isinstance(error, Busy) else 0.0
                clock = self._blamed_clock(error)
            if not self.secure:
                why += "; the URL of a server with TLS begins with https://"
            if attempt + 1 >= attempts:
                todo = clock or "correct the URL, or start the server"
                raise UmbelError(f"{self._base} does not answer ({why}); {todo}")
            if said is None or bool(clock) != said:
                said = bool(clock)
                log.warning("%s does not answer (%s); %s", self._base, why, clock or "waiting until it does")
            self._pause(attempt, least=least)
            attempt += 1

    def raise_if_stopping(self) -> None:
        """Raise Stopped when the agent is to stop."""
        if self._stopping.is_set():
            raise Stopped("the agent is stopping")

    def _blamed_clock(self, error: Exception) -> str:
        """Advice to set this device's clock, when the server's certificate is not valid at the device's time; else empty."""
        if not any(isinstance(e, ssl.SSLCertVerificationError) and e.verify_code in _NOT_NOW for e in error.args):
            return ""
        now = datetime.fromtimestamp(self._clock(), UTC)
        return f"if it is not {now:%Y-%m-%d %H:%M} UTC now, set this device's clock"

    def _explained(self, error: Exception) -> str:
        return "; ".join(filter(None, (str(error), self._blamed_clock(error))))

    def _pause(self, attempt: int, check: Callable[[], None] | None = None, least: float = 0.0) -> None:
        left = back_off(attempt, FIRST_PAUSE, LAST_PAUSE, self._random) + min(least, LONGEST_WAIT)
        while left > 0:
            if self._stopping.wait(min(left, 1.0)):
                raise Stopped("the agent is stopping")
            if check is not None:
                check()
            left -= 1.0


def _pool(tls: ssl.SSLContext | None) -> urllib3.PoolManager:
    timeout = urllib3.Timeout(connect=10, read=60)
    return urllib3.PoolManager(num_pools=1, maxsize=2, retries=False, timeout=timeout, ssl_context=tls)


def _refused(response: urllib3.BaseHTTPResponse) -> Refused:
    data = read_limited(response, ANSWER_BYTES)
    try:
        answer = msgspec.json.decode(data, type=dict[str, str])
        return Refused(response.status, printable(answer["error"]), answer.get("code", ""))
    except (KeyError, *NOT_DECODED):
        to = printable(response.headers.get("Location", "")[:200])
        return Refused(response.status, f"the server answered {response.status}{to and f' (go to {to})'}", foreign=True)


def drain(response: urllib3.BaseHTTPResponse) -> None:
    """Read and drop an answer's body, so that the connection can be used again; a long body is not read to its end."""
    read_limited(response, ANSWER_BYTES)


def _busy(response: urllib3.BaseHTTPResponse) -> Busy:
    """The answer as an error, with the seconds of its Retry-After; 0 when that is missing or a date."""
    after = response.headers.get("Retry-After", "")
    return Busy(str(_refused(response)), float(after) if after.isascii() and after.isdigit() else 0.0)


def read_limited(response: urllib3.BaseHTTPResponse, size: int) -> bytes:
    """The first `size` + 1 bytes of the body: one more than allowed shows that the body is too long.

    The body is not decompressed: a small compressed body could fill all memory.
    """
    data = bytearray()
    for chunk in response.stream(CHUNK, decode_content=False):
        data += chunk
        if len(data) > size:
            response.close()  # the rest is not read
            break
    response.release_conn()
    return bytes(data[: size + 1])
