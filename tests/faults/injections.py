"""The faults. Each prepares a fleet that has not started, strikes while the server is held, and mends what it broke."""

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from tests.faults.fleet import POPULATION, Fleet, Host
from tests.faults.hostile import BEHAVIOURS, HostileDevice
from tests.faults.mqtt_proxy import DisturbingProxy
from tests.faults.namespace import Namespace, can_make_namespaces
from tests.faults.proxy import Proxy
from tests.faults.small_disk import SmallDisk, can_mount, limit_writing
from umbel.plan import Plan

HOSTILE_DEVICES = 3


class Fault:
    """One fault: by default nothing happens."""

    name: ClassVar[str] = "none"
    behaviour: ClassVar[str] = ""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def prepare(self, fleet: Fleet) -> None:
        """Change where things are, before the fleet starts."""

    def join(self, fleet: Fleet, plan: Plan) -> None:
        """Add to the fleet, once it has started and before the run does."""

    def strike(self, fleet: Fleet) -> None:
        """Break it, within a few seconds: the server is held meanwhile."""

    def mend(self, fleet: Fleet) -> None:
        """Wait as long as the fault lasts and put right what can be."""

    def leave(self) -> None:
        """End what would notice that the fleet ends."""

    def end(self) -> None:
        """Give back what the fleet stood on, once it has ended."""

    def last(self, least: float, most: float) -> None:
        """Let the fault last for a while that the seed decides."""
        time.sleep(self.rng.uniform(least, most))


class ServerKilled(Fault):
    """SIGKILL while it is held; started again at once."""

    name = "server-killed"

    def strike(self, fleet: Fleet) -> None:
        fleet.programs.kill("server")

    def mend(self, fleet: Fleet) -> None:
        fleet.start_server()
        fleet.wait_answering()


class BrokerKilled(Fault):
    """SIGKILL; a moment later there is another one, which remembers nothing."""

    name = "broker-killed"

    def prepare(self, fleet: Fleet) -> None:
        fleet.apart = True

    def strike(self, fleet: Fleet) -> None:
        fleet.programs.kill_session("broker")

    def mend(self, fleet: Fleet) -> None:
        self.last(0.0, 2.0)
        fleet.start_broker()


class AgentsKilled(Fault):
    """SIGKILL to a process of agents, which starts again."""

    name = "agents-killed"

    def strike(self, fleet: Fleet) -> None:
        self._host = self.rng.choice(fleet.hosts)
        fleet.kill_host(self._host)

    def mend(self, fleet: Fleet) -> None:
        self.last(0.0, 1.0)
        fleet.start_host(self._host)


class AgentsVanish(Fault):
    """30% of the devices end for good."""

    name = "agents-vanish"

    def strike(self, fleet: Fleet) -> None:
        fleet.kill_host(fleet.hosts[0])
        fleet.gone.update(fleet.hosts[0].devices)


