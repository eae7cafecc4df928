"""Somebody who can write where plans, releases, blobs and rows lie: what was changed is found, named, and not used."""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.server_harness import POPULATION, RunningServer, ScriptedDevice, config_of, reports
from tests.settled_commands import settled
from tests.waiting import eventually
from umbel import signing, tensors
from umbel.errors import UmbelError
from umbel.messages import Blob, Command, Outcome, Report, Train, Trained
from umbel.plan import Plan
from umbel_edge.agent import Agent
from umbel_server.client import Client
from umbel_server.runs.settings import RunSettings

PlanOf = Callable[[str], Plan]


@pytest.fixture
def agent(running: RunningServer, tmp_path: Path) -> Iterator[Path]:
    """A real agent's state folder while it runs."""
    config = config_of(running, tmp_path / "phone")
    made = Agent(config)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    running.wait_online(1)
    yield config.state
    made.stop()
    thread.join(15)


def started(running: RunningServer, plan: Plan, **wanted: Any) -> str:
    policy = {"deadline": 20.0, "attempts": 1, "backoff": 0.1, **wanted.pop("policy", {})}
    settings = msgspec.convert({"rounds": 1, "policy": policy, **wanted}, RunSettings)
    return running.server.runs.start(POPULATION, plan.sha256, settings).id


def ended(running: RunningServer, id: str) -> dict[str, Any]:
    eventually(lambda: running.server.runs.get(id).state not in ("running",), 40)
    return running.client.get(f"/v1/runs/{id}")


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def blob_file(running: RunningServer, sha256: str) -> Path:
    return running.state.folder / "blobs" / sha256[:2] / sha256


def write(running: RunningServer, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(running.state.folder / "umbel.sqlite", timeout=30)) as connection:
        assert connection.execute(statement, values).rowcount
        connection.commit()


def report(running: RunningServer, device: str = "phone") -> dict[str, Any]:
    sent = running.client.post("/v1/commands", {"population": POPULATION, "kind": "report", "devices": [device]})
    return dict(settled(running.client, sent, 20)[0])


# --- blobs -------------------------------------------------------------------------------------------------------------


