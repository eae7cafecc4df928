"""A fleet's life over HTTP, and every answer that it gets: who asked what, the status, and the JSON without what changes.

`python -m tests.contract.server.api.every_answer PLAN FILE` writes the answers, made with a compiled plan, into a file.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.server_harness import POPULATION, RunningServer, ScriptedDevice, X, reports, serving
from tests.signed_requests import signed
from tests.waiting import eventually
from umbel import signing, tensors
from umbel.enrolment import CONNECTION_PATH, ENROL_PATH, EnrolmentRequest, sign_request, split_token
from umbel.messages import Ack, Blob, Command, Outcome, Train, Trained
from umbel.plan import Plan

CHANGING = frozenset(
    """at bytes_down bytes_down_today bytes_up bytes_up_today difference enrolled expires hash issued last_seen
    latency_ms machine manifest now opened sequence size skew storage updated worst broker_port port agent runtime""".split()
)
"""Keys whose values differ from one time to the next."""
TIMES = 1e9
"""A number from here on is a moment in Unix seconds."""
PATTERNS = (
    (re.compile(r"[\w-]{20,}\.[\w-]{20,}\.[\w-]{20,}"), "<JWS>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<SHA-256>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<id>"),
    (re.compile(r"line-[0-9a-f]{6}-r(\d)-[0-9a-f]{4}"), r"line-<run>-r\1-<id>"),
    (re.compile(r"umbel_[0-9a-f]{16}_[\w-]{43}"), "<token>"),
    (re.compile(r"[\w-]{20,}\.[\w-]{43}"), "<token>"),
    (re.compile(r"(?<![\w-])[\w-]{43}(?![\w-])"), "<key>"),
    (re.compile(r"\b[0-9a-f]{16}\b"), "<id>"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\d{9,} s"), "<seconds> s"),
    (re.compile(r"127\.0\.0\.1:\d+"), "<server>"),
)


def steady(value: Any, key: str = "") -> Any:
    """`value` without what differs from one time to the next: of that, its type."""
    match value:
        case dict():
            return {steady(name): steady(item, name) for name, item in value.items()}
        case list():
            return [steady(item, key) for item in value]
        case bool() | None:
            return value
        case int() | float() if key in CHANGING or value >= TIMES or (isinstance(value, float) and value % 0.0625):
            return f"<{type(value).__name__}>"
        case str() if key in CHANGING:
            return "<str>"
        case str():
            for pattern, placeholder in PATTERNS:
                value = pattern.sub(placeholder, value)
            return value
    return value


class Asker:
    """Somebody who asks, and the answers so far, in order."""

    def __init__(self, running: RunningServer) -> None:
        self.running, self.answers = running, dict[str, Any]()
        self._admin = {"Authorization": f"Bearer {running.state.admin_token}"}

    def __call__(self, what: str, method: str, path: str, sort: str = "", **options: Any) -> Any:
        """The JSON of an answer, remembered as `what`; of a list in no certain order, `sort` is the key to sort by."""
        headers = options.pop("headers", self._admin)
        answer = httpx.request(
            method, self.running.state.server_url + path, headers=headers, trust_env=False, timeout=120, **options
        )
        known = answer.json() if answer.headers.get("content-type") == "application/json" else None
        if sort:
            known.sort(key=lambda row: row[sort])
        assert what not in self.answers
        kind = answer.headers.get("content-type", "")
        self.answers[what] = {"status": answer.status_code, "type": kind, "body": steady(known)}
        return known


def worker(plan: Plan) -> Callable[[Command], Outcome | Ack | None]:
    """A device that trains at once."""

    def work(command: Command) -> Outcome | None:
        if not isinstance(command.body, Train):
            return reports(command)
        update = {spec.name: np.full(spec.shape, 0.125, np.float32) for spec in plan.manifest.weights}
        return Trained(command.body.assignment, Blob.of(tensors.dump(update)), 5, {"loss": 0.5}, 0.25)

    return work


def every_answer(folder: Path, plan: Plan) -> dict[str, Any]:
    """The answers to what administrators and a device ask, by what was asked."""
    with serving(folder / "server") as running:
        ask = Asker(running)
        _server_and_people(ask)
        _enrolment(ask)
        _devices(ask)
        devices = [ScriptedDevice(running, f"phone-{i}", worker(plan)) for i in range(2)]
        silent = ScriptedDevice(running, "silent", lambda _: None)
        running.wait_online(3)
        _runs(ask, plan, folder, silent)
        _commands(ask)
        _refusals(ask, devices[0])
        ask("audit list", "GET", "/v1/audit?limit=3")
        ask("audit verify", "GET", "/v1/audit/verify")
        for device in devices:
            device.stop()
        return ask.answers


def _server_and_people(ask: Asker) -> None:
    ask("health", "GET", "/v1/health", headers={})
    ask("trust", "GET", "/v1/trust", headers={})
    ask("admin add", "POST", "/v1/admins", json={"name": "olga", "role": "operator", "populations": [POPULATION]})
    ask("admin add for ever", "POST", "/v1/admins", json={"name": "vera", "role": "viewer"})
    ask("admin list", "GET", "/v1/admins")
    ask("admin revoke", "POST", "/v1/admins/vera/revoke")
    ask("keys list", "GET", "/v1/keys")
    ask("quota list of nobody", "GET", "/v1/quotas")
    ask("quota set", "POST", f"/v1/quotas/{POPULATION}", json={"devices": 100, "storage": None})
    ask("quota show", "GET", f"/v1/quotas/{POPULATION}")


def _enrolment(ask: Asker) -> None:
    wanted = {"population": POPULATION, "count": 2, "labels": {"site": "berlin"}, "kind": "vehicle"}
    made = ask("invitation add", "POST", "/v1/invitations", json=wanted)
    ask("invitation revoke", "POST", f"/v1/invitations/{made[1]['id']}/revoke")
    key = signing.generate_key()
    secret, _ = split_token(made[0]["token"])
    request = EnrolmentRequest("car", "vehicle", signing.public_key(key), secret, POPULATION)
    ask("enrol", "POST", ENROL_PATH, headers={}, content=sign_request(request, key))
    ask("invitation list", "GET", "/v1/invitations", sort="state")
    headers = signed(key, POPULATION, "car", "GET", CONNECTION_PATH)
    ask("connection", "GET", CONNECTION_PATH, headers=headers)


def _devices(ask: Asker) -> None:
    car = f"/v1/devices/{POPULATION}/car"
    ask("device list", "GET", "/v1/devices")
    ask("device list of a population", "GET", "/v1/devices?population=none")
    ask("device rename", "POST", f"{car}/rename", json={"name": "the blue one"})
    ask("device label", "POST", f"{car}/label", json={"labels": {"colour": "blue"}})
    ask("device suspend", "POST", f"{car}/suspend", json={"reason": "it is sold"})
    ask("device resume", "POST", f"{car}/resume")
    ask("device readmit", "POST", f"{car}/readmit")
    ask("device revoke", "POST", f"{car}/revoke")
    ask("device show", "GET", car)
    ask("device delete", "POST", f"{car}/delete")


def _runs(ask: Asker, plan: Plan, folder: Path, silent: ScriptedDevice) -> None:
    np.savez(folder / "held-out.npz", allow_pickle=False, x=X, y=2 * X - 1)
    data = (folder / "held-out.npz").read_bytes()
    held_out = ask("blob put", "PUT", f"/v1/blobs/{tensors.digest(data)}?population={POPULATION}", content=data)
    added = ask("plan add", "POST", f"/v1/plans?population={POPULATION}", content=plan.path.read_bytes())
    policy = {"quorum": 2, "target": 3, "deadline": 60.0, "over_selection": 1.0, "evaluate": 0}
    settings = {"rounds": 1, "held_out": held_out["sha256"], "policy": policy, "budget_hours": 1.0}
    wanted = {"population": POPULATION, "plan": added["plan"], "settings": settings}
    run = ask("run start", "POST", "/v1/runs", json=wanted)["id"]

    def states() -> Any:
        return ask.running.client.get(f"/v1/runs/{run}/live")["states"]["round"]

    eventually(lambda: states() == {"uploaded": 2, "offered": 1})
    ask("run live, a round open", "GET", f"/v1/runs/{run}/live")
    ask("run pause", "POST", f"/v1/runs/{run}/pause")
    ask("run live, paused", "GET", f"/v1/runs/{run}/live?after=0")
    ask("run show, paused", "GET", f"/v1/runs/{run}")
    ask("run stop", "POST", f"/v1/runs/{run}/stop")
    silent.say(silent.status(False), "status", retain=True)
    silent.stop()
    ask.running.wait_online(2)
    changes = {"policy": {"target": 2}, "rounds": 2}
    second = ask("run clone", "POST", f"/v1/runs/{run}/clone", json={"settings": changes})["id"]
    eventually(lambda: ask.running.server.runs.get(second).state == "finished")
    ask("run show, finished", "GET", f"/v1/runs/{second}?round=2")
    ask("run live, finished", "GET", f"/v1/runs/{second}/live")
    ask("run list", "GET", "/v1/runs")
    made = ask("release export", "POST", f"/v1/runs/{second}/releases", json={"variants": ["float32", "int8"]})
    ask("release list", "GET", "/v1/releases")
    ask("release show", "GET", f"/v1/releases/{made['id']}")
    ask("quota list", "GET", "/v1/quotas")


def _commands(ask: Asker) -> None:
    wanted = {"population": POPULATION, "kind": "report"}
    ask("command send", "POST", "/v1/commands", json={**wanted, "devices": ["silent"]})  # which is gone
    sent = ask.running.client.post("/v1/commands", {**wanted, "devices": ["phone-0"]})
    eventually(lambda: ask.running.client.get(f"/v1/commands/{sent[0]['id']}")["state"] == "done")
    ask("command show", "GET", f"/v1/commands/{sent[0]['id']}")
    ask("keys rotate", "POST", "/v1/keys/rotate", json={"overlap": 3600.0})


def _refusals(ask: Asker, device: ScriptedDevice) -> None:
    ask("refused: no token", "GET", "/v1/devices", headers={})
    ask("refused: unknown", "GET", "/v1/runs/nothing")
    ask("refused: no route", "GET", "/v1/nothing")
    ask("refused: method", "DELETE", "/v1/devices")
    ask("refused: parameter", "GET", "/v1/runs/x?round=y")
    ask("refused: body", "POST", "/v1/runs", content=b"nothing")
    ask("refused: state", "POST", "/v1/runs/latest/resume")
    ask("refused: digest", "PUT", f"/v1/blobs/{'0' * 64}", content=b"x")
    partial = f"/v1/uploads/{tensors.digest(b'xy')}"
    ask("refused: offset", "PATCH", partial, headers=_uploads(ask), content=b"y")
    path = f"/v1/blobs/{'1' * 64}"
    headers = signed(device.key, POPULATION, device.name, "GET", path, at=1.0)
    ask("refused: clock", "GET", path, headers=headers)


def _uploads(ask: Asker) -> dict[str, str]:
    return {"Authorization": f"Bearer {ask.running.state.admin_token}", "Upload-Offset": "1"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        found = every_answer(Path(name), Plan.open(Path(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
