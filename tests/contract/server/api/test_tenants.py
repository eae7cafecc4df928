"""Populations are tenants: over a real socket, what belongs to one does not exist for the other, on every route of the API."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.routing import iter_route_contexts

from tests.brokers import EmbeddedProcess
from tests.server_harness import POPULATION, RunningServer, ScriptedDevice
from tests.signed_requests import signed
from tests.waiting import eventually
from umbel import signing
from umbel.enrolment import EnrolmentRequest
from umbel.messages import Answered, Blob, Command, Export, Exported, Infer
from umbel.plan import Plan
from umbel.tensors import digest
from umbel_server.api import make_app
from umbel_server.storage.blob_ownership import BlobOwnership
from umbel_server.storage.blobs import Blobs
from umbel_server.storage.database import BlobPopulation, Database, Device

OURS, THEIRS = "ours", POPULATION
NEVER = digest(b"never stored anywhere")
LARGE = np.random.default_rng(0).bytes(100_000)


@dataclass(frozen=True)
class Scene:
    """Two populations with one of everything, and the token of an owner of `ours` alone."""

    running: RunningServer
    token: str
    key: Any
    plan: str
    blob: str
    run: str
    release: str
    command: str
    invitation: str

    def ask(self, token: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}", **options.pop("headers", {})}
        return httpx.request(
            method, self.running.state.server_url + path, headers=headers, trust_env=False, timeout=30, **options
        )

    def ours(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.ask(self.token, method, path, **options)

    def device(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = signed(self.key, OURS, "phone", method, path)
        return httpx.request(
            method, self.running.state.server_url + path, headers=headers, trust_env=False, timeout=30, **options
        )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, plan_of: Callable[[str], Plan]) -> Iterator[Scene]:
    broker = EmbeddedProcess()
    broker.start()
    running = RunningServer(tmp_path_factory.mktemp("tenants") / "server", broker.port)
    client, key = running.client, signing.generate_key()
    secret = running.state.enrolment_secret
    for population, of in ((OURS, key), (THEIRS, signing.generate_key())):
        asked = EnrolmentRequest("phone", "phone", signing.public_key(of), secret, population)
        running.server.invitations.enrol(asked)
    plan = client.add_plan(plan_of("line").path, THEIRS).plan
    blob = client.put_blob(LARGE, THEIRS)
    run = str(client.post("/v1/runs", {"population": THEIRS, "plan": plan})["id"])
    eventually(lambda: client.get(f"/v1/runs/{run}")["checkpoints"])
    release = str(client.post(f"/v1/runs/{run}/releases", {"variants": ["float32"]})["id"])
    (command,) = client.post("/v1/commands", {"population": THEIRS, "kind": "report"})
    (invited,) = client.post("/v1/invitations", {"population": THEIRS})
    token = client.post("/v1/admins", {"name": "otto", "role": "owner", "populations": [OURS]})["token"]
    client.post("/v1/admins", {"name": "their-admin", "role": "viewer", "populations": [THEIRS]})
    yield Scene(running, token, key, plan, blob, run, release, command["id"], invited["id"])
    running.stop()
    broker.stop()


@dataclass(frozen=True)
class Hidden:
    """A request about the other population's thing, which is answered as if there were no such thing.

    `path` and `options` have the names of the scene's fields in braces; `nothing` are what they are replaced by for what is
    nowhere.
    """

    path: str
    options: dict[str, Any] = field(default_factory=dict)
    status: int = 404


@dataclass(frozen=True)
class Listing:
    """A listing, in which nothing of the other population is."""

    path: str


@dataclass(frozen=True)
class Shared:
    """A route that tells nobody anything of a population, and why."""

    why: str


Probe = Hidden | Listing | Shared

NOBODYS = {
    "plan": digest(b"no plan"),
    "blob": NEVER,
    "run": "fffffffffffe",
    "release": "no-such-release",
    "command": "c" * 16,
    "invitation": "d" * 12,
    "theirs": "nowhere",
}

RUN = "/v1/runs/{run}"
DEVICE = "/v1/devices/{theirs}/phone"
ROUTES: dict[tuple[str, str], Probe] = {
    ("GET", "/v1/trust"): Shared("what the server's own name is proved by"),
    ("GET", "/v1/keys"): Shared("the server's own keys, and how many of his own devices know each"),
    ("POST", "/v1/keys/rotate"): Shared("for an owner of all populations alone"),
    ("POST", "/v1/enrol"): Shared("who asks has the secret of one invitation, and gets into its population alone"),
    ("GET", "/v1/connection"): Shared("a device is told of itself, by its own signature"),
    ("POST", "/v1/certificate"): Shared("a device is certified for itself, by its own signature"),
    ("GET", "/v1/health"): Shared("whether the server is up"),
    ("GET", "/v1/audit/verify"): Shared("whether the one log of all is whole, and how long it is"),
    ("POST", "/v1/admins"): Shared("an owner makes admins within its own scope: test_admins.py"),
    ("GET", "/v1/blobs/{sha256}"): Hidden("/v1/blobs/{blob}"),
    ("HEAD", "/v1/blobs/{sha256}"): Hidden("/v1/blobs/{blob}"),
    ("PUT", "/v1/blobs/{sha256}"): Hidden("/v1/blobs/{blob}?population={theirs}", {"content": LARGE}),
    ("HEAD", "/v1/uploads/{sha256}"): Hidden("/v1/uploads/{blob}", status=204),
    ("PATCH", "/v1/uploads/{sha256}"): Hidden(
        "/v1/uploads/{blob}", {"content": b"end", "headers": {"Upload-Offset": "99997"}}, 409
    ),
    ("POST", "/v1/invitations"): Hidden("/v1/invitations", {"json": {"population": "{theirs}"}}),
    ("GET", "/v1/invitations"): Listing("/v1/invitations"),
    ("POST", "/v1/invitations/{id}/revoke"): Hidden("/v1/invitations/{invitation}/revoke"),
    ("GET", "/v1/devices"): Listing("/v1/devices"),
    ("GET", "/v1/devices/{population}/{device}"): Hidden(DEVICE),
    ("POST", "/v1/devices/{population}/{device}/readmit"): Hidden(f"{DEVICE}/readmit"),
    ("POST", "/v1/devices/{population}/{device}/suspend"): Hidden(f"{DEVICE}/suspend"),
    ("POST", "/v1/devices/{population}/{device}/resume"): Hidden(f"{DEVICE}/resume"),
    ("POST", "/v1/devices/{population}/{device}/revoke"): Hidden(f"{DEVICE}/revoke"),
    ("POST", "/v1/devices/{population}/{device}/rename"): Hidden(f"{DEVICE}/rename", {"json": {"name": "x"}}),
    ("POST", "/v1/devices/{population}/{device}/label"): Hidden(f"{DEVICE}/label", {"json": {"labels": {"a": "b"}}}),
    ("POST", "/v1/devices/{population}/{device}/delete"): Hidden(f"{DEVICE}/delete"),
    ("POST", "/v1/commands"): Hidden("/v1/commands", {"json": {"population": "{theirs}", "kind": "report"}}),
    ("GET", "/v1/commands/{id}"): Hidden("/v1/commands/{command}"),
    ("POST", "/v1/plans"): Hidden("/v1/plans?population={theirs}", {"content": b"no plan"}),
    ("POST", "/v1/runs"): Hidden("/v1/runs", {"json": {"population": OURS, "plan": "{plan}"}}),
    ("GET", "/v1/runs"): Listing("/v1/runs"),
    ("GET", "/v1/runs/{id}"): Hidden(RUN),
    ("GET", "/v1/runs/{id}/live"): Hidden(f"{RUN}/live"),
    ("POST", "/v1/runs/{id}/stop"): Hidden(f"{RUN}/stop"),
    ("POST", "/v1/runs/{id}/pause"): Hidden(f"{RUN}/pause"),
    ("POST", "/v1/runs/{id}/resume"): Hidden(f"{RUN}/resume"),
    ("POST", "/v1/runs/{id}/clone"): Hidden(f"{RUN}/clone"),
    ("POST", "/v1/runs/{id}/releases"): Hidden(f"{RUN}/releases"),
    ("GET", "/v1/releases"): Listing("/v1/releases"),
    ("GET", "/v1/releases/{id}"): Hidden("/v1/releases/{release}"),
    ("GET", "/v1/admins"): Listing("/v1/admins"),
    ("POST", "/v1/admins/{name}/revoke"): Hidden("/v1/admins/{admin}/revoke"),
    ("GET", "/v1/audit"): Listing("/v1/audit?limit=10000"),
    ("GET", "/v1/quotas"): Listing("/v1/quotas"),
    ("GET", "/v1/quotas/{population}"): Hidden("/v1/quotas/{theirs}"),
    ("POST", "/v1/quotas/{population}"): Hidden("/v1/quotas/{theirs}", {"json": {"devices": 1}}),
}


def test_every_route_keeps_populations_apart_or_says_why_it_need_not(scene: Scene) -> None:
    documentation = ("/docs", "/openapi.json")
    routes = {
        (method, context.path)
        for context in iter_route_contexts(make_app(scene.running.server).routes)
        for method in context.methods
        if not context.path.startswith(documentation)
    }
    assert routes == set(ROUTES), "a route was added or removed: say in ROUTES how it keeps populations apart"


@pytest.mark.parametrize(("route", "probe"), ROUTES.items(), ids=[" ".join(route) for route in ROUTES])
def test_what_is_another_populations_is_not_there(scene: Scene, route: tuple[str, str], probe: Probe) -> None:
    method, _ = route
    names = {name: getattr(scene, name, "") for name in NOBODYS} | {"theirs": THEIRS, "admin": "their-admin"}
    if isinstance(probe, Listing):
        answer = scene.ours(method, probe.path)
        assert answer.status_code == 200
        hidden = [
            THEIRS,
            "their-admin",
            scene.plan,
            scene.blob,
            scene.run,
            scene.release,
            scene.command,
            scene.invitation,
        ]
        # The name of what was asked for in vain is the asker's own word.
        found = [row for row in answer.json() if row.get("who") != "otto"]
        for word in hidden:
            assert f"'{word}'" not in str(found), word
    elif isinstance(probe, Hidden):
        told = asked(scene, method, probe, names)
        nothing = asked(scene, method, probe, NOBODYS | {"admin": "nobody"})
        assert told.status_code == probe.status, told.text
        assert told.status_code == nothing.status_code
        expected = nothing.text
        for name, word in (NOBODYS | {"admin": "nobody"}).items():
            if name in ("plan", "blob"):
                expected = expected.replace(word[:12], names[name][:12])
            expected = expected.replace(word, names[name])
        assert told.text == expected
        for name in ("content-length", "upload-offset", "upload-complete"):
            if method == "HEAD":
                assert told.headers.get(name) == nothing.headers.get(name)


def asked(scene: Scene, method: str, probe: Hidden, names: dict[str, str]) -> httpx.Response:
    options = {key: value if isinstance(value, bytes) else filled(value, names) for key, value in probe.options.items()}
    return scene.ours(method, filled(probe.path, names), **options)


def filled(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: filled(inner, names) for key, inner in value.items()}
    if not isinstance(value, str):
        return value
    for name, word in names.items():
        value = value.replace(f"{{{name}}}", word)
    return value


@pytest.mark.parametrize(
    "body",
    [
        {"population": OURS, "kind": "infer", "inputs": "{blob}"},
        {"population": OURS, "kind": "export", "plan": "{plan}"},
        {"population": OURS, "kind": "install", "release": "{release}"},
    ],
    ids=["inputs", "plan", "release"],
)
def test_no_command_brings_over_what_is_another_populations(scene: Scene, body: dict[str, str]) -> None:
    names = {name: getattr(scene, name, "") for name in NOBODYS}
    told, nothing = (scene.ours("POST", "/v1/commands", json=filled(body, some)) for some in (names, NOBODYS))
    assert (told.status_code, nothing.status_code) == (404, 404)
    assert "not on this server" in told.json()["error"] or "no release" in told.json()["error"]


def test_a_run_of_ones_own_takes_nothing_of_anothers(scene: Scene, plan_of: Callable[[str], Plan]) -> None:
    path = plan_of("line").path
    added = scene.ours("POST", "/v1/plans", content=path.read_bytes())
    assert added.status_code == 200
    body = {"population": OURS, "plan": added.json()["plan"]}
    run = scene.ours("POST", "/v1/runs", json=body).json()["id"]
    for path_, asked_for in (
        ("/v1/runs", {**body, "settings": {"held_out": scene.blob}}),
        ("/v1/runs", {**body, "from_run": scene.run}),
        (f"/v1/runs/{run}/clone", {"settings": {"held_out": scene.blob}}),
        (f"/v1/runs/{run}/releases", {"examples": scene.blob}),
        (f"/v1/runs/{run}/releases", {"representative": scene.blob, "variants": ["int8-full"]}),
    ):
        assert scene.ours("POST", path_, json=asked_for).status_code == 404, asked_for
    scene.ours("POST", f"/v1/runs/{run}/stop")
    assert scene.device("GET", f"/v1/blobs/{body['plan']}").status_code == 200
    assert scene.device("GET", f"/v1/blobs/{scene.plan}").status_code == 404


def test_a_device_is_told_nothing_of_another_populations_blob(scene: Scene) -> None:
    for method in ("GET", "HEAD"):
        there, nowhere = scene.device(method, f"/v1/blobs/{scene.blob}"), scene.device(method, f"/v1/blobs/{NEVER}")
        assert (there.status_code, nowhere.status_code) == (404, 404)
        assert there.text == nowhere.text.replace(NEVER[:12], scene.blob[:12])
    reads: list[str] = []
    size = Blobs.size

    def noting(self: Blobs, sha256: str) -> int:
        reads.append(sha256)
        return size(self, sha256)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Blobs, "size", noting)
        scene.device("GET", f"/v1/blobs/{scene.blob}")
        scene.ours("HEAD", f"/v1/blobs/{scene.blob}")
    assert reads == []  # the store is not asked, so it takes as long as for one that is nowhere


def test_the_same_bytes_in_two_populations_belong_to_both(scene: Scene) -> None:
    data = np.random.default_rng(1).bytes(50_000)
    scene.running.client.put_blob(data, THEIRS)
    path = f"/v1/blobs/{digest(data)}"
    assert scene.device("GET", path).status_code == 404
    assert scene.ours("PUT", path, content=data[:-1]).status_code == 422  # who has not all of it gets none of it
    assert scene.device("GET", path).status_code == 404
    assert scene.ours("PUT", path, content=data).status_code == 200
    assert scene.device("GET", path).content == data


def test_an_upload_of_another_admin_is_not_gone_on_with(scene: Scene) -> None:
    """Who knows a digest and how far another's upload has come cannot end it, and so call its bytes his own."""
    data = np.random.default_rng(2).bytes(50_000)
    store, folder = scene.running.server.uploads, scene.running.state.folder / "uploads"
    theirs = folder / "admin" / "their-admin" / f"{digest(data)}.part"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(data[:-1])
    answer = scene.ours("PATCH", f"/v1/uploads/{digest(data)}", content=data[-1:], headers={"Upload-Offset": "49999"})
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (409, "0")
    assert theirs.read_bytes() == data[:-1]
    assert store is scene.running.server.uploads


