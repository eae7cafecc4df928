"""A device with a key of its own that means harm: what it sends without end, packed, nested, or in others' names."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from tests.security.served import (
    PIECE,
    POPULATION,
    Enrolled,
    Served,
    answer_of,
    head_of,
    pour,
    sentence_of,
)
from tests.server_harness import RunningServer, ScriptedDevice, reports
from tests.settled_commands import settled
from tests.waiting import eventually
from umbel import signing, tensors, topics
from umbel.enrolment import ENROL_PATH, Access, EnrolmentRequest, sign_request
from umbel.errors import PlanError, UmbelError
from umbel.messages import Blob, Command, Outcome, Reported, Train, Trained
from umbel.mqtt import Link
from umbel.plan import Plan
from umbel_server.runs.settings import RunSettings

PlanOf = Callable[[str], Plan]

GIGABYTES = 10_000_000_000
MOST_MB = 4
ROOM = 16_000_000
"""Bytes that a server of some 200 MB grows by for other reasons: threads, caches."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("served") / "state", MOST_MB)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def thief(served: Served) -> Enrolled:
    return Enrolled(served.state, "thief")


@pytest.fixture(scope="module")
def asked(served: Served, thief: Enrolled) -> str:
    """A command of the thief's that is answered by an upload of any size up to the server's bound."""
    inputs = served.client.put_blob(tensors.dump({"x": np.zeros((1, 1), np.float32)}), POPULATION)
    wanted = {"population": POPULATION, "kind": "infer", "devices": ["thief"], "inputs": inputs, "ttl": 3600.0}
    return str(served.client.post("/v1/commands", wanted)[0]["id"])


# --- 10 GB -------------------------------------------------------------------------------------------------------------

CHUNK = b"%x\r\n" % len(PIECE) + PIECE + b"\r\n"


@pytest.mark.parametrize("how", ["whole", "chunked"])
@pytest.mark.parametrize("to", ["enrol", "stranger", "forged", "command"])
def test_ten_gigabytes_are_neither_read_nor_kept(
    served: Served, thief: Enrolled, asked: str, to: str, how: str
) -> None:
    path = ENROL_PATH if to == "enrol" else f"/v1/blobs/{'0' * 64}"
    token = {
        "enrol": "",
        "stranger": "nonsense",
        "forged": thief.authorization("PUT", path, asked, signing.generate_key()),
        "command": thief.authorization("PUT", path, asked),
    }[to]
    length = {"Transfer_Encoding": "chunked"} if how == "chunked" else {"Content_Length": str(GIGABYTES)}
    head = head_of("POST" if to == "enrol" else "PUT", path, Authorization=token, **length)
    before, kept = served.forget_peak(), served.stored()
    with served.connect() as sock:
        sent, answer = pour(sock, head, CHUNK if how == "chunked" else PIECE, GIGABYTES)
    assert sent < 40_000_000  # what was allowed, and what the sockets' buffers hold
    assert served.peak() - before < 4 * MOST_MB * 1_000_000 + ROOM
    assert answer.split()[1] in {"enrol": b"400", "stranger": b"401", "forged": b"401", "command": b"413"}[to].split()
    assert sentence_of(answer)
    eventually(lambda: served.stored() <= kept)
    assert served.answers()


def test_a_head_that_never_ends_is_not_kept(served: Served) -> None:
    for begins, piece in (
        (b"GET /v1/health HTTP/1.1\r\nX: ", b"a" * 65536),
        (b"GET /v1/health HTTP/1.1\r\n", b"X: a\r\n" * 10_000),
        (b"GET /" + b"a" * 1000, b"a" * 65536),
    ):
        before = served.forget_peak()
        with served.connect() as sock:
            sent, answer = pour(sock, begins, piece, GIGABYTES)
        assert sent < 40_000_000
        assert served.peak() - before < ROOM
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert served.answers()


