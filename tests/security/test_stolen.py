"""Somebody who has what is another's: a request that was signed, a device's key, an administrator's or an enrolment token."""

import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.brokers import EmbeddedProcess
from tests.security.served import Enrolled
from tests.server_harness import POPULATION, RunningServer, ScriptedDevice, config_of, reports
from tests.settled_commands import settled
from tests.waiting import eventually
from umbel import signing
from umbel.enrolment import CONNECTION_PATH, ENROL_PATH, EnrolmentRequest, sign_request
from umbel_edge.agent import Agent
from umbel_edge.device.state import AgentState
from umbel_server.client import Client


def audit(running: RunningServer, action: str) -> list[dict[str, Any]]:
    return [one for one in running.client.get("/v1/audit", limit=200) if one["action"] == action]


def ask(running: RunningServer, method: str, path: str, token: str, **options: Any) -> httpx.Response:
    headers = {"Authorization": token if " " in token else f"Bearer {token}"}
    return httpx.request(
        method, running.state.server_url + path, headers=headers, trust_env=False, timeout=30, **options
    )


def test_a_stolen_request_ends_with_its_device(running: RunningServer) -> None:
    device = Enrolled(running.state, "phone")
    token = device.authorization("GET", CONNECTION_PATH)
    assert ask(running, "GET", CONNECTION_PATH, token).status_code == 200
    fresh = device.authorization("GET", CONNECTION_PATH)
    running.client.post(f"/v1/devices/{POPULATION}/phone/revoke", {"reason": "stolen"})
    for stolen in (token, fresh, device.authorization("GET", CONNECTION_PATH)):
        answer = ask(running, "GET", CONNECTION_PATH, stolen)
        assert answer.status_code in (401, 403)
    assert (answer.status_code, answer.json()["code"]) == (403, "revoked")
    assert "stolen" in answer.json()["error"]