def test_a_changed_plan_starts_no_run(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    flip(running.state.folder / "plans" / f"{plan.sha256}.plan")  # the copy to work from is made again
    assert running.server.plans.get(plan.sha256).sha256 == plan.sha256
    flip(blob_file(running, plan.sha256))
    (running.state.folder / "plans" / f"{plan.sha256}.plan").unlink()
    with pytest.raises(UmbelError, match="was changed on the server's disk"):
        running.client.post("/v1/runs", {"population": POPULATION, "plan": plan.sha256})
    assert running.client.get("/v1/runs") == []


def test_a_plan_of_another_key_is_not_taken(running: RunningServer, plan_of: PlanOf, tmp_path: Path) -> None:
    signed = plan_of("line").sign(tmp_path / "signed.plan", signing.generate_key())
    with pytest.raises(UmbelError, match="signature does not verify"):
        running.client.add_plan(signed.path)


def test_a_device_trains_from_no_changed_plan_or_weights(running: RunningServer, plan_of: PlanOf, agent: Path) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    flip(blob_file(running, plan.sha256))  # the server has its copy; the device fetches the blob
    run = ended(running, started(running, plan))
    (work,) = run["assignments"]
    assert work["state"] == "failed"
    assert "arrived with digest" in work["reason"]
    flip(blob_file(running, plan.sha256))
    assert ended(running, started(running, plan))["state"] == "finished"  # and it goes on with what is right
    (fetched,) = (agent / "plans").glob("*.plan")
    flip(fetched)
    assert ended(running, started(running, plan))["state"] == "finished"  # it was fetched again, or is in memory


def test_a_changed_checkpoint_is_not_trained_from_nor_released(
    running: RunningServer, plan_of: PlanOf, agent: Path
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    id = started(running, plan)
    assert ended(running, id)["state"] == "finished"
    flip(blob_file(running, running.server.runs.checkpoint(id).weights))
    with pytest.raises(UmbelError, match="was changed on the server's disk"):
        running.client.post(f"/v1/runs/{id}/releases")
    with pytest.raises(UmbelError, match="was changed on the server's disk"):
        running.client.post("/v1/runs", {"population": POPULATION, "plan": plan.sha256, "from_run": id})
    assert running.client.get("/v1/releases") == []
    assert ended(running, started(running, plan))["state"] == "finished"


def test_an_update_that_was_changed_before_it_is_folded_is_rejected(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)

    def trained(command: Command) -> Outcome | None:
        if not isinstance(command.body, Train):
            return None
        update = {s.name: np.full(s.shape, 0.1, np.float32) for s in plan.manifest.weights}
        return Trained(command.body.assignment, Blob.of(tensors.dump(update)), 3, {"loss": 0.5})

    first = ScriptedDevice(running, "first", trained)
    silent = threading.Event()
    second = ScriptedDevice(running, "second", lambda c: trained(c) if silent.is_set() else None)
    running.wait_online(2)
    id = started(running, plan, policy={"target": 2, "quorum": 1, "deadline": 12.0, "attempts": 3})

    def states() -> dict[str, str]:
        return {one["device"]: one["state"] for one in running.client.get(f"/v1/runs/{id}")["assignments"]}

    eventually(lambda: states().get("first") == "uploaded")
    running.client.post(f"/v1/runs/{id}/pause")
    (stored,) = [path for path in (running.state.folder / "blobs" / "received").rglob("*") if path.is_file()]
    flip(stored)
    silent.set()
    running.client.post(f"/v1/runs/{id}/resume")
    run = ended(running, id)
    work = {one["device"]: (one["state"], one["reason"]) for one in run["assignments"]}
    rejected = [one for one in all_work(running, id) if one[0] == "first" and one[1] == "rejected"]
    assert rejected, (run["state"], work)
    assert "changed on the server's disk" in rejected[0][2]
    assert run["state"] == "finished"
    first.stop()
    second.stop()


def all_work(running: RunningServer, id: str) -> list[tuple[str, str, str]]:
    with closing(sqlite3.connect(running.state.folder / "umbel.sqlite", timeout=30)) as connection:
        return list(connection.execute("SELECT device, state, reason FROM assignments WHERE run = ?", (id,)))


# --- releases ----------------------------------------------------------------------------------------------------------


def test_a_changed_release_is_not_installed(running: RunningServer, plan_of: PlanOf, agent: Path) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    id = started(running, plan)
    ended(running, id)
    release = running.client.post(f"/v1/runs/{id}/releases")["id"]
    row = running.server.releases.get(release)
    other = running.client.put_blob(b"another model", POPULATION)
    model = str(row.files["float32"]["sha256"])
    elses = signing.sign(signing.payload_unverified(row.manifest), signing.generate_key())
    pointed = msgspec.json.encode({**row.files, "float32": {**row.files["float32"], "sha256": other, "size": 13}})

    def install() -> dict[str, Any]:
        wanted = {"population": POPULATION, "kind": "install", "devices": ["phone"], "release": release}
        return dict(settled(running.client, running.client.post("/v1/commands", wanted), 20)[0])

    write(running, "UPDATE releases SET files = ? WHERE id = ?", pointed.decode(), release)
    assert "not installed" in install()["reason"]
    write(running, "UPDATE releases SET files = ? WHERE id = ?", msgspec.json.encode(row.files).decode(), release)
    write(running, "UPDATE releases SET manifest = ? WHERE id = ?", elses, release)
    assert "does not verify" in install()["reason"]
    write(running, "UPDATE releases SET manifest = ? WHERE id = ?", row.manifest, release)
    flip(blob_file(running, model))
    assert "arrived with digest" in install()["reason"]
    assert report(running)["outcome"].get("installed", "") == ""
    flip(blob_file(running, model))
    assert install()["state"] == "done"
    (held,) = (agent / "models").glob("*.tflite")
    flip(held)
    assert report(running)["outcome"]["installed"] == release  # it goes on with what it has in memory


# --- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["garbage", "another's key", "another device's", "nothing"])
def test_a_changed_command_is_not_executed(
    running: RunningServer, agent: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"population": POPULATION, "kind": "report", "devices": ["phone"]}
    other = ScriptedDevice(running, "other", lambda command: None)
    running.wait_online(2)
    theirs = running.client.post("/v1/commands", {**asked, "devices": ["other"]})[0]["id"]
    tokens = {
        "garbage": b"garbage",
        "another's key": signing.sign(b"{}", signing.generate_key()),
        "another device's": running.server.outbox.get(theirs).token,
        "nothing": b"",
    }
    with running.server.database.transaction() as session:
        command = running.server.outbox.add(session, POPULATION, "phone", Report(), 60.0).id  # not sent yet
    write(running, "UPDATE commands SET token = ?, updated = 0 WHERE id = ?", tokens[how], command)
    expected = "refused a message" if how == "another device's" else "without a valid signature"
    eventually(lambda: expected in caplog.text)  # the outbox has sent it
    write(running, "UPDATE commands SET expires = 0 WHERE id = ?", command)
    eventually(lambda: running.client.get(f"/v1/commands/{command}")["state"] in ("expired", "rejected"))
    assert report(running)["state"] == "done"
    other.stop()


@pytest.mark.parametrize(
    "key", ['{"kty":"EC"}', "{}", "[]", '"x"', "null", '{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}']
)
def test_a_devices_key_that_is_none_is_said_and_others_go_on(
    running: RunningServer, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    phone, other = ScriptedDevice(running, "phone", reports), ScriptedDevice(running, "other", reports)
    running.wait_online(2)
    write(running, "UPDATE devices SET key = ? WHERE id = 'phone'", key)
    running.server.devices.forget(POPULATION, "phone")
    phone.say(phone.status(True), "status")
    eventually(lambda: "the register holds no key of device phone" in caplog.text)
    assert "Traceback" not in caplog.text
    assert report(running, "other")["state"] == "done"
    running.client.post(f"/v1/devices/{POPULATION}/phone/revoke", {"reason": "its key was changed"})
    running.client.post(f"/v1/devices/{POPULATION}/phone/delete")
    phone.stop()
    other.stop()


@pytest.mark.parametrize("role", ["root", "", "OWNER", "owner "])
def test_a_role_that_is_none_may_nothing(running: RunningServer, role: str) -> None:
    token = running.client.post("/v1/admins", {"name": "vera", "role": "viewer"})["token"]
    vera = Client(running.state.server_url, token)
    assert vera.get("/v1/devices") == []
    write(running, "UPDATE admins SET role = ? WHERE name = 'vera'", role)
    with pytest.raises(UmbelError, match="which is none"):
        vera.get("/v1/devices")
    running.client.post("/v1/admins/vera/revoke")


@pytest.mark.parametrize("weights", ["0" * 64, "../../umbel.toml", "", "x"])
def test_a_checkpoint_that_names_no_weights_stops_its_run_alone(
    running: RunningServer, plan_of: PlanOf, agent: Path, weights: str
) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    id = started(running, plan, rounds=2)
    ended(running, id)
    write(running, "UPDATE checkpoints SET weights = ? WHERE run = ?", weights, id)
    with pytest.raises(UmbelError, match=r"not on this server|64 lower-case hex digits"):
        running.client.post(f"/v1/runs/{id}/releases")
    assert running.client.get(f"/v1/runs/{id}")["state"] == "finished"
    assert ended(running, started(running, plan))["state"] == "finished"


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE audit SET outcome = 'done' WHERE outcome <> 'done'", "was changed"),
        ("UPDATE audit SET who = 'olga' WHERE sequence = 1", "was changed"),
        ("DELETE FROM audit WHERE sequence = 1", "missing"),
        ("DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)", "missing"),
    ],
)
def test_a_changed_audit_log_is_found(running: RunningServer, statement: str, sentence: str) -> None:
    with pytest.raises(UmbelError):
        running.client.post("/v1/invitations", {"population": "../x"})
    for name in ("olga", "vera"):
        running.client.post("/v1/admins", {"name": name, "role": "viewer"})
    assert running.client.get("/v1/audit/verify")["fault"] == ""
    with closing(sqlite3.connect(running.state.folder / "umbel.sqlite", timeout=30)) as connection:
        with pytest.raises(sqlite3.DatabaseError):
            connection.execute(statement)  # the database itself refuses
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        assert connection.execute(statement).rowcount
        connection.commit()
    assert sentence in running.client.get("/v1/audit/verify")["fault"]


def test_what_was_changed_while_the_server_was_away_is_found_at_its_start(
    running: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    from umbel_server.server import Server

    running.client.post("/v1/admins", {"name": "olga", "role": "viewer"})
    head = running.state.folder / "audit-head"
    eventually(lambda: running.server.audit.verify()[0].count and os.path.exists(head))
    running.server.audit.seal()
    with closing(sqlite3.connect(running.state.folder / "umbel.sqlite", timeout=30)) as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute("DELETE FROM audit")
        connection.commit()
    again = Server(running.state)
    assert "the audit log was tampered with" in caplog.text
    again.database.close()
