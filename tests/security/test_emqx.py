"""The configuration that is written for EMQX, read as EMQX reads it: HOCON, and Erlang terms that are rules.

EMQX itself is not run here: see SECURITY.md for what that leaves open.
"""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from pyhocon import ConfigFactory

from umbel import topics
from umbel.errors import MessageError
from umbel_server.broker import emqx, files
from umbel_server.broker.embedded import MAX_PAYLOAD
from umbel_server.broker.files import Broker
from umbel_server.security import pki
from umbel_server.state_folder import Config, Http, Mqtt, State, init_state

_TOKEN = re.compile(r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<atom>[a-z][a-zA-Z0-9_]*)|(?P<mark>[{}\[\],.]))')


def terms_of(text: str) -> list[Any]:
    """Erlang terms as file:consult/1 reads them, of atoms, strings, tuples and lists; atoms come as bytes."""
    tokens, at = list[tuple[str, str]](), 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        assert found is not None, text[at : at + 40]
        kind = found.lastgroup or ""
        tokens.append((kind, found[kind]))
        at = found.end()
    reading, terms = iter(tokens), []
    for kind, token in reading:
        terms.append(_term(kind, token, reading))
        assert next(reading) == ("mark", ".")
    return terms


def _term(kind: str, token: str, reading: Iterator[tuple[str, str]]) -> Any:
    if kind == "string":
        return json.loads(token)
    if kind == "atom":
        return token.encode()
    assert token in "{[", token
    ends = "}" if token == "{" else "]"
    members: list[Any] = []
    for inner_kind, inner in reading:
        if (inner_kind, inner) == ("mark", ends):
            return tuple(members) if ends == "}" else members
        if (inner_kind, inner) == ("mark", ","):
            assert members
            continue
        members.append(_term(inner_kind, inner, reading))
    raise AssertionError("a term that does not end")


def may(rules: list[Any], name: str, action: str, topic: str, retain: bool = False) -> bool:
    """What the first rule that matches says, for a client with this name in its certificate."""
    population, _, device = name.partition("/")
    attributes = {emqx.POPULATION: population, **({emqx.DEVICE: device} if device else {})}
    for rule in rules:
        permission, who, *of = rule
        if not of:
            assert who == b"all"
            return bool(permission == b"allow")
        does, filters = of
        options = dict(does[1]) if isinstance(does, tuple) else {}
        does = does[0] if isinstance(does, tuple) else does
        if who not in (b"all", (b"username", name)) or does not in (b"all", action.encode()):
            continue
        if action == "publish" and options.get(b"retain") not in (None, str(retain).lower().encode()):
            continue
        if any(_covers(rendered, topic) for rendered in _rendered(filters, attributes)):
            return bool(permission == b"allow")
    return False


def _rendered(filters: list[str], attributes: dict[str, str]) -> Iterator[str]:
    """The filters with the client's attributes in them; one with an attribute that the client has not matches nothing."""
    for pattern in filters:
        named = re.findall(r"\$\{client_attrs\.([a-z_]+)\}", pattern)
        if set(named) <= attributes.keys():
            for name in named:
                pattern = pattern.replace(f"${{client_attrs.{name}}}", attributes[name])
            assert "$" not in pattern
            yield pattern


def _covers(pattern: str, topic: str) -> bool:
    """Whether all that a topic, or a filter that is asked for, can match is within a pattern."""
    ours, theirs = pattern.split("/"), topic.split("/")
    for index, level in enumerate(ours):
        if level == "#":
            return True
        if index >= len(theirs) or level != theirs[index]:
            return False
    return len(ours) == len(theirs)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return init_state(tmp_path_factory.mktemp("emqx") / "state", Config())


