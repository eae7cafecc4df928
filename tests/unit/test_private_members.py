"""Tests use what the product offers: none reaches a private member of another object."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
OWN = {"self", "cls"}
ALLOWED = {"os._exit"}
"""os._exit is documented: the underscore is part of its name."""
PATCHES = {"getattr", "setattr", "delattr"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def reached(source: str) -> Iterator[str]:
    """Private members of other objects that Python source reads, imports or patches."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=owner, attr=name) if is_private(name):
                if not (isinstance(owner, ast.Name) and owner.id in OWN):
                    yield ast.unparse(node)
            case ast.ImportFrom(names=names):
                yield from (one.name for one in names if is_private(one.name))
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=[_, ast.Constant(str(name)), *_]):
                if called in PATCHES and is_private(name):
                    yield ast.unparse(node)


def test_no_test_reaches_a_private_member() -> None:
    found = [
        f"{path.relative_to(TESTS)}: {member}"
        for path in sorted(TESTS.rglob("*.py"))
        for member in reached(path.read_text())
        if member not in ALLOWED
    ]
    assert found == []


def test_every_way_to_a_private_member_is_seen() -> None:
    source = "from a import _b\nc._d\nself._e\nc().__class__\npatch.setattr(c, '_f', 1)\ngetattr(c, 'g')\n"
    assert sorted(reached(source)) == ["_b", "c._d", "patch.setattr(c, '_f', 1)"]
