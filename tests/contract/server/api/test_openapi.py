"""The API against its own OpenAPI document: whatever is asked, and by whom, the answer is one that the document names."""

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.security.served import Enrolled
from tests.server_harness import RunningServer, serving

load_all_checks()
schemathesis.serializer.alias("application/partial-upload", "application/octet-stream")
HELD = CHECKS.get_by_names(
    ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)
EXAMPLES = 10
"""Requests to each route, by each who asks; the same ones in every test run."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("openapi") / "server") as server:
        yield server


@pytest.fixture(scope="module")
def document(running: RunningServer) -> dict[str, object]:
    answer = httpx.get(running.state.server_url + "/openapi.json", trust_env=False)
    return dict(answer.json())


@pytest.mark.timeout(240)
@pytest.mark.parametrize("who", ["nobody", "admin", "device"])
def test_every_answer_is_one_that_the_document_names(
    running: RunningServer, document: dict[str, object], who: str
) -> None:
    device = Enrolled(running.state, f"phone-{who}")
    session = requests.Session()
    session.trust_env = False
    asked = 0

    def check(case: Case) -> None:
        nonlocal asked
        headers = {}
        if who == "admin":
            headers["Authorization"] = f"Bearer {running.state.admin_token}"
        elif who == "device":
            path = requests.Request(case.method, running.state.server_url + case.formatted_path).prepare().path_url
            headers["Authorization"] = device.authorization(case.method, path)
        answer = case.call(
            base_url=running.state.server_url, session=session, headers=headers, timeout=20, allow_redirects=False
        )
        case.validate_response(answer, checks=HELD)
        asked += 1

    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        cases = st.one_of(*(operation.as_strategy(mode) for mode in GenerationMode))
        run = settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(given(case=cases)(check))
        run()
    assert asked > 2 * len(document["paths"])  # type: ignore[arg-type]
    assert running.client.get("/v1/audit/verify")["fault"] == ""


def test_the_document_says_who_has_to_prove_what(document: dict[str, dict[str, dict[str, dict[str, object]]]]) -> None:
    free = {
        (method, path)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "security" not in operation
    }
    assert free == {("get", "/v1/health"), ("get", "/v1/trust"), ("post", "/v1/enrol")}


def test_an_answer_to_head_has_no_content_and_the_document_names_none(
    running: RunningServer, document: dict[str, dict[str, dict[str, dict[str, dict[str, object]]]]]
) -> None:
    """RFC 9110, section 9.3.2: also a refusal, whose sentence GET would send as JSON."""
    heads = {path: operations["head"] for path, operations in document["paths"].items() if "head" in operations}
    assert set(heads) == {"/v1/blobs/{sha256}", "/v1/uploads/{sha256}"}
    for path, operation in heads.items():
        assert {"401", "403", "404"} <= operation["responses"].keys()
        assert not any("content" in answer for answer in operation["responses"].values())
        asked = f"HEAD {path.format(sha256='0' * 64)} HTTP/1.1\r\nHost: umbel\r\nConnection: close\r\n\r\n"
        with socket.create_connection(("127.0.0.1", running.state.config.http.port), timeout=20) as connection:
            connection.sendall(asked.encode())
            with connection.makefile("rb") as stream:
                head, _, content = stream.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 401 ")
        assert content == b""


def test_a_path_that_leads_nowhere_gets_a_sentence_too(running: RunningServer) -> None:
    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v1/devices", 405),
        ("GET", "/v1/devices/", 404),  # and no redirect to where the Host header says
        ("GET", "/" + "a" * 5000, 404),
    ):
        answer = httpx.request(method, running.state.server_url + path, trust_env=False)
        assert (answer.status_code, bool(answer.json()["error"])) == (status, True)
        assert len(answer.text) < 300


def test_nothing_that_was_asked_has_harmed_the_database(running: RunningServer) -> None:
    with closing(sqlite3.connect(running.state.folder / "umbel.sqlite", timeout=30)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