def test_an_outcome_names_no_blob_of_another_population(scene: Scene) -> None:
    """A device that names another population's blob as its answer is refused as if there were none, and nobody gets it."""
    server, sizes = scene.running.server, {scene.blob: len(LARGE)}

    def answer(command: Command) -> Answered | Exported | None:
        match command.body:
            case Infer(inputs=inputs):
                return Answered("r", Blob(inputs.sha256, inputs.size))
            case Export(plan=plan):
                return Exported(Blob(plan.sha256, plan.size), 1)
        return None

    device = ScriptedDevice(scene.running, "thief", answer, population=OURS)
    eventually(lambda: server.devices.get(OURS, "thief").online)
    for body in (Infer(Blob(scene.blob, sizes[scene.blob])), Export(Blob(scene.blob, sizes[scene.blob]))):
        with server.database.transaction() as session:
            command = server.outbox.add(session, OURS, "thief", body, 60.0)
        server.exchange.send([command])
        ended = eventually(lambda id=command.id: (c := server.outbox.get(id)).state != "pending" and c)
        assert (ended.state, "not on this server" in ended.reason) == ("rejected", True)
    device.stop()
    assert not server.ownership.owns(OURS, scene.blob)
    assert scene.ours("GET", f"/v1/blobs/{scene.blob}").status_code == 404


