"""Unit tests are quick because of what they leave alone; this holds them to it."""

import os
import sys
from collections.abc import Iterator

import pytest

REFUSED = {
    "subprocess.Popen": "starts a process",
    "os.posix_spawn": "starts a process",
    "os.fork": "starts a process",
    "socket.bind": "opens a server's socket",
}
SLOW_MODULES = ("tensorflow",)

_state = {"process": 0}


def _look(event: str, arguments: tuple[object, ...]) -> None:
    if not _state or _state["process"] != os.getpid():  # the interpreter empties modules as it ends
        return
    if event == "import" and arguments[0] in SLOW_MODULES:
        pytest.fail(f"a unit test imports {arguments[0]}: move it to tests/contract or tests/system")
    if event in REFUSED:
        pytest.fail(f"a unit test {REFUSED[event]}: move it to tests/contract or tests/system")


sys.addaudithook(_look)


@pytest.fixture(autouse=True, scope="package")
def nothing_slow() -> Iterator[None]:
    """Fail a unit test that imports TensorFlow, starts a process or opens a server's socket."""
    _state["process"] = os.getpid()
    yield
    _state["process"] = 0