@pytest.fixture(scope="module")
def written(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broker") / 'a "quoted" folder'
    return emqx.write_config(state, folder, Broker("0.0.0.0", 8883, ["broker.example"]))


@pytest.fixture(scope="module")
def rules(written: Path) -> list[Any]:
    return terms_of((written.parent / emqx.ACL).read_text())


def test_it_listens_with_tls_alone_and_asks_for_certificates_of_ours(written: Path, state: State) -> None:
    found = ConfigFactory.parse_file(str(written))
    listeners = found["listeners"]
    assert listeners["ssl"]["default"]["bind"] == "0.0.0.0:8883"
    tls = listeners["ssl"]["default"]["ssl_options"]
    assert (tls["verify"], tls["fail_if_no_peer_cert"], list(tls["versions"])) == ("verify_peer", True, ["tlsv1.3"])
    assert Path(tls["cacertfile"]).read_text() == state.ca
    held = x509.load_pem_x509_certificate(Path(tls["certfile"]).read_bytes())
    held.verify_directly_issued_by(x509.load_pem_x509_certificate(state.ca.encode()))
    names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "broker.example" in names.get_values_for_type(x509.DNSName)
    for kind in ("tcp", "ws", "wss"):
        assert listeners[kind]["default"]["enable"] is False
    assert found["dashboard"]["listeners"]["http"]["bind"].startswith("127.0.0.1:")


def test_who_a_client_is_its_certificate_says(written: Path) -> None:
    mqtt = ConfigFactory.parse_file(str(written))["mqtt"]
    assert mqtt["peer_cert_as_username"] == mqtt["peer_cert_as_clientid"] == "cn"
    found = {one["set_as_attr"]: one["expression"] for one in mqtt["client_attrs_init"]}
    assert found == {emqx.POPULATION: "nth(1, tokens(cn, '/'))", emqx.DEVICE: "nth(2, tokens(cn, '/'))"}


def test_what_no_rule_allows_is_denied_and_packets_are_bounded(written: Path) -> None:
    found = ConfigFactory.parse_file(str(written))
    assert found["authorization"]["no_match"] == "deny"
    (source,) = found["authorization"]["sources"]
    assert (source["type"], source["enable"]) == ("file", True)
    assert Path(source["path"]) == written.parent / emqx.ACL
    most = found["mqtt"]["max_packet_size"]
    assert most.endswith("KB")
    assert MAX_PAYLOAD < 1024 * int(most[:-2]) < 2 * MAX_PAYLOAD
    levels = len(topics.topic("p", "d", "command").split("/"))
    assert found["mqtt"]["max_topic_levels"] == levels


def test_a_device_reaches_its_own_topics_alone(rules: list[Any]) -> None:
    own = {channel: topics.topic("home", "a", channel) for channel in ("command", "ack", "status", "result")}
    assert may(rules, "home/a", "subscribe", own["command"])
    assert may(rules, "home/a", "publish", own["status"], retain=True)
    for channel in ("ack", "status", "result"):
        assert may(rules, "home/a", "publish", own[channel])
        assert not may(rules, "home/a", "subscribe", own[channel])
    for channel in ("ack", "result", "command"):
        assert not may(rules, "home/a", "publish", own[channel], retain=True)
    assert not may(rules, "home/a", "publish", own["command"])
    others = [topics.topic(p, d, c) for p, d in (("home", "b"), ("away", "a")) for c in own]
    wide = ["#", "+/#", "umbel/#", "umbel/1/+/+/command", "umbel/1/home/+/command", "umbel/1/home/a/#", "$SYS/#"]
    for topic in (*others, *wide, "umbel/1/home/a/command/x", "umbel/1/home/a", "other"):
        assert not may(rules, "home/a", "subscribe", topic), topic
        assert not may(rules, "home/a", "publish", topic), topic
        assert not may(rules, "home/a", "publish", topic, retain=True), topic


def test_the_server_reaches_the_topics_of_all_and_nothing_else(rules: list[Any]) -> None:
    for channel in ("ack", "status", "result"):
        assert may(rules, pki.SERVER, "subscribe", topics.everyone(channel))
    assert may(rules, pki.SERVER, "publish", topics.topic("home", "a", "command"))
    assert may(rules, pki.SERVER, "publish", topics.topic("home", "a", "status"), retain=True)
    for topic in ("#", "$SYS/#", "other"):
        assert not may(rules, pki.SERVER, "subscribe", topic)


@pytest.mark.parametrize("name", ["home", "umbel-broker", "", "umbel-server2"])
def test_a_name_that_is_no_devices_and_not_the_servers_reaches_nothing(rules: list[Any], name: str) -> None:
    for topic in ("umbel/1/home/a/command", f"umbel/1/{name}/command", f"umbel/1/{name}//command", "umbel/1/#", "#"):
        assert not may(rules, name, "subscribe", topic)
        assert not may(rules, name, "publish", topic)


@pytest.mark.parametrize(
    "name", ["a/b", "+", "#", "a+", "a#", "", "${username}", "a b", "a\0", "\N{LATIN SMALL LETTER A WITH DIAERESIS}"]
)
def test_no_name_can_widen_a_rule(name: str) -> None:
    with pytest.raises(MessageError):
        topics.check_name(name, "a device id")


def test_its_key_is_private_and_the_authoritys_stays_where_it_is(written: Path) -> None:
    assert stat.S_IMODE((written.parent / files.KEY).stat().st_mode) == 0o600
    assert not (written.parent / pki.CA_KEY).exists()


def command(*words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from umbel_server.cli import main; main()", "broker", "config", *words]
    return subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_writes_it_and_says_how_to_start(state: State, tmp_path: Path) -> None:
    done = command("emqx", str(tmp_path / "b"), "--host", "::", "--state", str(state.folder))
    assert done.returncode == 0, done.stderr
    assert "emqx.conf" in done.stdout
    assert "node.cookie" in done.stdout
    found = ConfigFactory.parse_file(str(tmp_path / "b" / emqx.CONFIG))
    assert found["listeners"]["ssl"]["default"]["bind"] == "[::]:8883"
    other = command("hivemq", str(tmp_path / "c"), "--state", str(state.folder))
    assert (other.returncode, "mosquitto or emqx" in other.stderr) == (2, True)


def test_a_server_without_tls_configures_no_broker(tmp_path: Path) -> None:
    plain = init_state(tmp_path / "plain", Config(http=Http(tls=False), mqtt=Mqtt(tls=False)))
    done = command("emqx", str(tmp_path / "b"), "--state", str(plain.folder))
    assert done.returncode == 1
    assert "no authority" in done.stderr
    assert not (tmp_path / "b").exists()
