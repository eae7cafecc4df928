"""The Ray that trains: a cluster that is there already, or one on this machine that ends with the simulation."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from umbel.errors import UmbelError
from umbel_sim.engines.threads import cores

LOCAL, AUTO = "local", "auto"
CONNECT_SECONDS = 20.0
"""Longest time for a cluster to answer. Ray itself tries for nearly two minutes, and then ends the process."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default of Ray, which warns of it
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers run this Python, not what uv would make of the command line
}
GUARDED = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps Ray to 127.0.0.1, on every system
    "RAY_AUTH_MODE": "token",  # whoever reaches a Ray without one can make it execute code
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
"""For a Ray of this process alone. Ray reads them as it is imported: one that was imported before is as its importer has it."""

_guarded = False

PROBE = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    sys.exit(f"umbel: {error}")
"""


@dataclass(frozen=True)
class Cluster:
    """A Ray that this process has joined; `leave` ends it when `join` started it."""

    address: str
    workers: int
    leave: Callable[[], None]


def join(address: str, workers: int, seconds: float = CONNECT_SECONDS) -> Cluster:
    """Join the Ray at `address`: `local` starts one here, `auto` finds the one that this machine belongs to, or host:port.

    `workers` 0 are as many as the cluster has processor cores. A Ray that this process has joined before is used as it is.
    Raises UmbelError when there is no Ray, the cluster does not answer within `seconds`, or has fewer cores.
    """
    _check(address)
    global _guarded
    _guarded = _guarded or (address == LOCAL and "ray" not in sys.modules)
    try:
        with _environment(_variables()):
            import ray
    except ImportError as error:
        raise UmbelError("--engine ray needs Ray, which is not installed; pip install 'umbel[ray]'") from error
    if ray.is_initialized():
        return _sized(Cluster(address, workers, lambda: None))
    return _sized(_start(workers or cores()) if address == LOCAL else _connect(address, workers, seconds))


def _check(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if address in (LOCAL, AUTO) or (colon and host and "/" not in host and port.isdigit()):
        return
    raise UmbelError(
        f"a Ray's address is {LOCAL}, {AUTO} or host:port, got {address!r}; start the simulation on a machine of the cluster"
    )


def _start(workers: int) -> Cluster:
    import ray

    folder = new_folder()

    def leave() -> None:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)

    try:
        # A fleet's function may come from any module that this process can import.
        modules = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        with _environment({**_variables(), **modules}), _own_signals():
            ray.init(
                address=LOCAL,
                num_cpus=workers,
                num_gpus=0,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=folder,
            )
    except BaseException as error:
        leave()
        if isinstance(error, Exception):
            raise UmbelError(f"Ray did not start on this machine: {_line(str(error))}") from error
        raise
    return Cluster(LOCAL, workers, leave)


def new_folder() -> str:
    """A temporary folder for a Ray's log and sockets, whose paths may have about 100 characters: Ray takes 60 of them."""
    # macOS's own temporary folder leaves too few.
    return tempfile.mkdtemp(prefix="umbel-ray-", dir="/tmp" if sys.platform == "darwin" else None)  # noqa: S108


def _connect(address: str, workers: int, seconds: float) -> Cluster:
    import ray

    _probe(address, seconds)
    with _environment(_variables()), _own_signals():
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    return Cluster(address, workers, ray.shutdown)


def _probe(address: str, seconds: float) -> None:
    """Ray ends a process whose cluster does not answer: let that be another one."""
    what = "there is no Ray on this machine" if address == AUTO else f"no Ray answers at {address}"
    advice = "ray start --head starts one, and --address local one for this simulation alone"
    if address != AUTO:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), seconds).close()
        except (OSError, OverflowError) as error:
            raise UmbelError(f"{what} ({error}); {advice}") from error
    command = [sys.executable, "-c", PROBE, address]
    try:
        tried = subprocess.run(
            command, env=os.environ | QUIET, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UmbelError(f"{what} within {seconds:.0f} seconds; {advice}") from error
    if tried.returncode != 0:
        said = [line for line in tried.stderr.splitlines() if line.startswith("umbel: ")]
        reason = _line(said[0].removeprefix("umbel: ")) if said else f"exit code {tried.returncode}"
        raise UmbelError(f"{what} that can be joined ({reason}); {advice}")


def _sized(cluster: Cluster) -> Cluster:
    """The cluster with the number of its workers; leaves it when there are too few cores."""
    import ray

    there = int(ray.cluster_resources().get("CPU", 0))
    workers = cluster.workers or there
    if 1 <= workers <= there:
        return Cluster(cluster.address, workers, cluster.leave)
    cluster.leave()
    raise UmbelError(
        f"the Ray at {cluster.address} has {there} processor cores and {max(workers, 1)} workers were wanted; lower --workers"
    )


def _variables() -> Mapping[str, str]:
    return QUIET | GUARDED if _guarded else QUIET


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """With these variables, and then as it was."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself, from whoever had it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


def _line(text: str) -> str:
    """The first line with something in it."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
