"""A server whose database is PostgreSQL; skipped where that is not installed."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from tests.server_harness import POPULATION, RunningServer, ScriptedDevice, serving
from tests.waiting import eventually
from umbel import signing, tensors
from umbel.enrolment import Access, bearer
from umbel.errors import UmbelError
from umbel.messages import Ack, Blob, Command, Outcome, Train, Trained
from umbel.plan import Plan
from umbel_server.runs.settings import RunSettings
from umbel_server.storage.database import Base, Database

pytest.importorskip("psycopg")

PlanOf = Callable[[str], Plan]
ACCOUNT = "nobody" if os.geteuid() == 0 else None
"""PostgreSQL does not run as root."""


def installed(name: str) -> str:
    """The newest program of PostgreSQL of this name."""
    found = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))]
    if not (program := shutil.which(name) or (found[-1] if found else "")):
        assert "CI" not in os.environ, f"PostgreSQL's {name} was expected, as .ci/run installs it"
        pytest.skip("PostgreSQL is not installed")
    return program


@pytest.fixture
def url() -> Iterator[str]:
    programs = installed("initdb"), installed("postgres")
    folder = Path(
        tempfile.mkdtemp(prefix="umbel-")
    )  # pytest's own are for this account only, and too long for a socket
    if ACCOUNT:
        shutil.chown(folder, ACCOUNT)
    data = folder / "data"
    command = [programs[0], "-D", str(data), "-A", "trust", "-U", "umbel", "--no-sync"]
    subprocess.run(command, check=True, capture_output=True, user=ACCOUNT, cwd=folder, timeout=60)
    command = [programs[1], "-D", str(data), "-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, user=ACCOUNT, cwd=folder)
    try:
        eventually(lambda: "ready to accept connections" in (folder / "log").read_text(), 30)
        yield f"postgresql+psycopg://umbel@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)
        shutil.rmtree(folder)


@pytest.fixture
def running(tmp_path: Path, url: str) -> Iterator[RunningServer]:
    with serving(tmp_path / "server", database=url) as server:
        yield server


def test_the_migrated_schema_is_that_of_the_models(url: str) -> None:
    Database(url).close()
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_a_nul_is_refused_in_one_sentence_and_never_a_mistake_of_ours(
    running: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = bearer(Access("a\0b", "d", "GET", "/v1/connection", time.time()), signing.generate_key())
    url = running.state.server_url + "/v1/connection"
    assert httpx.get(url, headers={"Authorization": stranger}, trust_env=False).status_code == 401
    for path, query in (("/v1/runs/a%00", {}), ("/v1/devices/a%00/b", {}), ("/v1/audit", {"who": "a\0"})):
        with pytest.raises(UmbelError, match="cannot store the request: it holds a NUL"):
            running.client.get(path, **query)
    device = ScriptedDevice(running, "phone", lambda command: Ack("a\0b", POPULATION, "phone", "failed", 0.0))
    running.wait_online(1)
    device.say(msgspec.structs.replace(device.status(True), trainer="a\0b", sequence=1), "status", retain=True)
    eventually(
        lambda: running.client.get(f"/v1/devices/{POPULATION}/phone")["trainer"] == "a\N{REPLACEMENT CHARACTER}b"
    )
    asked = running.client.post("/v1/commands", {"population": POPULATION, "kind": "report"})[0]["id"]
    eventually(lambda: running.server.refusals.of(f"{POPULATION}/phone") == {"forged messages": 1})
    device.ack(asked, "failed", "why\0")
    eventually(lambda: running.client.get(f"/v1/commands/{asked}")["reason"] == "why\N{REPLACEMENT CHARACTER}")
    suspended = running.client.post(f"/v1/devices/{POPULATION}/phone/suspend", {"reason": "a\0b"})
    assert suspended["state_reason"] == "a\N{REPLACEMENT CHARACTER}b"
    assert not any(record.exc_info for record in caplog.records)
    device.stop()


def test_a_run_counts_its_bytes(running: RunningServer, plan_of: PlanOf) -> None:
    plan = running.server.plans.add(plan_of("line").path)
    update = Blob.of(tensors.dump({s.name: np.full(s.shape, 0.1, np.float32) for s in plan.manifest.weights}))

    def work(command: Command) -> Outcome | None:
        if not isinstance(command.body, Train):
            return None
        return Trained(command.body.assignment, update, 10, {"loss": 0.5})

    device = ScriptedDevice(running, "device", work)
    running.wait_online(1)

    def trained(**wanted: object) -> dict[str, object]:
        settings = msgspec.convert({"policy": {"deadline": 20.0}, **wanted}, RunSettings)
        id = running.server.runs.start(POPULATION, plan.sha256, settings).id
        eventually(lambda: running.server.runs.get(id).state != "running", 30)
        return dict(running.client.get(f"/v1/runs/{id}"))

    one = trained(rounds=1)
    assert (one["state"], one["bytes_up"]) == ("finished", update.size)
    down = one["bytes_down"]
    assert isinstance(down, int)
    spent = trained(rounds=9, budget_bytes=2 * (down + update.size))
    assert (spent["round"], spent["reason"]) == (2, f"the budget of {2 * (down + update.size):,} bytes is spent")
    device.stop()
