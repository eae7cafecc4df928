"""A real server, a real broker and twenty real agents, each part of which can be killed and started again."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from tests.brokers import mosquitto_program
from tests.faults.processes import Programs, script
from tests.waiting import eventually
from umbel.errors import UmbelError
from umbel_server.client import Client
from umbel_server.state_folder import Config, Enrolment, Http, Mqtt, State, init_state
from umbel_sim.demo.processes import free_port

POPULATION = "fleet"
HOSTS = (6, 5, 5, 4)
"""How many agents live in each process; the first are 30% of all."""
DEVICES = sum(HOSTS)
START_SECONDS = 60.0


@dataclass
class Host:
    """One process with several agents; where they find the server and the broker, and what its command begins with."""

    name: str
    folder: Path
    devices: list[str]
    server: tuple[str, int]
    broker: tuple[str, int]
    prefix: tuple[str, ...] = ()
    lives: list[dict[str, set[str]]] = field(default_factory=list)
    """For every life that ended: the commands that each device had answered by then, or whose outcome it had kept."""

    @property
    def ledger(self) -> Path:
        """Where the agents write down what they trained."""
        return self.folder.with_name(f"{self.name}.ledger")

    def configs(self) -> list[Path]:
        """The agents' configuration files."""
        return [self.folder / device / "agent.toml" for device in self.devices]

    def answered(self) -> dict[str, set[str]]:
        """The commands that each device has an answer to, or at least the outcome."""
        found = {}
        for device in self.devices:
            path = self.folder / device / "state" / "agent.sqlite"
            with closing(sqlite3.connect(path)) as inbox:
                query = "SELECT id FROM inbox WHERE token <> x'' UNION SELECT command FROM outgoing"
                found[device] = {row[0] for row in inbox.execute(query)}
        return found


class Fleet:
    """Everything in `folder`. `broker` is "embedded" or "mosquitto"; the embedded one is the server's own child unless
    `apart`, which a fault sets before `start`, as it may set the hosts' addresses and the server's `broker_port`.
    """

    def __init__(self, folder: Path, broker: str, moments: Path) -> None:
        self.folder, self.broker, self._moments = folder, broker, moments
        self.apart = broker != "embedded"
        self.http_port, self.broker_port = free_port(), free_port()
        self.server_broker_port = self.broker_port
        self.server_folder = folder / "server"
        self.programs = Programs(folder)
        self.gone: set[str] = set()
        names = iter(f"phone-{number:02}" for number in range(DEVICES))
        self.hosts = [
            Host(
                f"host-{number}",
                folder / f"host-{number}",
                [next(names) for _ in range(size)],
                ("127.0.0.1", self.http_port),
                ("127.0.0.1", self.broker_port),
            )
            for number, size in enumerate(HOSTS)
        ]

    @property
    def database(self) -> Path:
        """The server's database."""
        return self.server_folder / "umbel.sqlite"

    def start(self) -> None:
        """Start everything, and wait until every device is online."""
        mqtt = Mqtt(port=self.server_broker_port, embedded=not self.apart, tls=False)
        # What checkpoints are made of is read again afterwards, by an oracle.
        http, enrolment = Http(port=self.http_port, tls=False), Enrolment(open=True)
        config = Config(http=http, mqtt=mqtt, enrolment=enrolment, keep_updates=True)
        self.state: State = init_state(self.server_folder, config)
        self.client = Client(self.state.server_url, self.state.admin_token)
        for number, host in enumerate(self.hosts):
            for index, path in enumerate(host.configs()):
                self._install(host, path, sum(HOSTS[:number]) + index)
        if self.apart:
            self.start_broker()
        self.start_server()
        for host in self.hosts:
            self.start_host(host)
        self.wait_answering()
        self.wait_online(DEVICES)

    def start_server(self) -> None:
        """Start `umbel serve`."""
        self.programs.start(
            "server",
            script("umbel"),
            "serve",
            "--state",
            str(self.server_folder),
            UMBEL_MOMENTS=str(self._moments),
        )

    def wait_answering(self) -> None:
        """Until the server answers and has its broker."""
        eventually(self._answers, START_SECONDS)

    def wait_online(self, count: int) -> None:
        """Until at least `count` devices are online."""
        eventually(
            lambda: sum(device["online"] for device in self.client.get("/v1/devices", population=POPULATION)) >= count,
            START_SECONDS,
        )

    def start_broker(self) -> None:
        """Start the broker, which remembers nothing of the one before."""
        if self.broker == "embedded":
            command = [script("umbel"), "broker", "run", "--insecure", "--port", str(self.broker_port)]
        else:
            config = self.folder / "mosquitto.conf"
            config.write_text(f"listener {self.broker_port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
            command = [mosquitto_program() or "mosquitto", "-c", str(config)]
        self.programs.start("broker", *command)

    def start_host(self, host: Host) -> None:
        """Start the process of some agents."""
        self.programs.start(
            host.name,
            *host.prefix,
            script("python"),
            "-m",
            "tests.faults.agent_host",
            str(host.ledger),
            *map(str, host.configs()),
        )

    def kill_host(self, host: Host) -> None:
        """SIGKILL the process of some agents, and note what they had answered."""
        self.programs.kill(host.name)
        host.lives.append(host.answered())

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The database, as rows that are mappings; nothing is written to it."""
        with closing(sqlite3.connect(self.database, timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA query_only=ON")
            yield connection

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """The rows that a query gives."""
        with self.reading() as connection:
            return connection.execute(query, values).fetchall()

    def _answers(self) -> bool:
        assert self.programs.runs("server"), "the server ended by itself"
        try:
            return bool(self.client.get("/v1/health")["broker"])
        except UmbelError:
            return False

    def _install(self, host: Host, config: Path, number: int) -> None:
        config.parent.mkdir(parents=True)
        rng = np.random.default_rng(number)
        x = rng.uniform(-1, 1, (2 + number % 5, 1)).astype(np.float32)
        y = (rng.uniform(-2, 2) * x + rng.uniform(-1, 1)).astype(np.float32)
        np.savez(config.parent / "examples.npz", x=x, y=y)
        settings = {
            "device": config.parent.name,
            "population": POPULATION,
            "kind": "phone",
            "server": f"http://{host.server[0]}:{host.server[1]}",
            "enrolment_token": self.state.enrolment_token,
            "examples": "examples.npz",
            "mqtt": {"host": host.broker[0], "port": host.broker[1]},
        }
        config.write_text(tomli_w.dumps(settings))
