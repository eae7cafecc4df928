"""Compiled plans, kept from one test run to the next under a digest of everything that they are made of."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

from umbel.plan import Plan
from umbel.task import Task, load_task

ROOT = Path(__file__).parent.parent
TASKS = ROOT / "simulations" / "umbel_sim" / "tasks"
CACHE = ROOT / ".cache" / "plans"
MOST_BYTES = 256 << 20
"""Plans that were used longest ago are deleted at the end of a run, down to this many bytes."""
SOURCES = ("shared/umbel", "server/umbel_server/compiler", "server/umbel_server/tflite")
PACKAGES = ("ai-edge-litert", "keras", "numpy", "tensorflow-cpu", "tensorflow")


def plan_of_task(name: str) -> Plan:
    """The plan of the task `name` in umbel_sim.tasks."""
    path = TASKS / f"{name}.py"
    return plan_of(name, lambda: load_task(path), path)


def plan_of(name: str, make: Callable[[], Task], *sources: Path, check: bool = True) -> Plan:
    """The plan of the task that `make` returns, compiled if there is none for the text of `sources` and the compiler."""
    total = hashlib.sha256(_compiler().encode())
    for source in sources:
        total.update(source.read_bytes())
    path = CACHE / f"{name}{'' if check else '-unchecked'}-{total.hexdigest()[:20]}.plan"
    if not path.exists():
        with _alone(path.with_suffix(".lock")):
            if not path.exists():
                from umbel.keras_import import import_keras
                from umbel_server.compiler import compile_task

                import_keras()
                compile_task(make(), path, check=check)
    os.utime(path)
    return Plan.open(path)


def prune(most_bytes: int = MOST_BYTES) -> None:
    """Delete the plans that were used longest ago until the others take at most `most_bytes`."""
    left = most_bytes
    for path in sorted(CACHE.glob("*.plan"), key=lambda path: path.stat().st_mtime, reverse=True):
        left -= path.stat().st_size
        if left < 0:
            path.unlink()
            path.with_suffix(".lock").unlink(missing_ok=True)


@cache
def _compiler() -> str:
    """A digest of the compiler's sources and of the packages that it works with."""
    total = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            total.update(path.read_bytes())
    installed = {dist.name.lower(): dist.version for dist in metadata.distributions()}
    for package in PACKAGES:
        total.update(f"{package} {installed.get(package)}\n".encode())
    return total.hexdigest()


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock file, against other processes that compile the same plan."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