@pytest.mark.parametrize(
    "lengths", ["Content-Length: -1", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 9" + "9" * 40]
)
def test_lengths_that_make_no_sense_are_refused(served: Served, lengths: str) -> None:
    with served.connect() as sock:
        sock.sendall(f"POST {ENROL_PATH} HTTP/1.1\r\nHost: x\r\n{lengths}\r\n\r\n{{}}".encode())
        assert answer_of(sock).startswith(b"HTTP/1.1 400")


def test_a_length_that_is_too_short_smuggles_no_request(served: Served, thief: Enrolled) -> None:
    """What comes after the body is a request of its own, and has to be one that its sender may make."""
    hidden = head_of("GET", "/v1/devices", Connection="close")
    head = head_of("POST", ENROL_PATH, Content_Length="2")
    with served.connect() as sock:
        sock.sendall(head + b"{}" + hidden)
        answer = answer_of(sock)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert answer.count(b"HTTP/1.1 401") == 1
    both = head_of("POST", ENROL_PATH, Content_Length="2", Transfer_Encoding="chunked")
    with served.connect() as sock:
        sock.sendall(both + b"0\r\n\r\n" + hidden)
        answer = answer_of(sock)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1


# --- bombs -------------------------------------------------------------------------------------------------------------

DEEP = [b"[" * 60_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b'{"device":' * 6000, b'"' + b"\\ud800" * 9000 + b'"']


@pytest.mark.parametrize("body", [*DEEP, gzip.compress(bytes(50_000_000)), b"9" * 60_000, b"\xff" * 60_000])
def test_bodies_that_nest_or_unpack_to_much_are_refused_with_a_sentence(served: Served, body: bytes) -> None:
    before = served.forget_peak()
    admin = {"Authorization": f"Bearer {served.state.admin_token}"}
    packed = {"Content-Encoding": "gzip"} if body[:2] == b"\x1f\x8b" else {}
    for path in (ENROL_PATH, "/v1/commands", "/v1/runs", "/v1/invitations", "/v1/admins"):
        answer = httpx.post(served.state.server_url + path, content=body, headers=admin | packed, trust_env=False)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]
        assert len(answer.content) < 1000
    assert served.peak() - before < ROOM
    assert served.answers()


def test_a_token_that_nests_or_is_long_is_refused(served: Served) -> None:
    long = [
        "a" * 60_000,
        ".".join(["a" * 20_000] * 3),
        *(signing.sign(deep, signing.generate_key()) for deep in DEEP[:2]),
    ]
    for token in long:
        text = token if isinstance(token, str) else token.decode()
        with served.connect() as sock:
            sock.sendall(head_of("GET", f"/v1/blobs/{'0' * 64}", Authorization=f"Bearer {text}", Connection="close"))
            assert answer_of(sock).split()[1] in (b"401", b"400")
    assert served.answers()


