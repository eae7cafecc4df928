import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.brokers import EmbeddedProcess, Mosquitto, mosquitto_program
from tests.server_harness import RunningServer, serving
from umbel.plan import Plan

ROOT = Path(__file__).parent.parent
TASKS = ROOT / "simulations" / "umbel_sim" / "tasks"

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as import_keras does, for tests that import Keras themselves

# Hypothesis measures by default how long an example takes to make and to test: on a busy machine that says nothing.
settings.register_profile("umbel", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("umbel")


def _sources_digest() -> str:
    total = hashlib.sha256()
    for folder in (ROOT / "server" / "umbel_server" / "compiler", TASKS, ROOT / "shared" / "umbel"):
        for path in sorted(folder.rglob("*.py")):
            total.update(path.read_bytes())
    return total.hexdigest()[:16]


@pytest.fixture(scope="session")
def plan_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Plan]:
    """Compiled plans of the tasks in umbel_sim.tasks, each compiled once for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = shared / f"plans-{_sources_digest()}"
    folder.mkdir(exist_ok=True)

    def compiled(name: str) -> Plan:
        path = folder / f"{name}.plan"
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                from umbel.keras_import import import_keras
                from umbel.task import load_task
                from umbel_server.compiler import compile_task

                import_keras()
                compile_task(load_task(TASKS / f"{name}.py"), path)
        return Plan.open(path)

    return compiled


@pytest.fixture(params=["embedded", "mosquitto"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedProcess | Mosquitto]:
    """A real broker on a free port: the embedded one, and mosquitto where it is installed."""
    if request.param == "mosquitto" and mosquitto_program() is None:
        pytest.skip("mosquitto is not installed")
    running = EmbeddedProcess() if request.param == "embedded" else Mosquitto(tmp_path)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningServer]:
    """A server of the test's own without TLS."""
    with serving(tmp_path / "server") as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take longest begins first: at the end one worker would be at it alone."""
    items.sort(key=lambda item: -_timeout(item))


def _timeout(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0]) if mark is not None else 0.0