class ThroughProxies(Fault):
    """Some agents reach the server and the broker through proxies of ours."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.proxies: list[Proxy] = []

    def listen(self, fleet: Fleet, host: str = "127.0.0.1") -> tuple[tuple[str, int], tuple[str, int]]:
        """Start the proxies; returns the addresses that stand for the server's and the broker's."""
        self.proxies += [Proxy(("127.0.0.1", port), host).start() for port in (fleet.http_port, fleet.broker_port)]
        http, mqtt = self.proxies
        return (host, http.port), (host, mqtt.port)

    def prepare(self, fleet: Fleet) -> None:
        http, mqtt = self.listen(fleet)
        for host in self.rng.sample(fleet.hosts, self.rng.randint(1, len(fleet.hosts))):
            host.server, host.broker = http, mqtt

    def mend(self, fleet: Fleet) -> None:
        self.last(1.0, 4.0)
        for proxy in self.proxies:
            proxy.restore()

    def end(self) -> None:
        for proxy in self.proxies:
            proxy.stop()


class NetworkCut(ThroughProxies):
    """Connections are reset and refused for seconds."""

    name = "network-cut"

    def strike(self, fleet: Fleet) -> None:
        for proxy in self.proxies:
            proxy.cut()


class NetworkStalled(ThroughProxies):
    """Connections stay and carry nothing for seconds."""

    name = "network-stalled"

    def strike(self, fleet: Fleet) -> None:
        for proxy in self.proxies:
            proxy.stall()


class CablePulled(ThroughProxies):
    """Some devices are in a network of their own, whose cable is out for seconds: packets vanish and nobody is told."""

    name = "cable-pulled"

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.namespace = Namespace()

    def prepare(self, fleet: Fleet) -> None:
        host = self.rng.choice(fleet.hosts)
        host.server, host.broker = self.listen(fleet, self.namespace.address)
        host.prefix = self.namespace.prefix

    def strike(self, fleet: Fleet) -> None:
        self.namespace.pull()

    def mend(self, fleet: Fleet) -> None:
        self.last(1.0, 4.0)
        self.namespace.plug()

    def end(self) -> None:
        super().end()
        self.namespace.remove()


class ClockSkewed(Fault):
    """The clock of some devices jumps by 5 s, forwards or back, and stays so."""

    name = "clock-skewed"

    def strike(self, fleet: Fleet) -> None:
        fleet.programs.tell(self.rng.choice(fleet.hosts).name, f"skew {self.rng.choice((-5, 5))}")


class MessagesDisturbed(Fault):
    """What the server and the broker tell each other comes twice, late and in another order until the run ends."""

    name = "messages-disturbed"
    _proxy: DisturbingProxy | None = None

    def prepare(self, fleet: Fleet) -> None:
        fleet.apart = True
        self._proxy = DisturbingProxy(("127.0.0.1", fleet.broker_port), self.rng).start()
        fleet.server_broker_port = self._proxy.port

    def strike(self, fleet: Fleet) -> None:
        assert self._proxy is not None
        self._proxy.disturb()

    def end(self) -> None:
        if self._proxy is not None:
            self._proxy.stop()


class DiskFull(Fault):
    """The disk of one part of the fleet is full for seconds."""

    _disk: SmallDisk | None = None

    def _small(self, folder: Path) -> None:
        self._disk = SmallDisk(folder) if can_mount(folder.with_name("can-mount")) else None

    def _fill(self, fleet: Fleet, program: str) -> None:
        self._program = program
        if self._disk is not None:
            self._disk.fill()
        else:
            limit_writing([fleet.programs.pid(program)], limited=True)

    def mend(self, fleet: Fleet) -> None:
        self.last(0.5, 3.0)
        if self._disk is not None:
            self._disk.free()
        elif fleet.programs.runs(self._program):
            limit_writing([fleet.programs.pid(self._program)], limited=False)

    def end(self) -> None:
        if self._disk is not None:
            self._disk.unmount()


class ServerDiskFull(DiskFull):
    """The server's disk is full for seconds."""

    name = "server-disk-full"

    def prepare(self, fleet: Fleet) -> None:
        self._small(fleet.server_folder)

    def strike(self, fleet: Fleet) -> None:
        self._fill(fleet, "server")


class DeviceDiskFull(DiskFull):
    """The disk of some devices is full for seconds."""

    name = "device-disk-full"

    def prepare(self, fleet: Fleet) -> None:
        self._host: Host = self.rng.choice(fleet.hosts)
        self._small(self._host.folder)

    def strike(self, fleet: Fleet) -> None:
        self._fill(fleet, self._host.name)


class DatabaseLocked(Fault):
    """Somebody else holds the database's write lock for seconds, from as soon as it can be had."""

    name = "database-locked"

    def strike(self, fleet: Fleet) -> None:
        seconds = self.rng.choice((2.0, 4.0, 12.0))
        self._held = threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(fleet.database, seconds), name="locker")
        self._thread.start()
        self._held.wait(2)  # not longer: the server may be held inside a transaction of its own

    def mend(self, fleet: Fleet) -> None:
        self._thread.join()

    def _hold(self, database: Path, seconds: float) -> None:
        with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._held.set()
            time.sleep(seconds)
            connection.execute("ROLLBACK")


class Hostile(Fault):
    """Three more devices that misbehave all the time, and do their worst at the moment."""

    _devices: Sequence[HostileDevice] = ()

    def join(self, fleet: Fleet, plan: Plan) -> None:
        self._devices = [
            HostileDevice(fleet.state, POPULATION, f"hostile-{number}", self.behaviour, plan, fleet.server_broker_port)
            for number in range(HOSTILE_DEVICES)
        ]

    def strike(self, fleet: Fleet) -> None:
        query = "SELECT device, id FROM commands WHERE state IN ('pending', 'accepted') AND device LIKE 'phone-%'"
        victims = {row["device"]: row["id"] for row in fleet.rows(query)}
        for device in self._devices:
            device.attack(victims)

    def leave(self) -> None:
        for device in self._devices:
            device.stop()


def _hostile(name: str) -> type[Fault]:
    return type(f"Hostile{name.title()}", (Hostile,), {"name": f"hostile-{name}", "behaviour": name})


KINDS: tuple[type[Fault], ...] = (
    Fault,
    ServerKilled,
    BrokerKilled,
    AgentsKilled,
    AgentsVanish,
    NetworkCut,
    NetworkStalled,
    CablePulled,
    ClockSkewed,
    MessagesDisturbed,
    ServerDiskFull,
    DeviceDiskFull,
    DatabaseLocked,
    *map(_hostile, BEHAVIOURS),
)
FAULTS = {kind.name: kind for kind in KINDS}
NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "cable-pulled": (can_make_namespaces, "network namespaces need root and 'ip'"),
}
"""What some faults need of this machine, and what to say where it is not so."""


def cannot(fault: str) -> str:
    """Why a fault cannot be injected on this machine; empty when it can."""
    can, why = NEEDS.get(fault, (lambda: True, ""))
    return "" if can() else why
