"""The configuration that is written for mosquitto: a device reaches its own topics, whatever it asks for."""

import getpass
import secrets
import socket
import ssl
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.brokers import Mosquitto, mosquitto_program
from tests.waiting import eventually
from umbel import topics
from umbel.mqtt import Link
from umbel.tls import client_context
from umbel_server.broker import files, mosquitto
from umbel_server.broker.files import Broker
from umbel_server.security import pki
from umbel_server.state_folder import Config, Http, Mqtt, State, init_state
from umbel_sim.demo.processes import free_port

pytestmark = pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")


@pytest.fixture
def state(tmp_path: Path) -> State:
    return init_state(tmp_path / "state", Config(http=Http(port=free_port()), mqtt=Mqtt(port=free_port())))


@pytest.fixture
def broker(state: State, tmp_path: Path) -> Iterator[Mosquitto]:
    port = free_port()
    path = mosquitto.write_config(
        state, tmp_path / "broker", Broker("127.0.0.1", port, ["broker.example"], getpass.getuser())
    )
    running = Mosquitto(tmp_path, path, port)
    running.start()
    yield running
    running.stop()


def context_of(state: State, folder: Path, common: str, authority: Path | None = None) -> ssl.SSLContext:
    """What a device of this name would connect with, certified by the state's authority or by another."""
    key = ec.generate_private_key(ec.SECP256R1())
    asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    request = asked.public_bytes(serialization.Encoding.PEM)
    made = pki.certify(authority or state.folder, request, common, datetime.now(UTC))
    name = secrets.token_hex(4)
    (folder / f"{name}.pem").write_text(made)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}-key.pem").write_bytes(pem)
    context = client_context(state.ca)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}-key.pem")
    return context


class Ear:
    """A client of the broker, and what it has heard."""

    def __init__(self, broker: Mosquitto, name: str, tls: ssl.SSLContext | None, *filters: str) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.connections = 0
        self.link = Link(
            "127.0.0.1",
            broker.port,
            name,
            filters,
            lambda topic, data: self.heard.append((topic, data)),
            on_up=self._connected,
            tls=tls,
        )
        self.link.start()

    def _connected(self) -> None:
        self.connections += 1

    def up(self) -> "Ear":
        assert self.link.wait_up(10)
        return self


def test_a_device_reaches_its_own_topics_alone(state: State, broker: Mosquitto, tmp_path: Path) -> None:
    own = {name: {c: topics.topic("home", name, c) for c in ("command", "ack", "status", "result")} for name in "ab"}
    server = Ear(broker, "server", state.broker_context(), *(topics.everyone(c) for c in ("ack", "status", "result")))
    b = Ear(broker, "b", context_of(state, tmp_path, "home/b"), own["b"]["command"]).up()
    a = Ear(
        broker,
        "a",
        context_of(state, tmp_path, "home/a"),
        *(own["a"]["command"], own["b"]["command"], "umbel/1/+/+/command", "umbel/#", "#", own["b"]["status"]),
    ).up()
    server.up()
    # As the other, in other populations, as the server, and with wildcards' characters.
    for topic in (*own["b"].values(), "umbel/1/away/a/ack", own["a"]["command"], "umbel/1/home/a/b/ack", "other"):
        a.link.publish(topic, b"forged")
    for channel in ("ack", "status", "result"):
        a.link.publish(own["a"][channel], b"mine", retain=channel == "status")
        b.link.publish(own["b"][channel], b"mine")
    server.link.publish(own["b"]["command"], b"for b")
    server.link.publish(own["a"]["command"], b"for a")
    eventually(lambda: len(server.heard) >= 6 and a.heard and b.heard)
    assert sorted(server.heard) == sorted((own[d][c], b"mine") for d in "ab" for c in ("ack", "status", "result"))
    assert set(a.heard) == {(own["a"]["command"], b"for a")}
    assert b.heard == [(own["b"]["command"], b"for b")]
    for ear in (a, b, server):
        ear.link.stop()


def test_a_device_ends_nobodys_connection_by_taking_its_client_id(
    state: State, broker: Mosquitto, tmp_path: Path
) -> None:
    status = topics.topic("away", "x", "status")
    server = Ear(broker, "umbel-server", state.broker_context(), topics.everyone("status")).up()
    b = Ear(broker, "umbel-home-b", context_of(state, tmp_path, "home/b"), topics.topic("home", "b", "command")).up()
    tls = context_of(state, tmp_path, "away/x")
    for name in ("umbel-server", "umbel-home-b", pki.SERVER, "home/b"):
        thief = Ear(broker, name, tls).up()
        thief.link.publish(status, name.encode())
        eventually(lambda name=name: (status, name.encode()) in server.heard)
        thief.link.stop()
    server.link.publish(topics.topic("home", "b", "command"), b"for b")
    eventually(lambda: b.heard)
    assert (server.connections, b.connections) == (1, 1)
    for ear in (server, b):
        ear.link.stop()


def die(broker: Mosquitto, tls: ssl.SSLContext, topic: str) -> None:
    """Connect with a will at `topic`, and vanish without a farewell."""
    answers: list[object] = []
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.will_set(topic, b"dead", qos=1)
    client.tls_set_context(tls)
    client.on_connect = lambda *answer: answers.append(answer[3])
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    eventually(lambda: answers)
    sock = client.socket()
    assert isinstance(sock, socket.socket)
    sock.shutdown(socket.SHUT_RDWR)
    client.loop_stop()


def test_a_device_cannot_have_a_will_in_anothers_name(state: State, broker: Mosquitto, tmp_path: Path) -> None:
    server = Ear(broker, "server", state.broker_context(), topics.everyone("status")).up()
    tls = context_of(state, tmp_path, "home/a")
    die(broker, tls, topics.topic("home", "b", "status"))
    die(broker, tls, topics.topic("home", "a", "status"))
    eventually(lambda: server.heard)
    assert server.heard == [(topics.topic("home", "a", "status"), b"dead")]
    server.link.stop()


def test_without_a_certificate_of_ours_nobody_connects(state: State, broker: Mosquitto, tmp_path: Path) -> None:
    other = init_state(tmp_path / "other", Config())
    strangers = [
        Ear(broker, "none", client_context(state.ca)),
        Ear(broker, "other", context_of(state, tmp_path, "home/a", other.folder)),
        Ear(broker, "plain", None),
    ]
    Ear(broker, "ours", context_of(state, tmp_path, "home/a")).up().link.stop()
    assert not any(ear.link.wait_up(1.0) for ear in strangers)
    for ear in strangers:
        ear.link.stop()


def test_a_server_works_with_it(state: State, broker: Mosquitto) -> None:
    """The server itself is a client of this broker."""
    from umbel_server.server import Server

    config = Config(http=Http(port=free_port()), mqtt=Mqtt(port=broker.port, embedded=False))
    server = Server(State(state.folder, config, state.keys, state.admin_token, state.enrolment_secret))
    server.start()
    eventually(lambda: server.exchange.is_up)
    server.stop()


def test_its_key_is_private(state: State, broker: Mosquitto, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "broker" / files.KEY).stat().st_mode) == 0o600
    assert not (tmp_path / "broker" / pki.CA_KEY).exists()
