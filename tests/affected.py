"""The tests of what was changed: `python -m tests.affected [BASE]` prints their paths.

Tests lie in folders of the same names as the rooms of the product. A changed module stands for its room and for the rooms of
the modules that import it; a changed test for itself. Without a change there is nothing to run but the unit tests.
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import grimp

ROOT = Path(__file__).parent.parent
PARTS = {"umbel": "shared", "umbel_server": "server", "umbel_edge": "edge", "umbel_sim": "sim"}
KINDS = ("unit", "contract")


def changed_since(base: str) -> list[PurePosixPath]:
    """Files that differ from the commit where this branch left `base`, committed or not, and new ones."""
    left = _git("merge-base", base, "HEAD")[0]
    names = _git("diff", "--name-only", left) + _git("ls-files", "--others", "--exclude-standard")
    return [PurePosixPath(name) for name in names]


def tests_of(changed: Iterable[PurePosixPath]) -> list[str]:
    """Paths of the tests of changed files, below the root of the repository."""
    graph = grimp.build_graph(*PARTS)
    paths: set[PurePosixPath] = set()
    for file in changed:
        if file.parts[0] == "tests":
            paths |= {file} if file.name.startswith("test_") else {file.parent}
        elif (module := _module(file)) in graph.modules:
            for one in {module} | graph.find_modules_that_directly_import(module):
                paths |= _tests_of_module(one)
    found = {path for path in paths if (ROOT / path).exists()} or {PurePosixPath("tests/unit")}
    return sorted(str(path) for path in found if not found & set(path.parents))


def _module(file: PurePosixPath) -> str:
    """The dotted name of a Python file of the product: without the folder of its distribution, and without __init__."""
    parts = file.with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts and parts[-1] == "__init__" else parts)


def _tests_of_module(module: str) -> set[PurePosixPath]:
    """The folder of its room; where a part has no rooms, or the module lies in none, the test files of its name."""
    part, *rooms = module.split(".")
    found = set()
    for kind in KINDS:
        folder = PurePosixPath("tests", kind, PARTS[part])
        found |= {folder / rooms[0]} if rooms else {folder}
        if rooms:
            name = f"test_{rooms[-1]}.py"
            found |= {PurePosixPath(path.relative_to(ROOT).as_posix()) for path in (ROOT / folder).rglob(name)}
    return found


def _git(*arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()


if __name__ == "__main__":
    print(*tests_of(changed_since(sys.argv[1] if len(sys.argv) > 1 else "origin/main")))
