"""Invitations over the real API: each lets one device in, once, until it expires."""

import json
import logging
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import msgspec
import pytest
from joserfc.jwk import ECKey

from tests.server_harness import POPULATION, RunningServer, serving
from tests.umbel_command import Umbel
from umbel import signing
from umbel.enrolment import ENROL_PATH, EnrolmentReply, EnrolmentRequest, sign_request, split_token
from umbel.errors import MessageError, SignatureError, UmbelError
from umbel_server.devices.invitations import Invitations
from umbel_server.devices.register import Devices
from umbel_server.state_folder import Config, Enrolment, init_state, open_state
from umbel_server.storage.database import Database


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("invitations") / "server", open_enrolment=False) as server:
        yield server


def invite(running: RunningServer, **wanted: Any) -> dict[str, Any]:
    (made,) = running.client.post("/v1/invitations", {"population": POPULATION, **wanted})
    return dict(made)


def ask(
    running: RunningServer, token: str, device: str, key: ECKey, kind: str = "phone", population: str = ""
) -> httpx.Response:
    request = EnrolmentRequest(device, kind, signing.public_key(key), split_token(token)[0], population)
    url = running.state.server_url + ENROL_PATH
    return httpx.post(url, content=sign_request(request, key), trust_env=False, timeout=60)


def test_what_a_used_token_repeats_is_recorded_once(running: RunningServer) -> None:
    token, key = invite(running)["token"], signing.generate_key()
    assert [ask(running, token, "again", key).status_code for _ in range(3)] == [200, 200, 200]
    entries = running.client.get("/v1/audit", limit=50)
    assert sum((e["action"], e["subject"]) == ("device.enrol", f"{POPULATION}/again") for e in entries) == 1


def test_a_device_is_told_a_broker_that_it_can_reach(running: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.state.config, "hostnames", ["umbel.example"])
    monkeypatch.setattr(running.state.config.mqtt, "host", "0.0.0.0")
    answer = ask(running, invite(running)["token"], "remote", signing.generate_key())
    assert msgspec.json.decode(answer.content, type=EnrolmentReply).broker_host == "umbel.example"


