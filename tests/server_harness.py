"""A real server in this process - database, blobs, HTTP, MQTT - and devices that speak the real protocol."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import uvicorn
from fastapi import FastAPI
from joserfc.jwk import ECKey

from tests.brokers import EmbeddedProcess
from tests.documented_answers import DocumentedAnswers
from tests.empty_database import empty_database
from tests.waiting import eventually
from umbel import messages, signing, topics
from umbel.enrolment import EnrolmentRequest
from umbel.messages import Ack, Blob, Command, Hello, Outcome, Report, Reported, Result, Status
from umbel.mqtt import Link, Will
from umbel_edge.config import AgentConfig
from umbel_server.api.bounded_http import Patience
from umbel_server.client import Client
from umbel_server.serve import PATIENCE, http_config, listen
from umbel_server.server import Server
from umbel_server.state_folder import CONFIG, Config, Enrolment, Http, Mqtt, Population, State, init_state, open_state
from umbel_sim.demo.processes import free_port

POPULATION = "test"
X = np.float32([[-1.0], [0.0], [1.0], [2.0], [3.0], [4.0]])


class RunningServer:
    """`umbel serve` without its process: everything is real, and ended by `stop`.

    A folder that has a state is served again as it is. Without TLS, unless it is asked for: then
    with a broker of its own on `broker_port`, or with what `broker` starts there.
    """

    def __init__(
        self,
        folder: Path,
        broker_port: int,
        keep_updates: bool = False,
        tls: bool = False,
        open_enrolment: bool = True,
        broker: Callable[[State], object] | None = None,
        patience: Patience = PATIENCE,
        clock: Callable[[], float] = time.time,
        encrypt_commands: bool = False,
        database: str = "",
        blobs: str = "",
        silence_seconds: float = 90.0,
    ) -> None:
        config = Config(
            http=Http(port=free_port(), tls=tls),
            mqtt=Mqtt(port=broker_port, embedded=tls and broker is None, tls=tls, silence_seconds=silence_seconds),
            enrolment=Enrolment(open=open_enrolment),
            keep_updates=keep_updates,
            populations={POPULATION: Population(encrypt_commands)},
            database=database,
            blobs=blobs,
        )
        self.state: State = open_state(folder) if (folder / CONFIG).exists() else init_state(folder, config)
        port, tls = self.state.config.http.port, self.state.config.http.tls
        if broker is not None:
            broker(self.state)
        if not self.state.config.database:
            empty_database(folder / "umbel.sqlite")
        self._listener = listen("127.0.0.1", port)
        self._clock = clock
        self.server = Server(self.state, clock)
        self.server.start()
        config_of_http = http_config(self.server, patience)
        self._app = cast(FastAPI, config_of_http.app)
        self._answers = DocumentedAnswers(config_of_http.loaded_app)
        config_of_http.loaded_app = self._answers
        self._uvicorn = uvicorn.Server(config_of_http)
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self._thread.start()
        self.client = Client(self.state.server_url, self.state.admin_token, self.state.context() if tls else None)
        eventually(lambda: self._uvicorn.started and self.server.exchange.is_up)

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(10)
        self.server.stop()
        self._listener.close()
        assert not self._answers.wrong, "\n".join(self._answers.wrong[:5])

    def restart(self) -> None:
        """As when the process ends and another one opens the same state folder."""
        self.server.stop()
        self.server = self._app.state.server = Server(self.state, self._clock)
        self.server.start()
        eventually(lambda: self.server.exchange.is_up)

    def give(self, blob: Blob) -> Blob:
        """Let a blob that was put into the store belong to the population of the tests; returns it."""
        with self.server.database.transaction() as session:
            self.server.ownership.claim(session, POPULATION, blob)
        return blob

    def wait_online(self, count: int) -> None:
        """Until `count` devices are online."""
        eventually(lambda: sum(device.online for device in self.server.devices.list(POPULATION)) == count)


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[RunningServer]:
    """A server, made with the options of RunningServer, and an embedded broker in a process of its own."""
    broker = EmbeddedProcess()
    broker.start()
    try:
        running = RunningServer(folder, broker.port, **options)
        try:
            yield running
        finally:
            running.stop()
    finally:
        broker.stop()


def config_of(running: RunningServer, folder: Path) -> AgentConfig:
    """Of an agent that holds six points of y = 2x - 1."""
    folder.mkdir(exist_ok=True)
    np.savez(folder / "points.npz", allow_pickle=False, x=X, y=2 * X - 1)
    return AgentConfig(
        device="phone",
        population=POPULATION,
        kind="phone",
        server=running.state.server_url,
        enrolment_token=running.state.enrolment_token,
        examples=folder / "points.npz",
        state=folder / "state",
    )


def reports(command: Command) -> Outcome | None:
    """What a device says that does nothing but report."""
    return Reported("phone", "x", "x", "x", 1, 1, 1.0, []) if isinstance(command.body, Report) else None


class ScriptedDevice:
    """A device whose work is a function: command in; an outcome, an acknowledgement, or None for silence out."""

    def __init__(
        self,
        running: RunningServer,
        name: str,
        work: Callable[[Command], Outcome | Ack | None],
        epoch: int = 1,
        population: str = POPULATION,
    ) -> None:
        self.name, self.key, self.epoch, self.population = name, signing.generate_key(), epoch, population
        self._connections = 0
        self.commands: list[Command] = []
        self.reasons: list[str] = []
        self._work, self._server_key = work, running.state.key
        self.on_hello: Callable[[str], None] = self._answer_hello
        public, secret = signing.public_key(self.key), running.state.enrolment_secret
        running.server.invitations.enrol(EnrolmentRequest(name, "phone", public, secret, population))
        self.link = Link(
            "127.0.0.1",
            running.state.config.mqtt.port,
            name,
            (topics.topic(population, name, "command"),),
            self._received,
            on_up=lambda: self.say(self.status(True), "status", retain=True),
            will=self._will,
        )
        self.link.start()

    def _will(self) -> Will:
        """Every connection is a session of its own, as an agent's is."""
        self.epoch += self._connections > 0
        self._connections += 1
        return Will(topics.topic(self.population, self.name, "status"), self.encode(self.status(False)))

    def _answer_hello(self, command: str) -> None:
        self.say(msgspec.structs.replace(self.status(True), answers=command), "status", retain=True)

    def status(self, online: bool) -> Status:
        return Status(
            self.population, self.name, self.epoch, online, kind="phone", trainer="scripted", reasons=self.reasons
        )

    def encode(self, message: Status | Ack | Result, key: ECKey | None = None) -> bytes:
        """As an agent would: good for a minute, unless the message says otherwise."""
        until = message.expires or time.time() + 60
        return messages.encode(msgspec.structs.replace(message, expires=until), key or self.key)

    def say(
        self, message: Status | Ack | Result, channel: topics.Channel, key: ECKey | None = None, retain: bool = False
    ) -> None:
        self.link.publish(topics.topic(self.population, self.name, channel), self.encode(message, key), retain)

    def ack(self, command: str, state: messages.AckState, reason: str = "") -> None:
        self.say(Ack(command, self.population, self.name, state, 0.0, reason), "ack")

    def result(self, command: str, outcome: Outcome, key: ECKey | None = None) -> None:
        self.say(Result(command, self.population, self.name, 0.0, outcome), "result", key)

    def stop(self) -> None:
        self.link.stop()

    def _received(self, _topic: str, token: bytes) -> None:
        command = messages.decode_command(token, self._server_key)
        if isinstance(command.body, Hello):
            self.on_hello(command.id)
            return
        self.commands.append(command)
        answer = self._work(command)
        if isinstance(answer, Ack):
            self.say(answer, "ack")
        elif answer is not None:
            self.result(command.id, answer)
