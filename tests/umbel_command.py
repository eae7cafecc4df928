"""`umbel` and `umbel-agent` for tests: each command in a process of its own, forked from one that has imported the command's libraries.

A command that starts from nothing imports for half a second; tests run hundreds.
"""

import json
import multiprocessing
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

_LIBRARIES = ["click", "typer", "rich.table", "httpx", "msgspec", "numpy", "cryptography.x509", "joserfc.jwk"]
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(_LIBRARIES)


class Umbel:
    """`umbel`, or the command of another `module`, on a server by its state folder."""

    def __init__(self, state: Path | None = None, columns: int = 200, module: str = "umbel_server.cli") -> None:
        self._module = module
        self._own = {"COLUMNS": str(columns)} | ({"UMBEL_STATE": str(state)} if state is not None else {})

    def run(self, *words: str | Path, **environment: str) -> CompletedProcess[str]:
        """What a command printed, and its exit code. `environment` replaces the variable UMBEL_STATE, too."""
        own = (self._own if not environment else {"COLUMNS": self._own["COLUMNS"]}) | environment
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            arguments = (self._module, [*map(str, words)], os.getcwd(), dict(os.environ) | own, str(out), str(err))
            process = _forks.Process(target=_command, args=arguments)
            process.start()
            process.join(60)
            if process.exitcode is None:
                process.kill()
                process.join()
            return CompletedProcess(["umbel", *words], process.exitcode or 0, out.read_text(), err.read_text())

    def __call__(self, *words: str | Path, code: int = 0, **environment: str) -> str:
        """What a command that ends with `code` printed."""
        done = self.run(*words, **environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def json(self, *words: str | Path, code: int = 0, **environment: str) -> Any:
        """The JSON that a command that ends with `code` printed."""
        done = self.run(*words, "--json", **environment)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)


def _command(module: str, words: list[str], folder: str, environment: dict[str, str], out: str, err: str) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["umbel", *words]
    import_module(module).main()  # not imported before, as it looks at the environment
