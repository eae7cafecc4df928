"""Devices' certificates: asked for by the agent itself, shown to a broker that asks for them, renewed in time."""

import getpass
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from joserfc.jwk import ECKey

from tests.brokers import Mosquitto, mosquitto_program
from tests.server_harness import POPULATION, RunningServer, config_of
from tests.waiting import eventually
from umbel import signing
from umbel.enrolment import CERTIFICATE_PATH, CERTIFICATE_REQUEST, EnrolmentRequest
from umbel.errors import SignatureError, UmbelError
from umbel.plan import Plan
from umbel_edge.agent import Agent
from umbel_edge.connection.certificate import FILE, Certificate
from umbel_edge.connection.enrolment import connect
from umbel_edge.connection.http import Refused, ServerHttp
from umbel_edge.connection.participation import Participation
from umbel_edge.device.state import AgentState
from umbel_server.broker import mosquitto
from umbel_server.broker.files import Broker
from umbel_server.runs.settings import RunSettings
from umbel_server.security import pki
from umbel_server.state_folder import State
from umbel_sim.demo.processes import free_port

PlanOf = Callable[[str], Plan]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "server", free_port(), tls=True)
    yield server
    server.stop()


class Enrolled:
    """A device that is enrolled, and what it has to ask for certificates with."""

    def __init__(self, running: RunningServer, folder: Path) -> None:
        config = config_of(running, folder)
        self.state = AgentState(config.state)
        self.now = time.time()
        self.http = ServerHttp(config, self.state.key, threading.Event(), lambda: self.now)
        connect(self.http, config, self.state, Participation(threading.Event(), lambda: None))

    def certificate(self) -> Certificate:
        return Certificate(self.state, self.http, lambda: self.now)

    def held(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.state.folder / FILE).read_bytes())

    def held_key(self) -> PrivateKeyTypes:
        return serialization.load_pem_private_key((self.state.folder / FILE).read_bytes(), None)


def certificate_shown(context: ssl.SSLContext, running: RunningServer) -> bytes | None:
    """What a broker sees of who connects so, in DER."""
    asking = pki.server_context(running.state.folder)
    asking.verify_mode = ssl.CERT_OPTIONAL
    asking.load_verify_locations(cadata=running.state.ca)
    to_broker, to_device = ssl.MemoryBIO(), ssl.MemoryBIO()
    device = context.wrap_bio(to_device, to_broker, server_hostname="127.0.0.1")
    broker = asking.wrap_bio(to_broker, to_device, server_side=True)
    for end in (device, broker, device, broker):
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return broker.getpeercert(binary_form=True)


@pytest.fixture
def device(running: RunningServer, tmp_path: Path) -> Iterator[Enrolled]:
    made = Enrolled(running, tmp_path / "phone")
    yield made
    made.state.close()


@pytest.mark.skipif(mosquitto_program() is None, reason="mosquitto is not installed")
def test_a_fleet_works_with_a_broker_that_asks_for_certificates(tmp_path: Path, plan_of: PlanOf) -> None:
    port, brokers = free_port(), list[Mosquitto]()

    def start(state: State) -> None:
        path = mosquitto.write_config(state, tmp_path / "broker", Broker("127.0.0.1", port, (), getpass.getuser()))
        brokers.append(Mosquitto(tmp_path, path, port))
        brokers[0].start()

    running = RunningServer(tmp_path / "server", port, tls=True, broker=start)
    agent = Agent(config_of(running, tmp_path / "phone"))
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    running.wait_online(1)
    plan = running.server.plans.add(plan_of("line").path)
    settings = msgspec.convert({"rounds": 2, "policy": {"deadline": 30.0, "attempts": 1}}, RunSettings)
    id = running.server.runs.start(POPULATION, plan.sha256, settings).id
    eventually(lambda: running.server.runs.get(id).state != "running", 40)
    assert running.server.runs.get(id).state == "finished"
    agent.stop()
    thread.join(15)
    running.stop()
    brokers[0].stop()


