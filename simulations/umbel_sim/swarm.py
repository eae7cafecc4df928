"""Many light devices in one process: each has its own key, MQTT link and HTTP client, and no trainer.

A light device speaks the real protocol. It answers a training command at once: it downloads the weights, uploads an update
of zeros and ones, and sends the result. So it shows the server's cost of a fleet without the cost of training. Run as a
program it works until it is terminated, then writes the seconds of each download and upload as JSON.
"""

import argparse
import json
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from umbel import messages, tensors, topics
from umbel.errors import UmbelError
from umbel.messages import STATUS_SECONDS, Ack, Command, Hello, Outcome, Result, Status, Train, Trained
from umbel.mqtt import Link, Will
from umbel.succession import Lineage
from umbel_edge.config import AgentConfig
from umbel_edge.connection.certificate import Certificate
from umbel_edge.connection.enrolment import connect
from umbel_edge.connection.http import ServerHttp
from umbel_edge.connection.participation import Participation
from umbel_edge.connection.resumable_downloads import Downloads
from umbel_edge.connection.resumable_uploads import Uploads
from umbel_edge.device.inbox import Begun
from umbel_edge.device.state import AgentState
from umbel_server.serve import allow_many_files

WORKERS = 8
"""The number of devices that work at the same time; more would only wait for the same cores."""


class Measured:
    """The seconds of every download and upload of a swarm. Safe to use from several threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"download": [], "upload": []}
        self._lock = threading.Lock()

    def time(self, what: str, call: Callable[[], object]) -> None:
        """Run `call` and record its duration."""
        began = time.perf_counter()
        call()
        with self._lock:
            self.seconds[what].append(time.perf_counter() - began)


class LightDevice:
    """One device of a swarm; `pool` does its work."""

    def __init__(
        self, config: AgentConfig, pool: ThreadPoolExecutor, measured: Measured, stopping: threading.Event
    ) -> None:
        self._config, self._pool, self._measured = config, pool, measured
        self._state = AgentState(config.state)
        self._stopping = stopping
        self._http = ServerHttp(config, self._state.key, stopping)
        self._downloads = Downloads(self._http)
        self._server: Lineage | None = None
        self._link: Link | None = None

    def start(self) -> None:
        """Enrol and connect."""
        participation = Participation(self._stopping, lambda: None)
        enrolment = connect(self._http, self._config, self._state, participation)
        trust = self._state.pinned()
        assert trust is not None
        self._server = trust.lineage()
        population, device = self._config.population, self._config.device
        self._link = Link(
            enrolment.broker_host,
            enrolment.broker_port,
            f"umbel-{population}-{device}",
            (self._topic("command"),),
            self._received,
            on_up=lambda: self._say("status", self._status(True), retain=True),
            will=lambda: Will(self._topic("status"), messages.encode(self._status(False), self._state.key)),
            tls=Certificate(self._state, self._http, time.time).context() if enrolment.broker_tls else None,
        )
        self._link.start()

    def stop(self) -> None:
        """Disconnect."""
        if self._link is not None:
            self._link.stop()
        self._state.close()

    def _topic(self, channel: topics.Channel) -> str:
        return topics.topic(self._config.population, self._config.device, channel)

    def _status(self, online: bool, answers: str = "") -> Status:
        return Status(
            self._config.population,
            self._config.device,
            1,
            online,
            kind=self._config.kind,
            trainer="light",
            examples=1,
            at=time.time(),
            expires=time.time() + STATUS_SECONDS,
            answers=answers,
        )

    def _say(self, channel: topics.Channel, message: Ack | Result | Status, retain: bool = False) -> None:
        assert self._link is not None
        self._link.publish(self._topic(channel), messages.encode(message, self._state.key), retain)

    def _received(self, _topic: str, token: bytes) -> None:
        assert self._server is not None
        command = messages.decode_command(token, self._server.all)
        if isinstance(command.body, Hello):
            self._say("status", self._status(True, command.id), retain=True)
            return
        if self._state.inbox.begin(command.id, command.expires) is Begun.NEW:
            self._pool.submit(self._work, command)

    def _work(self, command: Command) -> None:
        about, until = (command.id, self._config.population, self._config.device), command.expires
        if not isinstance(command.body, Train):
            self._say("ack", Ack(*about, "declined", time.time(), "a light device only trains", expires=until))
            return
        self._say("ack", Ack(*about, "accepted", time.time(), expires=until))
        try:
            outcome = self._train(command.id, command.body)
        except UmbelError as error:
            self._say("ack", Ack(*about, "failed", time.time(), str(error), expires=until))
            return
        self._say("result", Result(*about, time.time(), outcome, expires=until))

    def _train(self, command: str, body: Train) -> Outcome:
        weights: tensors.Tensors = {}

        def download() -> None:
            weights.update(tensors.load(self._downloads.fetch(body.weights, self._state.folder / "downloads")))

        self._measured.time("download", download)
        update = {name: np.zeros_like(weight) for name, weight in weights.items()}
        first = next(iter(update.values())).reshape(-1)
        first[:1] = hash(self._config.device) % 97  # so that no two devices upload the same bytes
        data, blobs = tensors.dump(update), []
        self._measured.time(
            "upload", lambda: blobs.append(Uploads(self._http, self._state.uploads).send(command, data))
        )
        return Trained(body.assignment, blobs[0], 1, {"loss": 0.0})


def main() -> None:
    """Run a swarm until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="the server's URL")
    parser.add_argument("--token", required=True, help="the server's reusable enrolment token")
    parser.add_argument("--population", default="swarm")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--folder", type=Path, required=True, help="for the devices' state")
    parser.add_argument("--json", type=Path, required=True, help="where to write what was measured")
    arguments = parser.parse_args()
    allow_many_files()
    stopping, measured = threading.Event(), Measured()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    with ThreadPoolExecutor(WORKERS) as pool:
        devices = []
        for number in range(arguments.count):
            config = AgentConfig(
                device=f"light-{number:04}",
                population=arguments.population,
                kind="gateway",
                server=arguments.server,
                enrolment_token=arguments.token,
                examples=arguments.folder / "none.npz",
                state=arguments.folder / f"light-{number:04}",
            )
            devices.append(LightDevice(config, pool, measured, stopping))
        list(pool.map(LightDevice.start, devices))
        stopping.wait()
        for device in devices:
            device.stop()
    arguments.json.write_text(json.dumps(measured.seconds))


if __name__ == "__main__":
    main()
