"""What `umbel.toml` may say, and where a server tells others that it and its broker are."""

from pathlib import Path

import pytest

from umbel.errors import UmbelError
from umbel_server.cli.open_client import open_client
from umbel_server.security import pki
from umbel_server.state_folder import CONFIG, Config, Http, Mqtt, init_state, open_state
from umbel_server.storage.blobs import Blobs
from umbel_server.storage.database import Database

ANYWHERE = "0.0.0.0"


@pytest.mark.parametrize("text", ["", "schema = 1\n", "[http]\nport = 8471\n", "[http]\ntls = true\n"])
def test_a_configuration_without_its_schema_does_not_take_tls_off(tmp_path: Path, text: str) -> None:
    init_state(tmp_path / "a", Config())
    (tmp_path / "a" / CONFIG).write_text(text)
    with pytest.raises(UmbelError, match="schema = 2"):
        open_state(tmp_path / "a")


def test_a_folder_from_before_tls_goes_on_without(tmp_path: Path) -> None:
    init_state(tmp_path / "a", Config(http=Http(tls=False), mqtt=Mqtt(tls=False)))
    (tmp_path / "a" / CONFIG).write_text("[http]\nport = 8471\n")
    config = open_state(tmp_path / "a").config
    assert (config.http.tls, config.mqtt.tls, config.http.port) == (False, False, 8471)
    (tmp_path / "a" / CONFIG).write_text("http = 5\n")
    with pytest.raises(UmbelError, match=r"\$\.http"):
        open_state(tmp_path / "a")


@pytest.mark.parametrize(
    "name",
    ["bad..name", "https://umbel.example:8470", "a b\n", "", "*.example", "-a.example", "umbel.example.", "x" * 64],
)
def test_what_is_no_name_of_a_host_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    for config in (Config(hostnames=[name]), Config(http=Http(host=name or "a b"))):
        with pytest.raises(UmbelError, match="host name"):
            init_state(tmp_path / "a", config)
    assert not (tmp_path / "a").exists()
    init_state(tmp_path / "a", Config(hostnames=["umbel.example"]))
    config = tmp_path / "a" / CONFIG
    config.write_text(config.read_text().replace('"umbel.example"', repr(name)))
    with pytest.raises(UmbelError, match="host name"):
        open_state(tmp_path / "a")


def test_names_of_hosts_and_addresses_are_taken(tmp_path: Path) -> None:
    names = ["umbel.example", "10.0.0.7", "fd00::7", "b\N{LATIN SMALL LETTER U WITH DIAERESIS}ro.example", "my_host"]
    state = init_state(tmp_path / "a", Config(hostnames=names))
    assert state.names[: len(names)] == names
    assert (tmp_path / "a" / pki.CERTIFICATE).is_file()


def test_others_are_told_the_first_hostname_and_not_where_this_machine_listens(tmp_path: Path) -> None:
    config = Config(http=Http(host=ANYWHERE), mqtt=Mqtt(host=ANYWHERE), hostnames=["umbel.example", "10.0.0.7"])
    state = init_state(tmp_path / "a", config)
    assert (state.server_url, state.public_url) == ("https://127.0.0.1:8470", "https://umbel.example:8470")
    assert state.public_broker == "umbel.example"
    assert open_client(tmp_path / "a").url == state.public_url


@pytest.mark.parametrize(
    ("http", "mqtt", "hostnames", "told"),
    [
        (Http(), Mqtt(), [], ("https://127.0.0.1:8470", "127.0.0.1")),
        (Http(), Mqtt(host="10.0.0.9"), ["fd00::7"], ("https://[fd00::7]:8470", "10.0.0.9")),
        (Http(host="::"), Mqtt(host="::"), [], ("https://[::1]:8470", "::1")),
        (Http(), Mqtt(host="", advertised_host="mq.example"), ["a.example"], ("https://a.example:8470", "mq.example")),
    ],
)
def test_what_is_told(tmp_path: Path, http: Http, mqtt: Mqtt, hostnames: list[str], told: tuple[str, str]) -> None:
    state = init_state(tmp_path / "a", Config(http=http, mqtt=mqtt, hostnames=hostnames))
    assert (state.public_url, state.public_broker) == told


def test_a_blob_has_a_size(tmp_path: Path) -> None:
    config = tmp_path / "a" / CONFIG
    init_state(tmp_path / "a", Config())
    config.write_text(config.read_text().replace("max_blob_mb = 2048", "max_blob_mb = -5"))
    with pytest.raises(UmbelError, match="max_blob_mb"):
        open_state(tmp_path / "a")


@pytest.mark.parametrize("url", ["nonsense://x", "nonsense", "postgresql+psycopg://h:port/x", "oracle://x"])
def test_a_database_that_is_none_is_named(url: str) -> None:
    with pytest.raises(UmbelError, match=r"the database in umbel\.toml"):
        Database(url)


@pytest.mark.parametrize("url", ["nonsense://x", "nonsense", "s3://"])
def test_a_store_of_blobs_that_is_none_is_named(url: str) -> None:
    with pytest.raises(UmbelError, match=r"the blobs in umbel\.toml") as refused:
        Blobs(url)
    assert "\n" not in str(refused.value)
