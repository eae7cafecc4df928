import re
from typing import Literal, NamedTuple

from umbel.errors import MessageError

PROTOCOL = 1
Channel = Literal["command", "ack", "status", "result"]
_CHANNELS: tuple[Channel, ...] = ("command", "ack", "status", "result")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Address(NamedTuple):
    """The parts of a topic: population, device, and one of the device's four channels."""

    population: str
    device: str
    channel: Channel


def check_name(name: str, what: str) -> str:
    """`name` when it is valid as a part of a topic; raises MessageError, beginning with `what`, otherwise."""
    if not _NAME.fullmatch(name):
        raise MessageError(
            f"{what} should be 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit; got {name[:80]!r}"
        )
    return name


def topic(population: str, device: str, channel: Channel) -> str:
    """The topic of one channel of one device: `umbel/1/<population>/<device>/<channel>`."""
    return f"umbel/{PROTOCOL}/{population}/{device}/{channel}"


def everyone(channel: Channel) -> str:
    """The MQTT topic filter that matches one channel of every device in every population."""
    return f"umbel/{PROTOCOL}/+/+/{channel}"


def parse(name: str) -> Address:
    """Split a topic into its parts; raises MessageError when it is not a topic of Umbel."""
    parts = name.split("/")
    if len(parts) != 5 or parts[0] != "umbel" or parts[1] != str(PROTOCOL):
        raise MessageError(f"expected a topic umbel/{PROTOCOL}/<population>/<device>/<channel>, got {name[:200]!r}")
    for channel in _CHANNELS:
        if parts[4] == channel:
            return Address(check_name(parts[2], "a population"), check_name(parts[3], "a device id"), channel)
    raise MessageError(f"expected a topic ending in {', '.join(_CHANNELS)}, got {name[:200]!r}")
