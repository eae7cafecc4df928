"""Python environments for engines that Umbel does not depend on, made once and kept in a folder."""

import json
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

INSTALL_SECONDS = 1200.0


class Unavailable(Exception):
    """An environment cannot be made: why, in a line."""


@dataclass(frozen=True)
class Venv:
    """What an environment holds; with `borrow` it sees the packages of the running one too, in the same versions."""

    name: str
    requirements: tuple[str, ...]
    borrow: bool = False


def python_of(venv: Venv, folder: Path) -> Path:
    """The interpreter of an environment in `folder`, which is made unless it is there; raises Unavailable."""
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
