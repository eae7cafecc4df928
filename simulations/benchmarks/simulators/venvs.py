"""Python environments for engines that Umbel does not depend on, made once and kept in a folder."""

import json
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

INSTALL_SECONDS = 1200.0


class Unavailable(Exception):
    """An environment cannot be made; the message is the reason, in one line."""


@dataclass(frozen=True)
class Venv:
    """An environment and its requirements; with `borrow` it can also import the packages of the running environment."""

    name: str
    requirements: tuple[str, ...]
    borrow: bool = False


def python_of(venv: Venv, folder: Path) -> Path:
    """The Python interpreter of an environment in `folder`, which is made if it is missing; raises Unavailable."""
    home = folder / venv.name
    python, marker = home / "bin" / "python", home / "umbel.json"
    wanted = json.dumps([sys.version, sysconfig.get_path("purelib") if venv.borrow else "", *venv.requirements])
    if python.exists() and marker.exists() and marker.read_text() == wanted:
        return python
    folder.mkdir(parents=True, exist_ok=True)
    _run(sys.executable, "-m", "venv", "--clear", str(home))
    if venv.borrow:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        borrowed = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (home / "lib" / version / "site-packages" / "borrowed.pth").write_text(borrowed)
    _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *venv.requirements)
    marker.write_text(wanted)
    return python


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"installing took over {INSTALL_SECONDS:.0f} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
        raise Unavailable((lines or done.stderr.strip().splitlines() or ["pip failed"])[-1])
