"""Who may do what, over a real socket: roles, populations, tokens that end, and what the audit log says of it all."""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Response
from fastapi.routing import iter_route_contexts

from tests.server_harness import RunningServer, serving
from tests.signed_requests import signed
from tests.waiting import eventually
from umbel import signing
from umbel.enrolment import EnrolmentRequest, sign_request
from umbel.errors import UmbelError
from umbel.plan import Plan
from umbel.tensors import digest
from umbel_server.api import make_app
from umbel_server.api.access import Guard, operator
from umbel_server.api.guarded import GuardedRoute, by, guarded
from umbel_server.client import Client
from umbel_server.limits.bucket import RateLimit
from umbel_server.security.admins import ALL_FAILURES, FAILURES, Admins, Identity, TooManyFailures, WrongToken
from umbel_server.security.audit.log import REFUSAL_SECONDS, REFUSALS
from umbel_server.storage.database import Admin, Database

LOCAL = Identity("local", "owner")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("admins") / "server") as server:
        for population, device in (("home", "phone"), ("home", "car"), ("office", "phone")):
            enrol(server, population, device)
        yield server


@pytest.fixture(autouse=True)
def few_refusals_yet(running: RunningServer) -> None:
    running.server.audit.refusals = RateLimit(REFUSALS, REFUSAL_SECONDS, time.time)


@pytest.fixture(scope="module")
def plan(running: RunningServer, plan_of: Callable[[str], Plan]) -> str:
    return running.client.add_plan(plan_of("line").path).plan


def enrol(running: RunningServer, population: str, device: str, secret: str = "") -> httpx.Response:
    key = signing.generate_key()
    asked = EnrolmentRequest(
        device, "phone", signing.public_key(key), secret or running.state.enrolment_secret, population
    )
    return ask(running, "", "POST", "/v1/enrol", content=sign_request(asked, key))


def ask(running: RunningServer, token: str, method: str, path: str, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.request(method, running.state.server_url + path, headers=headers, trust_env=False, **options)


def add(running: RunningServer, name: str, role: str, *populations: str, expires_in: float = 0.0) -> str:
    body = {"name": name, "role": role, "populations": populations, "expires_in": expires_in}
    return str(running.client.post("/v1/admins", body)["token"])


def newest(running: RunningServer, count: int = 1) -> list[dict[str, Any]]:
    return list(running.client.get("/v1/audit", limit=count))


def test_every_route_says_who_may_use_it_and_what_changes_something_is_recorded(running: RunningServer) -> None:
    open_to_all = {"/v1/enrol", "/v1/health", "/v1/trust"}
    documentation = {"/docs", "/docs/oauth2-redirect", "/openapi.json"}
    routes = [context for context in iter_route_contexts(make_app(running.server).routes)]
    assert len(routes) > 25
    for context in routes:
        route = context.original_route
        if context.path in documentation:
            assert context.methods == {"GET", "HEAD"}
            continue
        assert isinstance(route, GuardedRoute), context.path
        assert (route.guard.role is None) == (context.path in open_to_all), context.path
        if not context.methods <= {"GET", "HEAD"}:
            assert route.guard.action, context.path
        assert any(one.call is route.guard for one in route.dependant.dependencies), context.path


def test_a_route_without_a_guard_or_without_a_name_for_what_it_changes_cannot_be_made() -> None:
    router = guarded("test")
    with pytest.raises(TypeError, match="expected one guard"):
        router.get("/v1/open")(lambda: {})
    with pytest.raises(TypeError, match="expected one guard"):
        router.get("/v1/open", dependencies=[*by(Guard("viewer")), *by(operator("a.b"))])(lambda: {})
    with pytest.raises(TypeError, match="expected an action"):
        router.post("/v1/quiet", dependencies=by(Guard("owner")))(lambda: {})


def test_a_route_whose_answer_has_no_type_cannot_be_made() -> None:
    def untyped() -> dict[str, Any]:
        return {}

    for endpoint in (untyped, lambda: {}):
        with pytest.raises(TypeError, match="expected a route that returns a struct"):
            guarded("test").get("/v1/open", dependencies=by(Guard("viewer")))(endpoint)


BLOB = f"/v1/blobs/{digest(b'of an admin')}"
NEEDS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("viewer", "GET", "/v1/devices", {}),
    ("viewer", "GET", "/v1/devices/home/phone", {}),
    ("viewer", "GET", "/v1/runs", {}),
    ("viewer", "GET", "/v1/releases", {}),
    ("viewer", "GET", "/v1/audit", {}),
    ("viewer", "GET", "/v1/audit/verify", {}),
    ("viewer", "GET", "/v1/keys", {}),
    ("operator", "POST", "/v1/commands", {"json": {"population": "home", "kind": "report"}}),
    ("operator", "POST", "/v1/devices/home/phone/readmit", {}),
    ("operator", "POST", "/v1/plans", {"content": b"no plan"}),
    ("operator", "POST", "/v1/runs", {"json": {"population": "home", "plan": "0" * 64}}),
    ("operator", "POST", "/v1/runs/nothing/stop", {}),
    ("operator", "POST", "/v1/runs/nothing/pause", {}),
    ("operator", "POST", "/v1/runs/nothing/resume", {}),
    ("operator", "POST", "/v1/runs/nothing/clone", {}),
    ("operator", "POST", "/v1/runs/nothing/releases", {}),
    ("operator", "PUT", BLOB, {"content": b"of an admin"}),
    ("owner", "POST", "/v1/keys/rotate", {"json": {"overlap": 1.0}}),
    ("owner", "GET", "/v1/admins", {}),
    ("owner", "POST", "/v1/admins", {"json": {"name": "x y", "role": "viewer"}}),
    ("owner", "POST", "/v1/admins/nobody/revoke", {}),
]