def packed_plan(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("manifest.json", data)
    return file.getvalue()


def test_an_archive_that_unpacks_to_much_is_refused(served: Served) -> None:
    bomb = packed_plan(bytes(100_000_000))
    examples = io.BytesIO()
    with (
        zipfile.ZipFile(examples, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as out,
    ):
        shape = (25_000_000, 1)
        np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for _ in range(100):
            out.write(bytes(1_000_000))
    before = served.forget_peak()
    admin = {"Authorization": f"Bearer {served.state.admin_token}"}
    answer = httpx.post(served.state.server_url + "/v1/plans", content=bomb, headers=admin, trust_env=False, timeout=30)
    assert (answer.status_code, "uncompressed" in answer.json()["error"]) == (400, True)
    held_out = served.client.put_blob(examples.getvalue(), POPULATION)
    body = {"population": POPULATION, "plan": "0" * 64, "settings": {"held_out": held_out}}
    with pytest.raises(UmbelError):
        served.client.post("/v1/runs", body)
    assert served.peak() - before < 4 * (len(bomb) + len(examples.getvalue())) + ROOM
    assert served.answers()


# --- names -------------------------------------------------------------------------------------------------------------

NAMES = [
    "../../umbel.toml",
    "..",
    ".",
    "a/b",
    "..%2f..%2fumbel.toml",
    "%2e%2e%2f",
    "a\0b",
    "+",
    "#",
    "$SYS",
    "a" * 65,
    "a" * 5000,
    "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/x",
    "\N{RIGHT-TO-LEFT OVERRIDE}nimda",
    "\N{CYRILLIC SMALL LETTER A}dmin",
    "con\n\rX: y",
    " admin",
    "-rf",
    "",
]


def files_of(folder: Path) -> list[str]:
    """All but the database's, and what the audit log's signed end is in for a moment."""
    passing = ("umbel.sqlite", ".audit-head.")
    return sorted(str(path) for path in folder.rglob("*") if not path.name.startswith(passing))


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out_of_its_place(served: Served, thief: Enrolled, name: str) -> None:
    files = files_of(served.state.folder.parent)
    key = signing.generate_key()
    for device, population in ((name, POPULATION), ("fine", name)):
        asked = EnrolmentRequest(device, "phone", signing.public_key(key), served.state.enrolment_secret, population)
        answer = httpx.post(served.state.server_url + ENROL_PATH, content=sign_request(asked, key), trust_env=False)
        assert answer.status_code in (400, 403), answer.text
    with pytest.raises(UmbelError):
        served.client.post("/v1/invitations", {"population": name})
    with pytest.raises(UmbelError):
        served.client.post("/v1/runs", {"population": POPULATION, "plan": name})
    with pytest.raises(UmbelError):
        served.client.post("/v1/admins", {"name": name, "role": "viewer"})
    quoted = "".join(f"%{byte:02X}" for byte in name.encode())  # every byte, slashes too
    admin = {"Authorization": f"Bearer {served.state.admin_token}"}
    for path in ("/v1/blobs/", "/v1/runs/", "/v1/releases/", "/v1/commands/", f"/v1/devices/{POPULATION}/"):
        answer = httpx.get(served.state.server_url + path + (quoted or "%20"), headers=admin, trust_env=False)
        assert answer.status_code in (404, 422), (path, answer.text)
        assert answer.json()["error"]
    signed = thief.ask("PUT", f"/v1/uploads/{quoted or '%20'}", b"x", "none")
    assert signed.status_code in (401, 403, 404, 405, 422)
    assert files == files_of(served.state.folder.parent)


@pytest.mark.parametrize("name", ["../x", "a\0b", "w" * 10_000, "\N{PILE OF POO}", "__metadata__x", ""])
def test_a_tensor_of_another_name_is_rejected_and_the_round_goes_on(
    running: RunningServer, plan_of: PlanOf, name: str
) -> None:
    plan = running.server.plans.add(plan_of("line").path)

    def trained(command: Command, extra: dict[str, np.ndarray]) -> Outcome | None:
        if not isinstance(command.body, Train):
            return None
        update = {s.name: np.full(s.shape, 0.1, np.float32) for s in plan.manifest.weights}
        return Trained(command.body.assignment, Blob.of(tensors.dump(update | extra)), 3, {"loss": 0.5})

    thief = ScriptedDevice(running, "thief", lambda c: trained(c, {name: np.ones(1, np.float32)}))
    honest = ScriptedDevice(running, "honest", lambda c: trained(c, {}))
    running.wait_online(2)
    policy = {"deadline": 10.0, "attempts": 1, "target": 2, "quorum": 1}
    id = running.server.runs.start(
        POPULATION, plan.sha256, msgspec.convert({"rounds": 1, "policy": policy}, RunSettings)
    ).id
    eventually(lambda: running.server.runs.get(id).state != "running", 30)
    run = running.client.get(f"/v1/runs/{id}")
    assert run["state"] == "finished"
    states = {one["device"]: (one["state"], one["reason"]) for one in run["assignments"]}
    assert states["honest"][0] == "folded"
    assert (states["thief"][0], "is not one of the plan's" in states["thief"][1]) == ("rejected", True)
    thief.stop()
    honest.stop()


@pytest.mark.parametrize("name", ["../../../evil", "a/b", "", "a" * 65, "A", "\N{CYRILLIC SMALL LETTER A}"])
def test_a_plan_whose_task_names_a_path_is_refused_by_server_and_device(
    plan_of: PlanOf, tmp_path: Path, name: str
) -> None:
    plan = plan_of("line")
    manifest = msgspec.structs.replace(plan.manifest, task=name)
    files = {file: plan.read(file) for file in plan.manifest.files}
    with pytest.raises(PlanError, match="a task's name"):
        Plan.write(tmp_path / "evil.plan", manifest, files)
    with pytest.raises(PlanError, match="a task's name"):
        Plan.open(tmp_path / "evil.plan")


# --- others' -----------------------------------------------------------------------------------------------------------


def test_a_device_gets_nowhere_with_anothers_command(served: Served, thief: Enrolled) -> None:
    victim = Enrolled(served.state, "victim")
    inputs = served.client.put_blob(b"inputs of the victim", POPULATION)
    wanted = {"population": POPULATION, "kind": "infer", "devices": ["victim"], "inputs": inputs}
    command = served.client.post("/v1/commands", wanted)[0]["id"]
    data = b"an answer that is not the victim's"
    path = f"/v1/blobs/{Blob.of(data).sha256}"
    for asked in (command, "", "0" * 16, "../" + command):
        answer = thief.ask("PUT", path, data, asked)
        assert (answer.status_code, "error" in answer.json()) == (403, True)
    uploads = f"/v1/uploads/{Blob.of(data).sha256}"
    assert thief.ask("HEAD", uploads, command=command).status_code == 403
    assert thief.ask("PATCH", uploads, data, command).status_code in (400, 403)
    assert victim.ask("PUT", path, data, command).status_code == 200
    for method, admins in (
        ("GET", "/v1/devices"),
        ("GET", f"/v1/devices/{POPULATION}/victim"),
        ("GET", f"/v1/commands/{command}"),
        ("POST", f"/v1/devices/{POPULATION}/victim/revoke"),
        ("POST", "/v1/commands"),
        ("POST", "/v1/runs"),
        ("GET", "/v1/audit"),
        ("POST", "/v1/admins"),
    ):
        assert thief.ask(method, admins).status_code == 401


def test_a_device_speaks_for_no_other(running: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    victim = ScriptedDevice(running, "victim", lambda command: None)
    thief = ScriptedDevice(running, "thief", lambda command: None)
    running.wait_online(2)
    sent = running.client.post("/v1/commands", {"population": POPULATION, "kind": "report", "devices": ["victim"]})
    eventually(lambda: victim.commands)
    stolen = victim.commands[0].id
    outcome = Reported("phone", "thief", "x", "x", 1, 1, 1.0, [])
    victim.result(stolen, outcome, key=thief.key)  # in its name, with another key
    thief.result(stolen, outcome)  # in our own
    said = victim.encode(victim.status(False))
    thief.link.publish(topics.topic(POPULATION, "thief", "status"), said)  # its words on our topic
    forged = thief.encode(thief.status(False))
    thief.link.publish(topics.topic(POPULATION, "victim", "status"), forged, retain=True)  # ours on its topic
    eventually(lambda: caplog.text.count("refused") >= 2)
    victim.result(stolen, msgspec.structs.replace(outcome, trainer="victim"))
    answer = settled(running.client, sent, 20)[0]
    assert (answer["state"], answer["outcome"]["trainer"]) == ("done", "victim")
    assert running.server.devices.get(POPULATION, "victim").online
    victim.stop()
    thief.stop()


def test_a_replayed_request_is_good_for_nothing_else(served: Served, thief: Enrolled) -> None:
    path, other = f"/v1/blobs/{'1' * 64}", f"/v1/blobs/{'2' * 64}"
    token = thief.authorization("GET", path)
    for method, asked, header in (
        ("GET", other, token),
        ("HEAD", path, token),
        ("PUT", path, token),
        ("GET", f"{path}/", token),
        ("GET", path, token.removeprefix("Bearer ")[:-4] + "AAAA"),
    ):
        headers = {"Authorization": header}
        answer = httpx.request(method, served.state.server_url + asked, headers=headers, trust_env=False)
        assert answer.status_code in (401, 403, 404), (method, asked)
        if asked == f"{path}/":
            assert answer.json()["error"]
    for population, name in ((POPULATION, "nobody"), ("away", "thief")):
        access = Access(population, name, "GET", path, 0.0)
        claimed = signing.sign(json.dumps(msgspec.to_builtins(access)).encode(), thief.key).decode()
        answer = httpx.get(
            served.state.server_url + path, headers={"Authorization": f"Bearer {claimed}"}, trust_env=False
        )
        assert answer.status_code == 401


def test_a_link_speaks_with_nobody_elses_client_id(running: RunningServer) -> None:
    """A broker ends the older of two clients with one id: the server and the victim come back by themselves."""
    victim = ScriptedDevice(running, "victim", reports)
    running.wait_online(1)
    for id in ("umbel-server", "victim"):
        taker = Link("127.0.0.1", running.state.config.mqtt.port, id, (), lambda *_: None)
        taker.start()
        assert taker.wait_up(10)
        taker.stop()
    eventually(lambda: running.server.exchange.is_up and victim.link.is_up)
    running.wait_online(1)
    sent = running.client.post("/v1/commands", {"population": POPULATION, "kind": "report", "devices": ["victim"]})
    assert settled(running.client, sent, 30)[0]["state"] == "done"
    victim.stop()
