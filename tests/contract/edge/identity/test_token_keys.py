"""Keys on real PKCS#11 tokens: they are made there, never leave it, and the agent waits while the token is away."""

import copy
import logging
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pkcs11
import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11.util.ec import encode_named_curve_parameters

from tests.contract.server.runs.test_fleet_grid import start
from tests.running_agent import RunningAgent
from tests.server_harness import POPULATION, RunningServer, config_of
from tests.tokens import PIN, SOFTHSM, SoftHsm, needs_softhsm
from tests.waiting import eventually
from umbel import signing
from umbel.errors import UmbelError
from umbel.plan import Plan
from umbel_edge.config import KeyConfig
from umbel_edge.device.state import AgentState
from umbel_edge.identity.keys import store_of
from umbel_edge.identity.token_keys import Away, TokenStore, Unusable
from umbel_edge.waiting import Stopped
from umbel_sim.demo.processes import free_port

pytestmark = needs_softhsm


@pytest.fixture
def token(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    return SoftHsm(tmp_path_factory.mktemp("token"), f"t{secrets.token_hex(4)}")


def store(config: KeyConfig, patient: bool = False) -> TokenStore:
    return TokenStore(config, threading.Event(), patient)


@contextmanager
def logged_in(token: SoftHsm) -> Iterator[pkcs11.types.Session]:
    """A session of the test's own, opened after every other session ended."""
    library = store(token.config()).library()
    library.reinitialize()
    with library.get_token(token_label=token.label).open(rw=True, user_pin=PIN) as session:
        yield session


def test_a_key_is_made_on_the_token_once_and_found_again(token: SoftHsm, tmp_path: Path) -> None:
    first = AgentState(tmp_path / "state", store(token.config()))
    made = first.key
    first.close()
    again = AgentState(tmp_path / "state", store(token.config()))
    assert signing.fingerprint(again.key) == signing.fingerprint(made)
    again.close()
    assert not list((tmp_path / "state").glob("*.pem"))


def test_what_the_token_signs_verifies(token: SoftHsm) -> None:
    key = store(token.config()).create()
    public = signing.import_public(signing.public_key(key))
    for data in (b"", b"hello", bytes(50_000)):
        assert signing.verify(signing.sign(data, key), public) == data
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key.private_key, hashes.SHA256())
    assert request.is_signature_valid


def test_the_key_cannot_be_taken_out(token: SoftHsm) -> None:
    key = store(token.config()).create().private_key
    assert key is not None
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    peer = ec.generate_private_key(ec.SECP256R1()).public_key()
    for asked in (
        lambda: key.private_bytes(*pem),
        key.private_numbers,
        lambda: key.exchange(ec.ECDH(), peer),
        lambda: key.sign(b"", ec.ECDSA(hashes.SHA384())),
    ):
        with pytest.raises(UnsupportedAlgorithm):
            asked()
    assert copy.deepcopy(key) is key
    with logged_in(token) as session:
        held = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label="umbel")
        attributes = pkcs11.Attribute
        assert held[attributes.SENSITIVE]
        assert held[attributes.NEVER_EXTRACTABLE]
        assert not held[attributes.DERIVE]
        with pytest.raises(pkcs11.AttributeSensitive):
            held[attributes.VALUE]


def test_a_key_that_can_be_taken_out_is_not_used(token: SoftHsm) -> None:
    with logged_in(token) as session:
        for name, curve, extractable in (("loose", "secp256r1", True), ("large", "secp384r1", False)):
            parameters = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters(curve)}
            session.create_domain_parameters(pkcs11.KeyType.EC, parameters, local=True).generate_keypair(
                store=True, label=name, id=name.encode(), private_template={pkcs11.Attribute.EXTRACTABLE: extractable}
            )
    with pytest.raises(Unusable, match="can be extracted"):
        store(token.config(name="loose")).load()
    with pytest.raises(Unusable, match="not an EC P-256 key"):
        store(token.config(name="large")).load()


@pytest.mark.long
def test_a_token_signs_in_a_process_that_has_tensorflow(token: SoftHsm) -> None:
    """TensorFlow exports a libcrypto of its own to the whole process."""
    words = (SOFTHSM, token.label, token.config().pin_file)
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_TENSORFLOW, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "signed\n"), done.stderr[-2000:]


BESIDE_TENSORFLOW = """
import sys, threading
from pathlib import Path
import tensorflow
from umbel import signing
from umbel_edge.identity.keys import KeyConfig
from umbel_edge.identity.token_keys import TokenStore
module, token, pin = sys.argv[1:]
store = TokenStore(KeyConfig("pkcs11", Path(module), token, pin_file=Path(pin)), threading.Event(), patient=False)
key = store.create()
assert signing.verify(signing.sign(b"x", key), key) == b"x"
print("signed")
"""


def test_many_threads_sign_at_once(token: SoftHsm) -> None:
    key = store(token.config()).create()
    public = signing.import_public(signing.public_key(key))
    with ThreadPoolExecutor(16) as pool:
        signed = list(pool.map(lambda number: signing.sign(b"%d" % number, key), range(320)))
    assert [signing.verify(one, public) for one in signed] == [b"%d" % number for number in range(320)]


