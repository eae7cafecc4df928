"""An MQTT 5 link that connects again after every failure: one thread, QoS 1, last will, back-off with jitter."""

import logging
import random
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from umbel.loops import Loop

log = logging.getLogger("umbel.mqtt")

KEEPALIVE = 20
CONNECT_TIMEOUT = 10.0
FIRST_BACKOFF, LAST_BACKOFF = 0.2, 30.0
"""The pause before the next attempt, in seconds: the first one after a good session, and the longest."""
PUBLISH_OVERHEAD = 16
"""Bytes of a PUBLISH packet besides topic and payload, at most: header, length, packet id, and no properties."""
_TICK = 0.5
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)


@dataclass(frozen=True)
class Will:
    """The retained message that the broker publishes when the link breaks."""

    topic: str
    payload: bytes


class Link:
    """A connection to the broker at `host`:`port`, with or without TLS, made again with jittered back-off until `stop`.

    The link's thread calls `on_message(topic, payload)`, `on_up()` once the subscriptions are sent, and `on_down(reason)`.
    It calls `will()` before every connection, because MQTT fixes a will when a session begins. Nothing is queued while the
    link is down: `publish` returns False, and the caller keeps its own record of messages to send again. With `live_only`
    the link asks the broker for no retained messages, and drops those that it sends all the same.
    The thread ends only at `stop`: it logs an error of a callback, of `will` or of the connection, and continues.
    """

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        subscriptions: tuple[str, ...],
        on_message: Callable[[str, bytes], None],
        on_up: Callable[[], None] = lambda: None,
        on_down: Callable[[str], None] = lambda reason: None,
        will: Callable[[], Will | None] = lambda: None,
        seed: int | None = None,
        tls: ssl.SSLContext | None = None,
        live_only: bool = False,
    ) -> None:
        self._host, self._port, self._client_id = host, port, client_id
        self._subscriptions = subscriptions
        self._on_message, self._on_up, self._on_down, self._will = on_message, on_up, on_down, will
        self._random, self._tls, self._live_only = random.Random(seed), tls, live_only
        self._stopping = threading.Event()
        self._up = threading.Event()
        self._client: Client | None = None
        self._outgoing: deque[tuple[str, bytes, bool]] = deque()
        self._farewell: Will | None = None
        self._patience = 0.0
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._worked = False
        self._largest = 0
        self._slow = 0.0
        self._thread = Loop(f"mqtt-{client_id}", self._run, self._stopping, log)

    def start(self) -> None:
        """Start connecting."""
        self._thread.start()

    def stop(self, farewell: Will | None = None, timeout: float = 5.0) -> None:
        """Publish `farewell` (retained) if the link is up, disconnect cleanly, and end the thread."""
        self._farewell, self._patience = farewell, timeout / 2
        self._stopping.set()
        self._wake()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    @property
    def is_up(self) -> bool:
        """Whether the broker has accepted the connection."""
        return self._up.is_set()

    def wait_up(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the connection."""
        return self._up.wait(timeout)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> bool:
        """Publish at QoS 1 from any thread; False when the link is down, or the broker takes no message of this size."""
        client = self._client
        if client is None or not self._up.is_set():
            return False
        size = len(topic.encode()) + len(payload) + PUBLISH_OVERHEAD
        if self._largest and size > self._largest:
            log.error(
                "a message of %d bytes on %s is not sent: the broker %s:%s takes at most %d bytes; raise its limit of packets",
                *(size, topic, self._host, self._port, self._largest),
            )
            return False
        if threading.current_thread() is self._thread:
            self._publish_outgoing(client)  # first the messages that other threads gave earlier
            return client.publish(topic, payload, qos=1, retain=retain).rc == MQTTErrorCode.MQTT_ERR_SUCCESS
        self._outgoing.append((topic, payload, retain))
        self._wake()
        return True

    @property
    def _retained(self) -> int:
        """Retain handling (MQTT 5, 3.8.3.1): send retained messages when the subscription begins, or never."""
        if self._live_only:
            return SubscribeOptions.RETAIN_DO_NOT_SEND
        return SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE

    def slow_down(self, seconds: float) -> None:
        """Wait at least about `seconds` before every new connection from now on; 0 removes the limit."""
        self._slow = seconds

    def _publish_outgoing(self, client: Client) -> None:
        """Publish the messages of other threads: only one thread may use a TLS connection."""
        while self._outgoing and self._up.is_set():
            topic, payload, retain = self._outgoing.popleft()
            client.publish(topic, payload, qos=1, retain=retain)

    def _wake(self) -> None:
        try:
            self._wake_write.send(b"x")
        except (BlockingIOError, BrokenPipeError):
            return  # wake-ups are waiting already, or the thread has ended and closed its side

    def _run(self) -> None:
        backoff = FIRST_BACKOFF
        said = ""
        while not self._stopping.is_set():
            self._worked = False
            try:
                reason = self._session()
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                log.error("the connection to the broker failed; the link goes on", exc_info=reason != said)
            self._end_session(reason)
            if self._stopping.is_set():
                break
            if self._worked:
                backoff, said = FIRST_BACKOFF, ""
            if reason != said:
                log.warning("broker %s:%s: %s; trying again until it answers", self._host, self._port, reason)
                said = reason
            self._stopping.wait(max(backoff, self._slow) * self._random.uniform(0.5, 1.5))
            backoff = min(backoff * 2, LAST_BACKOFF)
        self._wake_read.close()

    def _session(self) -> str:
        """Run one connection from its start to its end; returns the reason of its end."""
        client = Client(CallbackAPIVersion.VERSION2, client_id=self._client_id, protocol=MQTTProtocolVersion.MQTTv5)
        if (will := self._will()) is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=True)
        ended: list[str] = []

        def connected(
            _client: Client,
            _data: object,
            _flags: ConnectFlags,
            code: ReasonCode,
            properties: Properties | None,
        ) -> None:
            if code.is_failure:
                ended.append(f"refused the connection ({code})")
                return
            self._largest = getattr(properties, "MaximumPacketSize", 0)
            self._worked = not self._subscriptions
            for name in self._subscriptions:
                client.subscribe(name, options=SubscribeOptions(qos=1, retainHandling=self._retained))
            self._outgoing.clear()
            self._client = client
            self._up.set()
            log.info("connected to broker %s:%s", self._host, self._port)
            self._guard(self._on_up)

        def received(_client: Client, _data: object, message: MQTTMessage) -> None:
            if message.retain and self._live_only:
                return  # this broker does not know the option
            self._guard(lambda: self._on_message(message.topic, bytes(message.payload)))

        def subscribed(*_: object) -> None:
            self._worked = True

        client.on_connect = connected
        client.on_subscribe = subscribed
        client.on_message = received
        client.connect_timeout = CONNECT_TIMEOUT
        if self._tls is not None:
            client.tls_set_context(self._tls)
        try:
            client.connect(self._host, self._port, keepalive=KEEPALIVE, clean_start=True)
            reason = self._pump(client, ended)
        except (OSError, ValueError) as error:
            reason = f"no connection ({error})"
        return reason

    def _end_session(self, reason: str) -> None:
        was_up = self._up.is_set()
        self._up.clear()
        self._client = None
        if was_up and not self._stopping.is_set():
            self._guard(lambda: self._on_down(reason))

    def _pump(self, client: Client, ended: list[str]) -> str:
        started = time.monotonic()
        opened = client.socket()
        if isinstance(opened, socket.socket):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not self._stopping.is_set():
            sock = client.socket()
            if not isinstance(sock, socket.socket):
                return "the connection broke"
            if _QUICKACK is not None:
                # A broker that writes a packet in two pieces waits (Nagle) for our acknowledgement of the first, and
                # the kernel delays that by 40 ms unless told not to, again after every read.
                sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            ready = self._wait(sock, client.want_write())
            if self._wake_read.fileno() in ready:
                self._wake_read.recv(4096)
            self._publish_outgoing(client)
            seen = ready.get(sock.fileno(), 0)
            if seen & ~select.POLLOUT and (code := client.loop_read()) != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return _why(ended, code)
            if seen & select.POLLOUT and (code := client.loop_write()) != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return _why(ended, code)
            if (code := client.loop_misc()) != MQTTErrorCode.MQTT_ERR_SUCCESS or ended:
                return _why(ended, code)
            if not self._up.is_set() and time.monotonic() - started > CONNECT_TIMEOUT:
                client.disconnect()
                return f"accepted the connection but sent nothing for {CONNECT_TIMEOUT:.0f} s"
        self._part(client)
        return "stopped"

    def _part(self, client: Client) -> None:
        """Publish the messages still waiting and the farewell, if there is one, and disconnect."""
        self._publish_outgoing(client)
        if self._farewell is not None and self._up.is_set():
            sent = client.publish(self._farewell.topic, self._farewell.payload, qos=1, retain=True)
            deadline = time.monotonic() + self._patience
            while not sent.is_published() and time.monotonic() < deadline:
                sock = client.socket()
                if not isinstance(sock, socket.socket):
                    return
                self._wait(sock, client.want_write())
                if client.loop_read() or client.loop_write():
                    return
        client.disconnect()
        client.loop_write()

    def _wait(self, sock: socket.socket, writes: bool) -> dict[int, int]:
        """Wait a tick for the broker or a wake-up. Uses poll, because select fails on descriptors above 1,023."""
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            return {sock.fileno(): select.POLLIN}  # TLS has buffered bytes that poll cannot see
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.register(sock, select.POLLIN | (select.POLLOUT if writes else 0))
        return dict(poll.poll(_TICK * 1000))

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            log.exception("an MQTT callback failed; the link continues")


def _why(ended: list[str], code: MQTTErrorCode) -> str:
    return ended[0] if ended else f"the connection broke ({code.name})"
