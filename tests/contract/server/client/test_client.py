"""The client: what its import loads, what it reads, and how it says that it cannot read an answer."""

import subprocess
import sys

import httpx
import msgspec
import pytest

from umbel import release
from umbel.errors import UmbelError
from umbel_server import answers
from umbel_server.client.connection import Connection
from umbel_server.client.nouns import Runs

HEAVY = {
    *("alembic", "cryptography", "fastapi", "flwr", "joserfc", "keras", "numpy", "obstore", "pydantic", "sqlalchemy"),
    *("starlette", "tensorflow"),
}
OURS = {"umbel_server", "umbel_server.answers", "umbel_server.client", "umbel_server.client.connection"} | {
    "umbel_server.client.nouns"
}
RUN = {
    "id": "a1",
    "population": "home",
    "task": "line",
    "plan": "0" * 64,
    "state": "running",
    "reason": "",
    "round": 0,
    "rounds": 1,
    "strategy": "fedavg",
    "settings": {"rounds": 1},
    "created": 1.0,
    "updated": 2.0,
}


def test_the_client_loads_nothing_of_the_server_but_its_answers() -> None:
    code = "import sys, umbel_server.client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in loaded if name.partition(".")[0] in HEAVY} == set()
    assert {name for name in loaded if name.startswith("umbel_server")} == OURS


def answering(body: bytes) -> Runs:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    return Runs(Connection("http://server", "token", transport=transport))


def test_an_answer_of_a_newer_server_is_read_without_what_is_new() -> None:
    runs = answering(msgspec.json.encode([{**RUN, "colour": "blue"}]))
    assert runs.list() == [msgspec.convert(RUN, answers.Run)]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"hi", "with no JSON; is it an Umbel server?"),
        (b"\xff", "with no JSON; is it an Umbel server?"),
        (b'[{"id": "a1"}]', "in a form that this version of umbel does not know"),
    ],
)
def test_an_answer_that_cannot_be_read_is_said_in_one_sentence(body: bytes, sentence: str) -> None:
    with pytest.raises(UmbelError, match=sentence.replace("?", r"\?")):
        answering(body).list()


@pytest.mark.parametrize("name", ["ReleaseFile", "Parity"])
def test_what_a_release_holds_is_what_its_manifest_holds(name: str) -> None:
    shown, signed = getattr(answers, name), getattr(release, name)
    assert shown.__struct_fields__ == signed.__struct_fields__
    assert shown.__struct_config__.omit_defaults == signed.__struct_config__.omit_defaults