def test_an_owner_of_one_population_does_not_set_its_own_quota(scene: Scene) -> None:
    answer = scene.ours("POST", f"/v1/quotas/{OURS}", json={"devices": 10**6})
    assert answer.status_code == 403
    assert "only an owner of all populations may set a quota" in answer.json()["error"]


def test_what_an_older_server_had_belongs_to_its_populations(
    tmp_path: Path, scene: Scene, plan_of: Callable[[str], Plan]
) -> None:
    """A database from before blob ownership was recorded gets its rows from its runs, checkpoints, releases and commands."""
    running = scene.running
    inputs = running.client.put_blob(b"x" * 100, THEIRS)
    running.client.post("/v1/commands", {"population": THEIRS, "kind": "infer", "inputs": inputs})
    running.client.post("/v1/commands", {"population": THEIRS, "kind": "install", "release": scene.release})
    with running.server.database.transaction() as session:
        before = {(r.population, r.sha256): r.size for r in session.query(BlobPopulation) if r.population == THEIRS}
    copy = tmp_path / "older.sqlite"
    with (
        closing(sqlite3.connect(running.state.folder / "umbel.sqlite")) as source,
        closing(sqlite3.connect(copy)) as old,
    ):
        source.backup(old)
        for table in ("blob_populations", "quotas", "traffic"):
            old.execute(f"DROP TABLE {table}")
        old.execute("DROP INDEX assignments_waiting")
        old.execute("DROP INDEX devices_fingerprint")
        old.execute("ALTER TABLE devices DROP COLUMN fingerprint")
        shared = "SELECT key FROM devices WHERE population = ?"  # two devices with one key: the first one has it
        old.execute(f"UPDATE devices SET key = ({shared}) WHERE population = ?", (OURS, THEIRS))
        old.execute("UPDATE alembic_version SET version_num = '0008'")
        old.commit()
    database = Database(f"sqlite:///{copy}")
    ownership = BlobOwnership(database, running.server.blobs, time.time)
    ownership.measure()
    with database.transaction() as session:
        after = {(r.population, r.sha256): r.size for r in session.query(BlobPopulation) if r.population == THEIRS}
        fingerprints = {row.population: row.fingerprint for row in session.query(Device)}
    database.close()
    assert (len(fingerprints[OURS] or ""), fingerprints[THEIRS]) == (43, None)
    files = running.client.get(f"/v1/releases/{scene.release}")["files"]
    checkpoints = running.client.get(f"/v1/runs/{scene.run}")["checkpoints"]
    named = {scene.plan, inputs, files["float32"]["sha256"], *(row["weights"] for row in checkpoints)}
    assert named <= {sha256 for _, sha256 in after}
    assert after.items() <= before.items()  # what was only put, and not used by anything, belongs to nobody
    assert scene.blob not in {sha256 for _, sha256 in after}


def test_a_restart_forgets_no_owner(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.sqlite'}")
    blobs = Blobs((tmp_path / "blobs").as_uri())
    blob = blobs.put(b"x" * 1000)
    with suppress(RuntimeError), database.transaction() as session:
        BlobOwnership(database, blobs, time.time).claim(session, "a", blob)
        raise RuntimeError("the transaction fails")
    assert not BlobOwnership(database, blobs, time.time).owns("a", blob.sha256)
    with database.transaction() as session:
        BlobOwnership(database, blobs, time.time).claim_stored(session, "a", blob.sha256, "", blob.sha256)
        BlobOwnership(database, blobs, time.time).claim(session, "a", blob)
    database.close()
    again = BlobOwnership(Database(f"sqlite:///{tmp_path / 'a.sqlite'}"), blobs, time.time)
    assert [again.owns(name, blob.sha256) for name in ("a", "b")] == [True, False]
    assert again.check(["b", "a"], blob.sha256) == "a"
