"""Stock Flower on loopback: a real `flower-superlink` and real `flower-supernode`s that run a Flower app folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil
import tomli_w

from umbel.errors import UmbelError
from umbel_sim.demo.processes import Processes, free_port, program
from umbel_sim.engines import ray_cluster

START_SECONDS, END_SECONDS = 30.0, 5.0
HOST = "127.0.0.1"
Scalar = str | int | float | bool


class StockFlower:
    """A SuperLink and one SuperNode for each of `nodes`, whose entries are the nodes' configurations; or, with none,
    Flower's own simulation, configured by `simulation` ("num-supernodes", ...), which runs nodes in a Ray on this machine.

    Everything they write is under `folder`: their logs, and Flower's home; Ray's own files end with the block, as every
    process does. Nothing is installed at run time and nothing is sent to Flower's and Ray's makers.
    """

    def __init__(
        self,
        folder: Path,
        nodes: Sequence[Mapping[str, Scalar]] = (),
        simulation: Mapping[str, Scalar] | None = None,
    ) -> None:
        self._folder, self._nodes, self._simulation = folder, nodes, simulation
        self._processes = Processes(folder)
        self._variables = {
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            # Flower starts its own programs by name.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        }
        self._ray = ray_cluster.new_folder() if simulation else None
        if self._ray is not None:
            self._variables |= {"RAY_TMPDIR": self._ray, **ray_cluster.QUIET, **ray_cluster.GUARDED}

    def __enter__(self) -> "StockFlower":
        self._processes.__enter__()
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def run(self, app: Path, config: Mapping[str, Scalar], seconds: float) -> str:
        """`flwr run` the app folder with these entries of its configuration until the run ends; returns its log.

        Raises UmbelError when it fails or takes longer than `seconds`.
        """
        overrides = self._folder / "run.toml"
        overrides.write_text(tomli_w.dumps(dict(config)))
        command = [
            *self._env(),
            program("flwr"),
            "run",
            str(app),
            "loopback",
            "--run-config",
            str(overrides),
            "--stream",
        ]
        if self._simulation:
            command += ["--federation-config", _pairs(self._simulation)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise UmbelError(f"flwr run took over {seconds:.0f} s; read {self._processes.log('superlink')}") from error
        self._processes.check()
        output = ended.stdout + ended.stderr
        if ended.returncode != 0:
            raise UmbelError(f"flwr run ended with exit code {ended.returncode}: {output.strip()[-2000:]}")
        return output

    def _start(self) -> None:
        port = free_port()
        address = f"{HOST}:{port}"
        home = Path(self._variables["FLWR_HOME"])
        home.mkdir(parents=True)
        connections = {"superlink": {"default": "loopback", "loopback": {"address": address, "insecure": True}}}
        (home / "config.toml").write_text(tomli_w.dumps(connections))
        superlink = [program("flower-superlink"), "--insecure", "--host", HOST, "--port", str(port)]
        superlink += ["--disable-runtime-dependency-installation", *(["--simulation"] if self._simulation else [])]
        self._processes.start("superlink", 0, *self._env(), *superlink)
        self._processes.until(lambda: _answers(port), START_SECONDS, "starting the SuperLink", "superlink")
        for number, node in enumerate(self._nodes):
            supernode = [program("flower-supernode"), "--insecure", "--superlink", address]
            supernode += ["--host", HOST, "--port", str(free_port())]
            if node:
                supernode += ["--node-config", _pairs(node)]
            self._processes.start(f"supernode-{number}", 1, *self._env(), *supernode)

    def _stop(self) -> None:
        # A SuperLink and a SuperNode leave it to the programs they started to notice that they are gone.
        started = [process for process in psutil.Process().children(recursive=True) if self._is_ours(process)]
        self._processes.stop()
        _, left = psutil.wait_procs(started, timeout=END_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=END_SECONDS)
        if self._ray is not None:
            shutil.rmtree(self._ray, ignore_errors=True)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("FLWR_HOME") == self._variables["FLWR_HOME"]
        except psutil.Error:
            return False

    def _env(self) -> list[str]:
        return ["/usr/bin/env", *(f"{name}={value}" for name, value in self._variables.items())]


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def _pairs(entries: Mapping[str, Scalar]) -> str:
    return " ".join(f"{name}={_toml(value)}" for name, value in entries.items())


def _toml(value: Scalar) -> str:
    return tomli_w.dumps({"value": value}).partition("=")[2].strip()
