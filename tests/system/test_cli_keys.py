"""`umbel keys`, as a program, against a running server."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.server_harness import RunningServer
from tests.umbel_command import Umbel
from umbel_server.state_folder import open_state
from umbel_sim.demo.processes import free_port


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "server", free_port(), tls=True)
    yield server
    server.stop()


def test_an_owner_rotates_and_sees_the_keys(running: RunningServer, tmp_path: Path) -> None:
    umbel = partial(Umbel(tmp_path / "server"), "keys")
    (only,) = json.loads(umbel("list", "--json"))
    assert (only["state"], only["until"]) == ("signing", None)
    assert "signs in 7.0 days" in umbel("rotate")
    assert [row["state"] for row in json.loads(umbel("list", "--json"))] == ["signing", "announced"]
    refused = umbel("rotate", "--overlap", "24h", code=1)
    assert "announced already" in refused
    assert refused.count("\n") == 1
    assert "such as 90s, 30m, 24h or 7d" in umbel("rotate", "--overlap", "soon", code=2)
    assert "refuses the old key as soon as" in umbel("rotate", "--now")
    states = [row["state"] for row in json.loads(umbel("list", "--json"))]
    assert states == ["retired", "retired", "signing"]
    assert umbel("list").count("retired") == 2
    assert len(open_state(tmp_path / "server").keys.lineage.keys) == 3
    assert len(list((tmp_path / "server").glob("signing-key*.pem"))) == 1
