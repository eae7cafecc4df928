"""What all tests share: profiles of Hypothesis, compiled plans, brokers and a server."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:  # imported where they are used: the unit tests of a room need not wait for the server
    from tests.brokers import EmbeddedProcess, Mosquitto
    from tests.server_harness import RunningServer
    from umbel.plan import Plan

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as import_keras does, for tests that import Keras themselves

# Hypothesis measures by default how long an example takes to make and to test: on a busy machine that says nothing.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("random"), derandomize=True, database=None)
settings.load_profile("ci")


@pytest.fixture(scope="session")
def plan_of() -> "Callable[[str], Plan]":
    """The plan of a task in umbel_sim.tasks by its name: compiled once, and kept for the next test run."""
    from tests.compiled_plans import plan_of_task

    return plan_of_task


@pytest.fixture(params=["embedded", "mosquitto"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> "Iterator[EmbeddedProcess | Mosquitto]":
    """A real broker on a free port: the embedded one, and mosquitto where it is installed."""
    from tests.brokers import EmbeddedProcess, Mosquitto, mosquitto_program

    if request.param == "mosquitto" and mosquitto_program() is None:
        pytest.skip("mosquitto is not installed")
    running = EmbeddedProcess() if request.param == "embedded" else Mosquitto(tmp_path)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def running(tmp_path: Path) -> "Iterator[RunningServer]":
    """A server of the test's own without TLS."""
    from tests.server_harness import serving

    with serving(tmp_path / "server") as server:
        yield server


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Bound the plans that are kept, once in a run: not by its workers."""
    if not hasattr(session.config, "workerinput"):
        from tests.compiled_plans import prune

        prune()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take longest begins first: at the end one worker would be at it alone."""
    items.sort(key=lambda item: -_timeout(item))


def _timeout(item: pytest.Item) -> float:
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0]) if mark is not None else 0.0
