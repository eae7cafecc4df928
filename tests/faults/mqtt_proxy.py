"""A proxy that understands MQTT 5 enough to duplicate, delay and so reorder what is published through it.

It answers for the receiver (PUBACK) and passes a message on at QoS 0, as often and as late as it likes: so neither end
sees a protocol error, only messages twice, late and in another order.
"""

import asyncio
import random

from tests.faults.proxy import Proxy

PUBLISH, PUBACK = 3, 4
LATEST_SECONDS = 1.5


class DisturbingProxy(Proxy):
    """Passes packets on unchanged until `disturb`; from then on about two messages in five come twice or late."""

    def __init__(self, target: tuple[str, int], rng: random.Random) -> None:
        super().__init__(target)
        self._random = rng
        self._disturbing = False
        self._late: set[asyncio.Task[None]] = set()

    def disturb(self) -> None:
        """Begin."""
        self._disturbing = True

    async def pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        """Pass packets on until the connection ends."""
        while True:
            try:
                packet = await _packet(reader)
            except asyncio.IncompleteReadError:
                return
            await self._flowing.wait()
            if writer.is_closing() or back.is_closing():
                return
            if self._disturbing and packet[0] >> 4 == PUBLISH and packet[0] & 0x06:
                identifier, packet = without_acknowledgement(packet)
                back.write(bytes((PUBACK << 4, 2)) + identifier)
                for delay in self.delays():
                    task = asyncio.ensure_future(_later(delay, writer, packet))
                    self._late.add(task)
                    task.add_done_callback(self._late.discard)
            else:
                writer.write(packet)
                await writer.drain()

    def delays(self) -> list[float]:
        match self._random.choices(("once", "twice", "late"), (6, 2, 2))[0]:
            case "once":
                return [0.0]
            case "twice":
                # At once, while the first is still being worked on, or when it was answered long ago.
                return [0.0, self._random.choice((0.0, self._random.uniform(0, LATEST_SECONDS)))]
            case _:
                return [self._random.uniform(0.05, LATEST_SECONDS)]


async def _later(delay: float, writer: asyncio.StreamWriter, packet: bytes) -> None:
    await asyncio.sleep(delay)
    if not writer.is_closing():
        writer.write(packet)


async def _packet(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(2)
    length, shift = head[1] & 0x7F, 7
    while head[-1] & 0x80:
        head += await reader.readexactly(1)
        length |= (head[-1] & 0x7F) << shift
        shift += 7
    return head + await reader.readexactly(length)


def without_acknowledgement(packet: bytes) -> tuple[bytes, bytes]:
    """The packet identifier of a PUBLISH at QoS 1, and the same PUBLISH at QoS 0."""
    start = 1
    while packet[start] & 0x80:
        start += 1
    body = packet[start + 1 :]
    topic = 2 + int.from_bytes(body[:2])
    identifier, body = body[topic : topic + 2], body[:topic] + body[topic + 2 :]
    return identifier, bytes((packet[0] & 0xF1,)) + length_of(len(body)) + body


def length_of(value: int) -> bytes:
    encoded = bytearray()
    while True:
        value, low = divmod(value, 128)
        encoded.append(low | (0x80 if value else 0))
        if not value:
            return bytes(encoded)