def test_a_wrong_pin_is_tried_once(token: SoftHsm, caplog: pytest.LogCaptureFixture) -> None:
    first = store(token.config())
    first.create()
    first.close()
    token.write_pin("wrong-pin")
    waiting = store(token.config(), patient=True)
    with pytest.raises(Unusable, match=r"refuses the PIN; correct it$"):
        waiting.load()
    with pytest.raises(Unusable, match="and the agent tries the new one"):
        waiting.load()
    token.write_pin(PIN)
    assert waiting.load() is not None
    assert "wrong-pin" not in caplog.text


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [("USER_PIN_LOCKED", "is locked after wrong PINs"), ("USER_PIN_FINAL_TRY", "which the agent does not take")],
)
def test_a_token_that_is_locked_or_soon_will_be_is_not_tried(token: SoftHsm, flag: str, sentence: str) -> None:
    """The test gives the flags, because SoftHSM does not count tries."""
    with pytest.raises(Unusable, match=sentence):
        store(token.config()).check(pkcs11.TokenFlag[flag] | pkcs11.TokenFlag.LOGIN_REQUIRED)


def test_a_pin_that_others_may_read_is_not_read(token: SoftHsm) -> None:
    config = token.config()
    assert config.pin_file is not None
    config.pin_file.chmod(0o640)
    with pytest.raises(Unusable, match="other users can read the PIN"):
        store(config).load()
    config.pin_file.chmod(0o600)
    token.write_pin("")
    with pytest.raises(Unusable, match="the file is empty"):
        store(config).load()
    config.pin_file.unlink()
    with pytest.raises(Unusable, match="cannot be read"):
        store(config).load()


def test_the_pin_may_be_in_the_environment(token: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    config = KeyConfig("pkcs11", SOFTHSM, token.label, pin_env="PIN_OF_TEST")
    with pytest.raises(Unusable, match=r"\$PIN_OF_TEST is not set"):
        store(config).load()
    monkeypatch.setenv("PIN_OF_TEST", PIN)
    assert store(config).load() is None


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"token": "another"}, "token 'another' is not there"),
        ({"module": Path("/none.so")}, "no such PKCS#11 module"),
        ({"module": Path(__file__)}, "cannot be loaded as a PKCS#11 module"),
    ],
)
def test_a_token_that_is_not_there_is_said_so(token: SoftHsm, wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises((Away, Unusable), match=sentence):
        store(msgspec.structs.replace(token.config(), **wrong)).load()


def test_a_token_that_was_pulled_is_waited_for(token: SoftHsm, caplog: pytest.LogCaptureFixture) -> None:
    waiting = store(token.config(), patient=True)
    key = waiting.create()
    token.take_out()
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(2) as pool:
        signing_ = [pool.submit(signing.sign, b"late", key) for _ in range(2)]
        eventually(lambda: "this device cannot sign, and waits" in caplog.text)
        assert not any(one.done() for one in signing_)
        token.put_in()
        assert {signing.verify(one.result(30), key) for one in signing_} == {b"late"}
    assert f"token '{token.label}' is back" in caplog.text


def test_waiting_for_a_token_ends_with_the_agent(token: SoftHsm) -> None:
    stopping = threading.Event()
    waiting = TokenStore(token.config(), stopping)
    key = waiting.create()
    token.take_out()
    try:
        with ThreadPoolExecutor(1) as pool:
            signed = pool.submit(signing.sign, b"never", key)
            stopping.set()
            with pytest.raises(Stopped):
                signed.result(20)
    finally:
        token.put_in()


def test_another_token_with_the_same_label_does_not_sign(
    token: SoftHsm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mine = store(token.config())
    key = mine.create()
    token.take_out()
    other = SoftHsm(tmp_path_factory.mktemp("other"), token.label)
    store(other.config()).create()
    pkcs11.lib(str(SOFTHSM)).reinitialize()  # as if the first one's end had been noticed
    with pytest.raises(Unusable, match="holds another key 'umbel' than this device's"):
        signing.sign(b"x", key)
    other.take_out()
    token.put_in()
    assert eventually(lambda: _signed(key)) is not None


def _signed(key: object) -> bytes | None:
    try:
        return signing.sign(b"x", key)  # type: ignore[arg-type]
    except (Away, Unusable):
        return None


def test_a_state_folder_keeps_to_its_key(token: SoftHsm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    state = AgentState(folder, store(token.config()))
    assert state.key is not None
    state.close()
    for other, sentence in (
        (store_of(KeyConfig(), folder, threading.Event()), "is gone; restore it"),
        (store(token.config(name="another")), "is gone; restore it"),
    ):
        state = AgentState(folder, other)
        with pytest.raises(UmbelError, match=sentence):
            _ = state.key
        state.close()
    store(token.config(name="third")).create()
    state = AgentState(folder, store(token.config(name="third")))
    with pytest.raises(UmbelError, match="that this device is known by"):
        _ = state.key
    state.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "server", free_port(), tls=True)
    yield server
    server.stop()


def test_an_agent_trains_with_its_key_on_a_token_and_comes_back_when_it_does(
    running: RunningServer,
    token: SoftHsm,
    tmp_path: Path,
    plan_of: Callable[[str], Plan],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = msgspec.structs.replace(config_of(running, tmp_path / "phone"), key=token.config())
    agent = RunningAgent(config)
    running.wait_online(1)
    assert not (config.state / "key.pem").exists()
    plan = running.server.plans.add(plan_of("line").path)
    policy = {"quorum": 1, "deadline": 60.0}
    id = start(running, plan, policy)
    eventually(lambda: running.server.runs.get(id).state == "finished", 40)
    token.take_out()
    later = start(running, plan, policy)
    eventually(lambda: "this device cannot sign, and waits" in caplog.text)
    assert running.server.runs.get(later).state == "running"
    token.put_in()
    eventually(lambda: running.server.runs.get(later).state == "finished", 60)
    token.take_out()
    agent.stop()
    token.put_in()
    assert PIN not in caplog.text
    device = running.server.devices.get(POPULATION, "phone")
    assert device.key["kty"] == "EC"
