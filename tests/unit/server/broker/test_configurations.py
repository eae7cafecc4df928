"""What a broker that is configured here may call itself, and where its files may lie."""

import os
from pathlib import Path

import pytest
from cryptography import x509

from umbel.errors import UmbelError
from umbel_server.broker import mosquitto
from umbel_server.broker.files import CERTIFICATE, Broker, names_of
from umbel_server.state_folder import LOOPBACK, Config, Http, Mqtt, State, init_state

ANYWHERE = "0.0.0.0"


@pytest.fixture
def state(tmp_path: Path) -> State:
    http = Http(host="10.0.0.5")
    return init_state(tmp_path / "state", Config(http=http, hostnames=["umbel.example", "10.0.0.6"]))


def told(state: State, **mqtt: str) -> State:
    config = Config(state.config.schema, state.config.http, Mqtt(**mqtt), state.config.hostnames)  # type: ignore[arg-type]
    return State(state.folder, config, state.keys, state.admin_token, state.enrolment_secret)


def test_a_brokers_certificate_is_for_no_name_of_the_api(state: State, tmp_path: Path) -> None:
    mosquitto.write_config(state, tmp_path / "broker", Broker(ANYWHERE, 8883, ["mq.example"]))
    held = x509.load_pem_x509_certificate((tmp_path / "broker" / CERTIFICATE).read_bytes())
    names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["mq.example", *LOOPBACK]
    assert names_of(state, Broker(ANYWHERE, 8883)) == ("127.0.0.1", "localhost", "::1")
    assert names_of(state, Broker("10.0.0.9", 8883, ["mq.example"]))[:2] == ("mq.example", "10.0.0.9")
    for name in ("umbel.example", "Umbel.Example", "10.0.0.5", "10.0.0.6"):
        with pytest.raises(UmbelError, match="a name of the API"):
            names_of(state, Broker(ANYWHERE, 8883, ["mq.example", name]))
    with pytest.raises(UmbelError, match="a name of the API"):
        names_of(state, Broker("10.0.0.5", 8883))


def test_where_one_machine_is_both_the_configuration_says_so(state: State) -> None:
    both = told(state, advertised_host="umbel.example")
    assert names_of(both, Broker(ANYWHERE, 8883)) == ("umbel.example", "127.0.0.1", "localhost", "::1")
    assert names_of(both, Broker(ANYWHERE, 8883, ["umbel.example"]))[0] == "umbel.example"
    assert names_of(told(state, host="10.0.0.5"), Broker("10.0.0.5", 8883))[0] == "10.0.0.5"


def test_a_folder_that_holds_the_state_or_lies_in_it_is_refused(state: State, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(state.folder)
    before = sorted(os.listdir(state.folder))
    for folder in (state.folder, state.folder / "broker", tmp_path, tmp_path / "link"):
        with pytest.raises(UmbelError, match="the state folder"):
            mosquitto.write_config(state, folder, Broker(ANYWHERE, 8883))
    assert sorted(os.listdir(state.folder)) == before


def test_a_line_of_the_configuration_is_one_line(state: State, tmp_path: Path) -> None:
    for broker in (
        Broker("127.0.0.1\nallow_anonymous true", 8883),
        Broker("::1%\nallow_anonymous true", 8883),
        Broker(ANYWHERE, 8883, (), "me\nallow_anonymous true"),
    ):
        with pytest.raises(UmbelError, match="expected, got"):
            mosquitto.write_config(state, tmp_path / "broker", broker)
    assert not (tmp_path / "broker").exists()