@pytest.mark.parametrize("role", ["viewer", "operator", "owner"])
def test_each_role_may_do_its_own_and_what_lower_ones_may(running: RunningServer, role: str) -> None:
    token = add(running, f"a-{role}", role)
    ranks = ["viewer", "operator", "owner"]
    for needed, method, path, options in NEEDS:
        answer = ask(running, token, method, path, **options)
        if ranks.index(role) >= ranks.index(needed):
            assert answer.status_code not in (401, 403), (path, answer.text)
        else:
            assert answer.status_code == 403, (path, answer.text)
            assert f"needs the role {needed}" in answer.json()["error"]
            assert f"a-{role} is {role}" in answer.json()["error"]
        assert ask(running, "", method, path, **options).status_code == 401


def test_what_changes_something_is_recorded_with_who_and_what(running: RunningServer, plan: str) -> None:
    token = add(running, "olga", "operator")
    (added,) = newest(running)
    assert (added["who"], added["action"], added["subject"]) == ("local", "admin.add", "olga")
    client = Client(running.state.server_url, token)
    before = newest(running)[0]["sequence"]
    client.get("/v1/runs")
    client.get("/v1/devices/home/phone")
    assert newest(running)[0]["sequence"] == before
    client.put_blob(b"inputs")
    client.post("/v1/commands", {"population": "home", "kind": "report"})
    client.post("/v1/devices/home/car/readmit")
    run = client.post("/v1/runs", {"population": "home", "plan": plan})
    client.post("/v1/runs/latest/stop")
    with pytest.raises(UmbelError):
        client.post("/v1/runs/latest/pause")
    entries = list(reversed(newest(running, 6)))
    assert {entry["who"] for entry in entries} == {"olga"}
    shown = [(entry["action"], entry["subject"], entry["population"], entry["outcome"]) for entry in entries]
    assert shown[:5] == [
        ("blob.put", digest(b"inputs"), "", "done"),
        ("command.send", "report", "home", "done"),
        ("device.readmit", "car", "home", "done"),
        ("run.start", run["id"], "home", "done"),
        ("run.stop", run["id"], "home", "done"),
    ]
    assert shown[5][:2] == ("run.pause", run["id"])
    assert "has ended" in shown[5][3]
    assert (entries[1]["detail"]["devices"], entries[1]["detail"]["count"]) == ("all", 2)
    assert client.get("/v1/audit/verify")["fault"] == ""


def test_an_enrolment_is_recorded_and_so_is_a_refused_one(running: RunningServer) -> None:
    assert enrol(running, "home", "watch").status_code == 200
    (entry,) = newest(running)
    assert (entry["who"], entry["action"], entry["outcome"]) == ("home/watch", "device.enrol", "done")
    assert enrol(running, "home", "thief", "a-wrong-secret-of-a-thief").status_code == 403
    (entry,) = newest(running)
    assert (entry["who"], entry["subject"]) == ("unknown", "home/thief")
    assert "enrolment token is not this server's" in entry["outcome"]
    assert "a-wrong-secret" not in str(entry)


