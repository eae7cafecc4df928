"""Rate limits of requests and messages, for devices and for unknown senders; `[limits]` in umbel.toml."""

import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Annotated

import msgspec

from umbel_server.limits.bucket import RateLimit
from umbel_server.limits.refusals import Refusals

Rate = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
BURST_SECONDS = 10.0
"""Uses are saved up for this many seconds, and may then be spent in one burst."""
STRANGERS = "unknown devices"
MOST_DEVICES, MOST_ADDRESSES = 131_072, 16_384


def _key(sentence: str) -> msgspec.Meta:
    """What a key of `[limits]` is for; the reference pages show it."""
    return msgspec.Meta(description=sentence)


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    """The table `[limits]`. A rate is a number a second; after ten quiet seconds ten times as many are let through at once."""

    requests_per_second: Annotated[Rate, _key("Signed requests of one device.")] = 20.0
    enrolments_per_second: Annotated[Rate, _key("Enrolments from one address, and questions which server this is.")] = (
        200.0
    )
    wrong_tokens_per_second: Annotated[Rate, _key("Requests with a wrong token from one address.")] = 20.0
    messages_per_second: Annotated[Rate, _key("MQTT messages that one device signed.")] = 100.0
    forgeries_per_second: Annotated[
        Rate, _key("MQTT messages on one device's topics that the device did not sign.")
    ] = 20.0
    transfers: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=10_000, description="Uploads and downloads of one device at a time. With one more the oldest ends."
        ),
    ] = 4
    request_kb: Annotated[
        int,
        msgspec.Meta(ge=16, le=1_000_000, description="Largest body of a request that is no blob, in kB (10^3 bytes)."),
    ] = 64


class RequestLimits:
    """The limits of HTTP requests. Each method returns the seconds to wait; at 0 it has counted one use."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._devices = _bucket(limits.requests_per_second, clock, MOST_DEVICES)
        self._enrolments = _bucket(limits.enrolments_per_second, clock, MOST_ADDRESSES)
        self._wrong = _bucket(limits.wrong_tokens_per_second, clock, MOST_ADDRESSES)

    def device(self, population: str, device: str) -> float:
        """Seconds to wait for a request with a device's valid signature."""
        return _use(self._devices, f"{population}/{device}")

    def enrolment(self, address: str) -> float:
        """Seconds to wait for a request from an address that has proved nothing yet."""
        return _use(self._enrolments, network_of(address))

    def suspect(self, address: str) -> float:
        """Seconds to wait before a token from this address is looked up: more than 0 after too many invalid ones."""
        return self._wrong.wait(network_of(address))

    def wrong(self, address: str) -> None:
        """Count an invalid signature."""
        self._wrong.use(network_of(address))


class MessageLimits:
    """The limits of MQTT messages: a flood on one device's topics does not keep other devices from the server.

    A signed message counts against the device that signed it. A forged message counts against the topics on which it
    came, not against the device. On a broker where anybody may publish, a constant flood of forgeries on one device's
    topics leaves few of that device's own messages through; the outbox repeats its commands until one succeeds. All other
    devices are not affected.
    """

    def __init__(self, limits: Limits, refusals: Refusals, clock: Callable[[], float] = time.monotonic) -> None:
        self._signed = _bucket(limits.messages_per_second, clock, MOST_DEVICES)
        self._forged = _bucket(limits.forgeries_per_second, clock, MOST_DEVICES)
        self._refusals = refusals

    def admit(self, name: str, known: bool) -> bool:
        """Whether to process a message on the topics of device `name`; a refused message is counted.

        Messages for a name that is not `known` to the register share one limit.
        """
        if not known and self._forged.wait(STRANGERS):
            self._refusals.note(STRANGERS, "messages", "too many come on topics of devices that there are not")
        elif self._signed.wait(name):
            self._refusals.note(name, "messages", "it sends more than the server takes in of one device")
        elif self._forged.wait(name):
            self._refusals.note(name, "messages", "too many on its topics are not its own")
        else:
            return True
        return False

    def signed(self, name: str) -> None:
        """Count a message that the device signed."""
        self._signed.use(name)

    def forged(self, name: str, why: str) -> None:
        """Count a message on a device's topics, or on those of STRANGERS, that the device did not sign."""
        self._forged.use(name)
        self._refusals.note(name, "forged messages", why)


def network_of(address: str) -> str:
    """The network that counts as one sender: an IPv4 address, or the /64 network of an IPv6 address.

    A provider gives one customer a whole /64 network.
    """
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv6Address) and found.ipv4_mapped is None:
        return str(IPv6Address(int(found) >> 64 << 64))
    return address


def _bucket(rate: float, clock: Callable[[], float], most: int) -> RateLimit:
    return RateLimit(max(1.0, rate * BURST_SECONDS), 1 / rate, clock, most)


def _use(bucket: RateLimit, key: str) -> float:
    return 0.0 if bucket.use(key) else bucket.wait(key) or 0.001