def test_a_deleted_devices_certificate_is_for_no_other_device_as_long_as_it_may_be_valid(tmp_path: Path) -> None:
    now = [time.time()]
    running = RunningServer(tmp_path / "server", free_port(), tls=True, clock=lambda: now[0])
    invitations, first, other = running.server.invitations, signing.generate_key(), signing.generate_key()

    def enrol(key: ECKey) -> None:
        (made,) = invitations.invite(POPULATION, 1, 60.0, {})
        secret = made.secret
        invitations.enrol(EnrolmentRequest("phone", "phone", signing.public_key(key), secret, POPULATION))

    enrol(first)
    running.server.lifecycle.delete(POPULATION, "phone")
    now[0] += pki.DEVICE_DAYS * 86_400 - 1
    with pytest.raises(SignatureError, match="another id"):
        enrol(other)
    enrol(first)
    running.server.lifecycle.delete(POPULATION, "phone")
    now[0] += pki.DEVICE_DAYS * 86_400
    enrol(other)
    assert running.server.devices.known(POPULATION, "phone").key.as_dict(private=False)["x"] == other.as_dict()["x"]
    running.stop()


def test_a_device_is_certified_under_its_name_for_a_key_beside_the_certificate(
    running: RunningServer, device: Enrolled
) -> None:
    assert device.certificate().due()
    device.certificate().context()
    held = device.held()
    assert held.subject.rfc4514_string() == f"CN={POPULATION}/phone"
    assert held.public_key() == device.held_key().public_key()
    assert held.public_key() != device.state.key.public_key
    held.verify_directly_issued_by(x509.load_pem_x509_certificate(running.state.ca.encode()))
    assert (device.state.folder / FILE).stat().st_mode & 0o777 == 0o600


def test_a_certificate_is_renewed_in_its_last_third_and_not_before(running: RunningServer, device: Enrolled) -> None:
    device.certificate().context()
    first, day = device.held(), 86_400.0
    device.now += 55 * day
    assert device.certificate().due() == 0
    device.certificate().context()
    assert device.held() == first
    device.now += 10 * day
    assert device.certificate().due()
    running.server.clock = lambda: device.now
    device.certificate().context()
    assert device.held().not_valid_after_utc > first.not_valid_after_utc
    assert device.certificate().due() == 0


def test_a_certificate_in_its_last_third_is_shown_where_no_new_one_can_be_had(
    running: RunningServer, device: Enrolled
) -> None:
    device.certificate().context()
    first = device.held()
    device.now += 70 * 86_400.0
    running.server.clock = lambda: device.now
    (running.state.folder / "ca-key.pem").unlink()
    shown = device.certificate()
    assert shown.due()
    assert certificate_shown(shown.context(), running) == first.public_bytes(serialization.Encoding.DER)
    device.now += 21 * 86_400.0
    assert certificate_shown(device.certificate().context(), running) is None


@pytest.mark.parametrize("data", [b"", b"nonsense"])
def test_a_damaged_certificate_is_replaced(device: Enrolled, data: bytes) -> None:
    (device.state.folder / FILE).write_bytes(data)
    device.certificate().context()
    assert device.held().public_key() == device.held_key().public_key()


def test_a_certificate_of_another_key_than_the_one_beside_it_is_replaced(device: Enrolled) -> None:
    device.certificate().context()
    first = device.held()
    other = signing.generate_key().as_pem(private=True)
    (device.state.folder / FILE).write_bytes(first.public_bytes(serialization.Encoding.PEM) + other)
    device.certificate().context()
    assert device.held().public_key() == device.held_key().public_key() != first.public_key()


def test_nobody_is_certified_unless_the_devices_own_key_vouches_for_it(device: Enrolled) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = asked.public_bytes(serialization.Encoding.PEM)
    damaged = pem.replace(pem[100:104], b"AAAA", 1)
    own = device.state.key
    for body in (
        pem,
        signing.sign(pem, own),
        signing.sign_as(CERTIFICATE_REQUEST, pem, signing.generate_key()),
        *(signing.sign_as(CERTIFICATE_REQUEST, wrong, own) for wrong in (b"", b"\xff" * 100, b"x" * 40_000, damaged)),
    ):
        with pytest.raises(Refused) as refused:
            device.http.until_answered("POST", CERTIFICATE_PATH, body)
        assert refused.value.status == 403
    device.http.until_answered("POST", CERTIFICATE_PATH, signing.sign_as(CERTIFICATE_REQUEST, pem, own))


def test_a_revoked_device_gets_no_certificate(running: RunningServer, device: Enrolled) -> None:
    running.client.post(f"/v1/devices/{POPULATION}/phone/revoke", {"reason": "stolen"})
    with pytest.raises(Refused, match="revoked"):
        device.certificate().context()
    assert not (device.state.folder / FILE).exists()


def test_an_administrator_gets_none_either(running: RunningServer) -> None:
    with pytest.raises(UmbelError, match="only a device can ask for its certificate"):
        running.client.post(CERTIFICATE_PATH)