def test_refusals_are_recorded(running: RunningServer) -> None:
    token = add(running, "vera", "viewer")
    ask(running, token, "POST", "/v1/runs/latest/stop")
    (entry,) = newest(running)
    assert (entry["who"], entry["action"]) == ("vera", "run.stop")
    assert "needs the role operator" in entry["outcome"]
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    assert ask(running, wrong, "POST", "/v1/runs/latest/stop").status_code == 401
    (entry,) = newest(running)
    assert (entry["who"], entry["detail"]["token"]) == ("unknown", token.split("_")[1])
    before = entry["sequence"]
    for _ in range(3 * REFUSALS):
        assert ask(running, "nonsense", "POST", "/v1/runs/latest/stop").status_code == 401
    assert newest(running)[0]["sequence"] - before <= REFUSALS + 1


def test_a_device_is_no_admin_and_its_work_is_not_in_the_audit_log(running: RunningServer) -> None:
    key = signing.generate_key()
    asked = EnrolmentRequest("worker", "phone", signing.public_key(key), running.state.enrolment_secret, "home")
    assert ask(running, "", "POST", "/v1/enrol", content=sign_request(asked, key)).status_code == 200
    running.client.put_blob(b"of an admin", "home")
    before = newest(running)[0]["sequence"]
    for method, path, status in (("PUT", BLOB, 403), ("GET", BLOB, 200), ("GET", "/v1/devices", 401)):
        token = signed(key, "home", "worker", method, path, "0123")["Authorization"].removeprefix("Bearer ")
        assert ask(running, token, method, path, content=b"of an admin").status_code == status, path
        assert ask(running, token[:-2], method, path, content=b"of an admin").status_code == 401
    assert newest(running)[0]["sequence"] == before


def test_an_admin_for_a_population_sees_and_acts_on_nothing_else(running: RunningServer, plan: str) -> None:
    token = add(running, "hanna", "operator", "home")
    hanna, local = Client(running.state.server_url, token), running.client
    ours = local.post("/v1/runs", {"population": "home", "plan": plan})["id"]
    theirs = local.post("/v1/runs", {"population": "office", "plan": plan})["id"]
    eventually(lambda: local.get(f"/v1/runs/{theirs}")["checkpoints"])
    release = local.post(f"/v1/runs/{theirs}/releases", {"variants": ["float32"]})["id"]
    (command,) = local.post("/v1/commands", {"population": "office", "kind": "report"})
    assert {row["population"] for row in hanna.get("/v1/devices")} == {"home"}
    assert hanna.get("/v1/devices", population="office") == []
    assert {row["population"] for row in hanna.get("/v1/runs")} == {"home"}
    assert hanna.get("/v1/releases") == []
    assert [row["id"] for row in local.get("/v1/releases")] == [release]
    assert {row["population"] for row in hanna.get("/v1/audit")} == {"home"}
    assert hanna.get("/v1/runs/latest")["id"] == ours
    unseen: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/v1/devices/office/phone", {}),
        ("POST", "/v1/devices/office/phone/readmit", {}),
        ("GET", f"/v1/runs/{theirs}", {}),
        ("GET", f"/v1/runs/{theirs}/live", {}),
        ("POST", f"/v1/runs/{theirs}/stop", {}),
        ("POST", f"/v1/runs/{theirs}/pause", {}),
        ("POST", f"/v1/runs/{theirs}/resume", {}),
        ("POST", f"/v1/runs/{theirs}/clone", {}),
        ("POST", f"/v1/runs/{theirs}/releases", {}),
        ("GET", f"/v1/commands/{command['id']}", {}),
        ("GET", f"/v1/releases/{release}", {}),
        ("POST", "/v1/commands", {"json": {"population": "office", "kind": "report"}}),
        ("POST", "/v1/commands", {"json": {"population": "home", "kind": "install", "release": release}}),
        ("POST", "/v1/runs", {"json": {"population": "office", "plan": plan}}),
        ("POST", "/v1/runs", {"json": {"population": "home", "plan": plan, "from_run": theirs}}),
        ("POST", f"/v1/runs/{ours}/clone", {"json": {"from_run": theirs}}),
    ]
    for method, path, options in unseen:
        answer = ask(running, token, method, path, **options)
        assert answer.status_code == 404, (path, answer.text)
        there_is_none = ask(running, token, method, path.replace(theirs, "ffffffffffff"), **options)
        assert there_is_none.json()["error"].replace("ffffffffffff", theirs) == answer.json()["error"]
    hanna.post("/v1/commands", {"population": "home", "kind": "report", "devices": ["car"]})
    for run in (ours, theirs):
        local.post(f"/v1/runs/{run}/stop")


