"""Fresh Python environments, and programs that run in them."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
_CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | {
    "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"  # auditwheel looks for patchelf there
}


class Failed(Exception):
    """A program did not do what it should."""


class Environment:
    """A Python environment in a folder of its own; `name` says which one in what is printed."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.bin = folder / "bin"
        self._folder = folder
        tool("uv", "venv", "--quiet", "--seed", "--python", sys.executable, folder)

    def uv_install(self, *packages: str | Path) -> None:
        """Install with uv, whose cache makes it quick."""
        tool("uv", "pip", "install", "--quiet", "--python", self.bin / "python", *packages)

    def pip_install(self, *packages: str | Path) -> None:
        """Install with pip, as most people do."""
        self.run("pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", *packages)

    def run(self, program: str, *words: str | Path, code: int = 0, says: str = "", cwd: Path | None = None) -> str:
        """What a program of the environment prints; raises Failed unless it ends with `code` and `says` is in it."""
        return checked([self.bin / program, *words], code, says, cwd or self._folder)

    def size(self, *packages: str) -> float:
        """Megabytes (1,000,000 bytes on disk) of packages' folders, or of all that is installed."""
        (site,) = self._folder.glob("lib/python*/site-packages")
        folders = [site / package for package in packages] if packages else [site]
        paths = (path for folder in folders for path in folder.rglob("*") if path.is_file())
        return sum(path.stat().st_blocks * 512 for path in paths if "__pycache__" not in path.parts) / 1e6


def tool(program: str, *words: str | Path) -> str:
    """Run a program of the environment in which this runs; raises Failed when it fails."""
    return checked([TOOLS / program, *words], 0, "", ROOT)


def checked(command: Sequence[str | Path], code: int, says: str, cwd: Path) -> str:
    """Standard output of a command; raises Failed unless it ends with `code` and `says` is in what it printed."""
    ended = subprocess.run(command, cwd=cwd, env=_CLEAN, capture_output=True, text=True, check=False)
    said = ended.stdout + ended.stderr
    if ended.returncode != code or says not in said:
        words = " ".join(map(str, command))
        wanted = f"{code} and {says!r}" if says else str(code)
        raise Failed(f"{words}\nended with {ended.returncode}, expected {wanted}:\n{said[-4000:]}")
    return ended.stdout


class Steps:
    """Prints each step and how long it took."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def done(self, what: str) -> None:
        """The step that ended now."""
        now = time.monotonic()
        print(f"{now - self._start:6.1f} s  {what}", flush=True)
        self._start = now
