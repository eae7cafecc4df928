"""How often, and how much at once, devices and strangers may ask; `[limits]` in umbel.toml."""

import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Annotated

import msgspec

from umbel_server.limits.bucket import RateLimit
from umbel_server.limits.refusals import Refusals

Rate = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
BURST_SECONDS = 10.0
"""Who was quiet for so long may use at once what was saved up."""
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
    """The limits of HTTP requests; each method gives the seconds to wait, 0 for none, and counts a use if there are none."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._devices = _bucket(limits.requests_per_second, clock, MOST_DEVICES)
        self._enrolments = _bucket(limits.enrolments_per_second, clock, MOST_ADDRESSES)
        self._wrong = _bucket(limits.wrong_tokens_per_second, clock, MOST_ADDRESSES)

    def device(self, population: str, device: str) -> float:
        """For a request that a device has proved to be its own."""
        return _use(self._devices, f"{population}/{device}")

    def enrolment(self, address: str) -> float:
        """For a request that proves nothing yet."""
        return _use(self._enrolments, network_of(address))

    def suspect(self, address: str) -> float:
        """For a look into the register: as long as too many wrong tokens come from an address, for none from there."""
        return self._wrong.wait(network_of(address))

    def wrong(self, address: str) -> None:
        """Count a signature that was wrong."""
        self._wrong.use(network_of(address))


class MessageLimits:
    """Which MQTT messages are looked at, so that who floods one device's topics keeps no other device from the server.

    Messages that a device signed are charged to the device: once it has used them up, its messages cost nothing but a look
    at this. Who forges others' cannot use up these. What is forged is charged to the topics it came on: with a broker that
    lets anybody publish there, and somebody who does without pause, few of that device's own messages get through - the
    outbox repeats its commands until one does - and all other devices go on.
    """

    def __init__(self, limits: Limits, refusals: Refusals, clock: Callable[[], float] = time.monotonic) -> None:
        self._signed = _bucket(limits.messages_per_second, clock, MOST_DEVICES)
        self._forged = _bucket(limits.forgeries_per_second, clock, MOST_DEVICES)
        self._refusals = refusals

    def admit(self, name: str, known: bool) -> bool:
        """Whether to look at a message on the topics of device `name`; one that is not looked at is counted.

        A name that is not `known` to be in the register waits while too many come that are not.
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
        """Charge a device with a message that it signed."""
        self._signed.use(name)

    def forged(self, name: str, why: str) -> None:
        """Charge a device's topics, or those of STRANGERS together, with a message that is not the device's own."""
        self._forged.use(name)
        self._refusals.note(name, "forged messages", why)


def network_of(address: str) -> str:
    """What counts as one sender: an IPv4 address, or the /64 network of an IPv6 one, which is given out as a whole."""
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