def test_a_stolen_key_is_worth_nothing_once_its_device_is_revoked(
    running: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    device = ScriptedDevice(running, "phone", reports)
    running.wait_online(1)
    sent = running.client.post("/v1/commands", {"population": POPULATION, "kind": "report"})
    assert settled(running.client, sent, 20)[0]["state"] == "done"
    running.client.post(f"/v1/devices/{POPULATION}/phone/revoke", {"reason": "stolen"})
    device.epoch += 1
    device.say(device.status(True), "status")
    eventually(lambda: "dropped a message of test/phone" in caplog.text)
    assert not running.server.devices.get(POPULATION, "phone").online
    public = signing.public_key(device.key)
    for name in ("phone", "another"):  # the key is barred, under whatever name it comes
        request = EnrolmentRequest(name, "phone", public, running.state.enrolment_secret, POPULATION)
        answer = ask(running, "POST", ENROL_PATH, "none", content=sign_request(request, device.key))
        assert (answer.status_code, answer.json()["code"]) == (403, "revoked")
    assert [one["outcome"] != "done" for one in audit(running, "device.enrol")] == [True, True]
    device.stop()


def test_a_copied_state_folder_is_barred_with_the_device(running: RunningServer, tmp_path: Path) -> None:
    """Key and all: the thief's copy is the device, until the device is revoked; then it is nobody."""
    config = config_of(running, tmp_path / "phone")
    agent = Agent(config)
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    running.wait_online(1)
    agent.stop()
    thread.join(15)
    shutil.copytree(tmp_path / "phone", tmp_path / "thief")
    running.client.post(f"/v1/devices/{POPULATION}/phone/revoke", {"reason": "stolen"})
    copied = msgspec.structs.replace(config, state=tmp_path / "thief" / "state")
    refusals: list[str] = []

    def run() -> None:
        try:
            Agent(copied).run()
        except Exception as error:
            refusals.append(str(error))

    thief = threading.Thread(target=run, daemon=True)
    thief.start()
    thief.join(20)
    assert len(refusals) == 1
    assert "revoked (stolen)" in refusals[0]


def test_a_stolen_admins_token_does_what_its_role_may_and_nothing_once_it_is_revoked(running: RunningServer) -> None:
    token = running.client.post("/v1/admins", {"name": "vera", "role": "viewer", "populations": [POPULATION]})["token"]
    assert ask(running, "GET", "/v1/devices", token).status_code == 200
    beyond = [
        ("POST", "/v1/commands"),
        ("POST", "/v1/runs"),
        ("POST", "/v1/admins"),
        ("POST", "/v1/invitations"),
        ("POST", f"/v1/devices/{POPULATION}/phone/revoke"),
    ]
    for method, path in beyond:
        answer = ask(running, method, path, token, content=b"{}")
        assert (answer.status_code, "vera is viewer" in answer.json()["error"]) == (403, True)
    assert ask(running, "POST", "/v1/admins/vera/revoke", token).status_code == 403
    running.client.post("/v1/admins/vera/revoke")
    for method, path in (("GET", "/v1/devices"), *beyond):
        answer = ask(running, method, path, token, content=b"{}")
        assert (answer.status_code, "revoked" in answer.json()["error"]) == (401, True)
    refused = audit(running, "command.send")
    assert {one["who"] for one in refused} == {"vera", "unknown"}
    unknown = next(one for one in refused if one["who"] == "unknown")
    assert unknown["detail"]["token"] == token.split("_", 2)[1]
    assert unknown["detail"]["address"] == "127.0.0.1"
    assert token.split("_", 2)[2] not in str(running.client.get("/v1/audit", limit=500))


@pytest.mark.parametrize(
    "altered",
    [lambda t: t[:-1], lambda t: t + "A", lambda t: t[:-1] + "é", lambda t: t.upper(), lambda t: t.split("_", 2)[2]],
)
def test_a_token_that_is_nearly_right_is_wrong(running: RunningServer, altered: Any) -> None:
    token = running.client.post("/v1/admins", {"name": "olga", "role": "owner"})["token"]
    wrong = altered(token).encode("utf-8")
    headers = {b"authorization": b"Bearer " + wrong}
    answer = httpx.get(running.state.server_url + "/v1/devices", headers=headers, trust_env=False)
    assert (answer.status_code, bool(answer.json()["error"])) == (401, True)


def test_a_stolen_enrolment_token_lets_nobody_in_after_its_device(running: RunningServer) -> None:
    (invited,) = running.client.post("/v1/invitations", {"population": POPULATION, "kind": "phone"})
    secret = invited["token"].split(".")[0]

    def enrol(device: str, population: str = "") -> httpx.Response:
        key = signing.generate_key()
        body = sign_request(EnrolmentRequest(device, "phone", signing.public_key(key), secret, population), key)
        return ask(running, "POST", ENROL_PATH, "none", content=body)

    assert enrol("phone", "another").status_code == 403  # not even into another population
    assert enrol("phone").status_code == 200
    for device in ("phone", "thief"):
        answer = enrol(device)
        assert (answer.status_code, "used by another device" in answer.json()["error"]) == (403, True)
    assert [device["id"] for device in running.client.get("/v1/devices")] == ["phone"]
    entries = audit(running, "device.enrol")
    assert sum(one["outcome"] == "done" for one in entries) == 1
    assert secret not in str(running.client.get("/v1/audit", limit=500))


def test_keys_lie_where_only_their_owner_reads(running: RunningServer, tmp_path: Path) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    agent = AgentState(tmp_path / "agent")
    agent.pin(running.state.trust)
    assert agent.key.is_private  # made when it is first needed
    agent.close()
    assert mode(tmp_path / "agent") == mode(running.state.folder) == 0o700
    for name in ("key.pem", "trust.json"):
        assert mode(tmp_path / "agent" / name) == 0o600
    for name in ("signing-key.pem", "admin-token", "enrolment-secret", "umbel.toml"):
        assert mode(running.state.folder / name) == 0o600


def test_the_token_in_the_state_folder_opens_no_other_server(running: RunningServer, tmp_path: Path) -> None:
    broker = EmbeddedProcess()
    broker.start()
    other = RunningServer(tmp_path / "other", broker.port)
    thief = Client(other.state.server_url, running.state.admin_token)
    with pytest.raises(Exception, match="expected an admin's token"):
        thief.get("/v1/devices")
    device = Enrolled(running.state, "phone")
    answer = ask(other, "GET", CONNECTION_PATH, device.authorization("GET", CONNECTION_PATH))
    assert (answer.status_code, answer.json()["code"]) == (401, "unknown")
    other.stop()
    broker.stop()