def test_fifty_at_once_with_one_token_are_one_device(running: RunningServer) -> None:
    token = invite(running)["token"]
    keys, start, answers = [signing.generate_key() for _ in range(50)], threading.Barrier(50), []

    def enrol(number: int) -> None:
        start.wait()
        answers.append(ask(running, token, f"twin-{number}", keys[number]).status_code)

    threads = [threading.Thread(target=enrol, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] + [403] * 49
    assert sum(row["id"].startswith("twin-") for row in running.client.get("/v1/devices")) == 1


def test_a_reply_that_was_lost_is_given_again_and_only_to_the_same_key(running: RunningServer) -> None:
    made, key = invite(running, labels={"site": "lab"}, kind="vehicle"), signing.generate_key()
    for _ in range(2):
        reply = msgspec.json.decode(ask(running, made["token"], "car", key, kind="").content, type=EnrolmentReply)
        assert (reply.population, reply.device, reply.kind) == (POPULATION, "car", "vehicle")
        assert signing.fingerprint(signing.import_public(reply.server_key)) == split_token(made["token"])[1]
    for device, other in (("car", signing.generate_key()), ("lorry", key)):
        refused = ask(running, made["token"], device, other, kind="")
        assert (refused.status_code, "used by another" in refused.json()["error"]) == (403, True)
    assert running.client.get(f"/v1/devices/{POPULATION}/car")["labels"] == {"site": "lab"}
    (row,) = [row for row in running.client.get("/v1/invitations") if row["id"] == made["id"]]
    assert (row["state"], row["device"]) == ("used", "car")
    with pytest.raises(UmbelError, match="used by car already"):
        running.client.post(f"/v1/invitations/{made['id']}/revoke")


def test_an_invitation_lets_in_whom_it_names_and_nobody_once_it_is_taken_back(running: RunningServer) -> None:
    made, key = invite(running, kind="phone"), signing.generate_key()
    for wrong, sentence in (
        ({"population": "other"}, "into population test"),
        ({"kind": "vehicle"}, "is for a phone"),
        ({"device": "+"}, "a device id should be"),
    ):
        refused = ask(running, made["token"], **{"device": "one", "key": key, **wrong})  # type: ignore[arg-type]
        assert refused.status_code in (400, 403)
        assert sentence in refused.json()["error"]
    assert running.client.post(f"/v1/invitations/{made['id']}/revoke")["state"] == "revoked"
    assert "is revoked" in ask(running, made["token"], "one", key).json()["error"]
    unnamed = invite(running)["token"]
    assert "names one" in ask(running, unnamed, "one", key, kind="").json()["error"]
    assert ask(running, unnamed, "one", key).status_code == 200  # what was refused had not used it up


def test_a_device_of_another_key_takes_nobodys_place(running: RunningServer) -> None:
    assert ask(running, invite(running)["token"], "mine", signing.generate_key()).status_code == 200
    second = invite(running)
    refused = ask(running, second["token"], "mine", signing.generate_key())
    assert "enrolled with another key" in refused.json()["error"]
    assert ask(running, second["token"], "yours", signing.generate_key()).status_code == 200


def test_secrets_are_nowhere_but_in_the_answer(running: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = running.client.post("/v1/invitations", {"population": POPULATION, "count": 2})
    assert ask(running, made[0]["token"], "quiet", signing.generate_key()).status_code == 200
    assert ask(running, made[0]["token"], "loud", signing.generate_key()).status_code == 403
    shown = json.dumps(running.client.get("/v1/invitations")) + json.dumps(running.client.get("/v1/devices"))
    stored = b"".join(path.read_bytes() for path in running.state.folder.glob("umbel.sqlite*"))
    for one in made:
        secret = split_token(one["token"])[0]
        assert secret not in shown
        assert secret not in caplog.text
        assert secret.encode() not in stored


@pytest.mark.parametrize(
    "wanted", [{"count": 0}, {"count": 1001}, {"ttl": 0}, {"ttl": 1e12}, {"kind": "fridge"}, {"population": "a/b"}]
)
def test_invitations_that_make_no_sense_are_refused(running: RunningServer, wanted: dict[str, Any]) -> None:
    before = len(running.client.get("/v1/invitations"))
    with pytest.raises(UmbelError):
        running.client.post("/v1/invitations", {"population": POPULATION, **wanted})
    assert len(running.client.get("/v1/invitations")) == before


def test_the_reusable_token_enrols_only_where_it_was_asked_for(running: RunningServer, tmp_path: Path) -> None:
    with pytest.raises(UmbelError, match="no reusable enrolment token"):
        _ = running.state.enrolment_token
    old = f"{running.state.enrolment_secret}.{signing.fingerprint(running.state.key)}"
    refused = ask(running, old, "anybody", signing.generate_key(), population=POPULATION)
    assert (refused.status_code, "umbel devices invite" in refused.json()["error"]) == (403, True)
    opened = init_state(tmp_path / "open", Config(enrolment=Enrolment(open=True)))
    assert open_state(tmp_path / "open").enrolment_token == opened.enrolment_token


def test_a_token_begins_with_a_letter_and_expires(tmp_path: Path) -> None:
    now = [1000.0]
    database = Database(f"sqlite:///{tmp_path / 'one.sqlite'}")
    devices = Devices(database, lambda: now[0])
    invitations = Invitations(database, devices, lambda: now[0], random=lambda count: b"\xfb" * count)
    (made,) = invitations.invite(POPULATION, 1, 60.0, {})
    assert made.secret[0].isalpha()
    assert len(made.secret) == 44
    now[0] += 60.0
    request = EnrolmentRequest("late", "phone", signing.public_key(signing.generate_key()), made.secret)
    with pytest.raises(SignatureError, match="is expired"):
        invitations.enrol(request)
    assert invitations.describe(invitations.list()[0]).state == "expired"
    now[0] -= 0.5
    assert invitations.enrol(request).population == POPULATION
    with pytest.raises(MessageError, match="labels"):
        invitations.invite(POPULATION, 1, 60.0, {"x" * 1000: "y"})
    database.close()


def test_a_new_server_says_how_devices_get_in(tmp_path: Path) -> None:
    init = partial(Umbel(columns=160), "init")
    closed, opened, bare = (str(tmp_path / name) for name in ("closed", "opened", "bare"))
    assert f"umbel devices invite --population NAME --state {closed}" in init(closed)
    assert not open_state(Path(closed)).config.enrolment.open
    shown = init(opened, "--open-enrolment")
    assert open_state(Path(opened)).enrolment_token in shown
    assert "This token lets any device enrol" in shown
    assert sorted(json.loads(init(bare, "--json"))) == ["server", "state"]


def test_an_operator_invites_lists_and_takes_back(running: RunningServer) -> None:
    command = Umbel(running.state.folder, columns=160)

    def umbel(*words: str, code: int = 0) -> CompletedProcess[str]:
        done = command.run(*words)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    several = umbel("devices", "invite", "-p", "shop", "--count", "3", "--expires", "7d", "--label", "site=lab")
    assert len([split_token(token) for token in several.stdout.split()]) == 3
    assert f"umbel-agent enrol {running.state.server_url}" in several.stderr
    (one,) = json.loads(umbel("devices", "invite", "-p", "shop", "--kind", "gateway", "--json").stdout)
    assert json.loads(umbel("devices", "uninvite", one["id"], "--json").stdout)["state"] == "revoked"
    rows = [row for row in json.loads(umbel("devices", "invitations", "--json").stdout) if row["population"] == "shop"]
    assert sorted(row["state"] for row in rows) == ["open"] * 3 + ["revoked"]
    assert [row["labels"] for row in rows if row["state"] == "open"] == [{"site": "lab"}] * 3
    assert "gateway" in umbel("devices", "invitations").stdout
    assert "90s, 30m" in umbel("devices", "invite", "-p", "shop", "--expires", "soon", code=2).stderr
    assert "no invitation" in umbel("devices", "uninvite", "none", code=1).stderr
    config = umbel("devices", "config", "phone-9", "-p", "shop").stdout
    assert 'device = "phone-9"' in config
    assert "enrolment_token" in config
