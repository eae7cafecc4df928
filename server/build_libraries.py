"""Compiles Umbel's C when Umbel is built or installed.

Without a C compiler the server aggregates in NumPy, and simulations train on interpreters: both slower. UMBEL_PURE=1 in the
environment compiles nothing, for the wheel that installs anywhere.
"""

import ctypes
import os
import shlex
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parents[1]
FLAGS = ["-O3", "-fopenmp-simd", "-fno-math-errno", "-fPIC", "-shared", "-pthread"]
VARIANTS: tuple[list[str], ...] = (["-DUMBEL_WIDE"], [])
"""Compiled for several generations of x86-64 at once where compiler and linker can."""


@dataclass(frozen=True)
class Library:
    """A C file and what is made of it, relative to ROOT; `symbol` is a function of it."""

    source: str
    made: str
    symbol: str


LIBRARIES = (
    Library(
        "server/umbel_server/aggregation/passes.c", "server/umbel_server/aggregation/libpasses.so", "umbel_squares"
    ),
    Library(
        "simulations/umbel_sim/engines/native/net.c",
        "simulations/umbel_sim/engines/native/libnet.so",
        "umbel_net_train",
    ),
)


class LibrariesHook(BuildHookInterface):  # type: ignore[misc]
    """Hatchling's hook: adds the libraries to a wheel, or leaves them beside their sources for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the build."""
        if self.target_name != "wheel" or os.environ.get("UMBEL_PURE") == "1":
            return
        for library in LIBRARIES:
            if not compiled(library):
                self.app.display_warning(f"no working C compiler was found for {library.source}: Umbel will be slower")
                continue
            build_data["artifacts"].append(f"/{library.made}")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compiled(library: Library, root: Path = ROOT) -> bool:
    """Make a library; whether it works. One that does not is removed."""
    made = root / library.made
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[:1]
    for command in (compiler, ["cc"]):
        for variant in VARIANTS:
            new = made.with_suffix(".new")
            try:
                run = subprocess.run(
                    [*command, *FLAGS, *variant, str(root / library.source), "-o", str(new), "-lm"],
                    capture_output=True,
                    check=False,
                )
            except OSError:
                break
            if run.returncode == 0 and _loads(new, library.symbol):
                new.replace(made)
                return True
            new.unlink(missing_ok=True)
    made.unlink(missing_ok=True)
    return False


def _loads(path: Path, symbol: str) -> bool:
    try:
        return hasattr(ctypes.CDLL(str(path)), symbol)
    except OSError:
        return False
