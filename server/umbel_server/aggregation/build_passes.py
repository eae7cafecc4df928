"""Compiles `passes.c` when Umbel is built or installed; without a C compiler Umbel does the same in NumPy."""

import ctypes
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path(__file__).with_name("passes.c")
LIBRARY = Path(__file__).with_name("libpasses.so")
FLAGS = ["-O3", "-fopenmp-simd", "-fPIC", "-shared", "-pthread"]
VARIANTS: tuple[list[str], ...] = (["-DUMBEL_CLONES"], [])
"""Compiled for several generations of x86-64 at once where compiler and linker can."""


class PassesHook(BuildHookInterface):  # type: ignore[misc]
    """Hatchling's hook: adds the library to a wheel, or leaves it beside its source for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the build."""
        if self.target_name != "wheel":
            return
        if not compiled():
            self.app.display_warning("no working C compiler was found: Umbel's server will aggregate in NumPy")
            return
        path = LIBRARY.relative_to(self.root)
        build_data["artifacts"].append(f"/{path}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compiled() -> bool:
    """Make the library; whether it works. One that does not is removed."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[:1]
    for command in (compiler, ["cc"]):
        for variant in VARIANTS:
            new = LIBRARY.with_suffix(".new")
            try:
                made = subprocess.run(
                    [*command, *FLAGS, *variant, str(SOURCE), "-o", str(new)], capture_output=True, check=False
                )
            except OSError:
                break
            if made.returncode == 0 and _works(new):
                new.replace(LIBRARY)
                return True
            new.unlink(missing_ok=True)
    LIBRARY.unlink(missing_ok=True)
    return False


def _works(library: Path) -> bool:
    try:
        squares = ctypes.CDLL(str(library)).umbel_squares
    except (OSError, AttributeError):
        return False
    squares.restype = ctypes.c_double
    found: float = squares(ctypes.c_size_t(2), (ctypes.c_float * 2)(3.0, 4.0), ctypes.c_int(1))
    return found == 25.0