def test_an_owner_for_a_population_makes_no_admin_for_others(running: RunningServer) -> None:
    owner = Client(running.state.server_url, add(running, "otto", "owner", "home"))
    for populations in ([], ["office"], ["home", "office"]):
        with pytest.raises(UmbelError, match="an owner for home makes admins for some of these only"):
            owner.post("/v1/admins", {"name": "friend", "role": "owner", "populations": populations})
    owner.post("/v1/admins", {"name": "friend", "role": "viewer", "populations": ["home"]})
    add(running, "far", "viewer", "office")
    assert {"otto", "friend"} <= {row["name"] for row in owner.get("/v1/admins")}
    assert "far" not in {row["name"] for row in owner.get("/v1/admins")}
    with pytest.raises(UmbelError, match="no admin 'far' is known here"):
        owner.post("/v1/admins/far/revoke")
    owner.post("/v1/admins/friend/revoke")


def test_a_revoked_token_is_refused_at_once(running: RunningServer) -> None:
    token = add(running, "rita", "viewer")
    client = Client(running.state.server_url, token)
    client.get("/v1/runs")
    client.get("/v1/runs")  # now it is remembered
    running.client.post("/v1/admins/rita/revoke")
    with pytest.raises(UmbelError, match="this token was revoked"):
        client.get("/v1/runs")
    with pytest.raises(UmbelError, match="no admin 'rita'"):
        running.client.post("/v1/admins/rita/revoke")
    again = add(running, "rita", "viewer")
    Client(running.state.server_url, again).get("/v1/runs")
    with pytest.raises(UmbelError, match="this token was revoked"):
        client.get("/v1/runs")
    assert [row["revoked"] > 0 for row in running.client.get("/v1/admins") if row["name"] == "rita"] == [True, False]


def test_a_token_expires(running: RunningServer) -> None:
    token = add(running, "elsa", "viewer", expires_in=3600.0)
    client = Client(running.state.server_url, token)
    client.get("/v1/runs")
    with running.server.database.transaction() as session:
        row = session.get_one(Admin, token.split("_")[1])
        assert abs(row.expires - row.created - 3600) < 1e-3
        row.expires = time.time()
    with pytest.raises(UmbelError, match="this token expired on 20"):
        client.get("/v1/runs")
    Client(running.state.server_url, add(running, "elsa", "viewer")).get("/v1/runs")
    with pytest.raises(UmbelError, match="revoked"):
        client.get("/v1/runs")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"name": "local", "role": "viewer"}, "somebody else"),
        ({"name": "server", "role": "viewer"}, "somebody else"),
        ({"name": "home/phone", "role": "viewer"}, "an admin's name should be"),
        ({"name": "", "role": "viewer"}, "an admin's name should be"),
        ({"name": "x\ny", "role": "viewer"}, "an admin's name should be"),
        ({"name": "good", "role": "king"}, "king"),
        ({"name": "good", "role": "viewer", "populations": ["a/b"]}, "a population should be"),
        ({"name": "good", "role": "viewer", "populations": ["p"] * 101}, "<= 100"),
        ({"name": "good", "role": "viewer", "expires_in": -1}, ">= 0"),
        ({"name": "good", "role": "viewer", "expires_in": 1e300}, "<= 3"),
        ({"name": "good", "role": "viewer", "colour": "red"}, "colour"),
    ],
)
def test_an_admin_that_makes_no_sense_is_refused(running: RunningServer, body: dict[str, Any], sentence: str) -> None:
    before = len(running.client.get("/v1/admins"))
    with pytest.raises(UmbelError, match=sentence):
        running.client.post("/v1/admins", body)
    assert len(running.client.get("/v1/admins")) == before


def test_a_name_is_taken_once(running: RunningServer) -> None:
    tokens: list[str] = []

    def one() -> None:
        answer = ask(running, running.state.admin_token, "POST", "/v1/admins", json={"name": "twin", "role": "viewer"})
        tokens.extend([answer.json()["token"]] if answer.status_code == 200 else [])

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 1
    with pytest.raises(UmbelError, match="the name twin is not free"):
        add(running, "twin", "viewer")


def test_no_secret_is_written_anywhere(running: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = add(running, "sara", "operator")
    secret = token.split("_", 2)[2]
    assert len(secret) == 43
    client = Client(running.state.server_url, token)
    client.get("/v1/runs")
    for path in (f"/v1/runs/{token}/stop", f"/v1/devices/{token}/{token}/readmit", f"/v1/admins/{token}/revoke"):
        ask(running, token, "POST", path)
        ask(running, running.state.admin_token, "POST", path.replace(token, running.state.admin_token))
    ask(running, token, "POST", "/v1/commands", json={"population": token, "kind": "report", "devices": [token]})
    shown = str(running.client.get("/v1/admins")) + str(newest(running, 1000))
    logged = "".join(record.getMessage() for record in caplog.records if record.name.startswith(("umbel", "uvicorn")))
    assert secret not in logged
    assert running.state.admin_token not in logged
    running.server.audit.seal()
    for path in (path for path in running.state.folder.iterdir() if path.is_file()):
        data = path.read_bytes()
        assert secret.encode() not in data, path
        assert path.name == "admin-token" or running.state.admin_token.encode() not in data, path
    assert secret not in shown
    assert running.state.admin_token not in str(newest(running, 1000))


def test_what_cannot_be_recorded_is_said_and_goes_on_afterwards(running: RunningServer) -> None:
    database = sqlite3.connect(running.state.folder / "umbel.sqlite")
    with closing(database):
        database.execute("CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
        answer = ask(running, running.state.admin_token, "POST", "/v1/devices/home/phone/readmit")
        database.execute("DROP TRIGGER full")
    assert answer.status_code == 503
    assert answer.json()["error"].startswith("device.readmit ended (done), and the audit log cannot be written")
    running.client.post("/v1/devices/home/phone/readmit")
    assert newest(running)[0]["action"] == "device.readmit"
    assert running.client.get("/v1/audit/verify")["fault"] == ""


def test_what_the_servers_end_cuts_short_is_recorded(running: RunningServer) -> None:
    async def slow() -> Response:
        await asyncio.sleep(60)
        return Response()

    async def cut_short() -> None:
        app = make_app(running.server)
        router = guarded("test")
        router.post("/v1/slow", dependencies=by(Guard(None, "slow.thing")))(slow)
        app.include_router(router)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            asked = asyncio.create_task(client.post("/v1/slow"))
            await asyncio.sleep(0.3)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked

    asyncio.run(cut_short())
    (entry,) = newest(running)
    assert (entry["action"], entry["outcome"]) == ("slow.thing", "the server ended before it had an answer")


def test_the_documentation_of_the_api_is_still_made(running: RunningServer) -> None:
    assert "/v1/admins/{name}/revoke" in ask(running, "", "GET", "/openapi.json").json()["paths"]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_guesses_are_limited_and_a_token_that_was_verified_goes_on(tmp_path: Path) -> None:
    clock = Clock()
    database = Database(f"sqlite:///{tmp_path / 'admins.sqlite'}")
    admins = Admins(database, clock, lambda count: bytes(range(count)))
    row, token = admins.add(LOCAL, "alice", "operator", ["home", "home", "a"], 0.0)
    assert (token, row.populations) == (
        "umbel_0001020304050607_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        ["a", "home"],
    )
    assert row.secret.startswith("$argon2id$")
    wrong = token[:-1] + "9"
    assert admins.identify(token, "here") == Identity("alice", "operator", ("a", "home"))
    for _ in range(FAILURES):
        with pytest.raises(WrongToken):
            admins.identify(wrong, "there")
    with pytest.raises(TooManyFailures, match="try again in 10 s"):
        admins.identify(wrong, "there")
    admins.identify(token, "there")
    clock.now += 61
    for _ in range(FAILURES):
        with pytest.raises(WrongToken):
            admins.identify(wrong, "there")
    with pytest.raises(TooManyFailures):
        admins.identify(token, "there")
    admins.identify(token, "here")
    for host in range(20):  # one network is one guesser, whatever address it takes
        with pytest.raises(WrongToken if host < FAILURES else TooManyFailures):
            admins.identify(wrong, f"2001:db8::{host}")
    database.close()


def test_wrong_tokens_hold_no_admin_out_who_sent_none(tmp_path: Path) -> None:
    clock = Clock()
    database = Database(f"sqlite:///{tmp_path / 'admins.sqlite'}")
    admins = Admins(database, clock)
    (_, token), (_, others) = (admins.add(LOCAL, name, "owner", [], 0.0) for name in ("alice", "olga"))
    for guess in range(ALL_FAILURES):
        with pytest.raises(WrongToken):
            admins.identify(token[:-1] + "-", f"192.0.2.{guess}")
    with pytest.raises(TooManyFailures):
        admins.identify(token[:-1] + "-", "192.0.2.0")
    assert admins.identify(others, "192.0.2.0").name == "olga"
    assert admins.identify(token, "198.51.100.1").name == "alice"
    database.close()
