"""Files and tests that the pages name are there."""

import re

import pytest

from tests.unit.docs.pages import ROOT, Page, written

PACKAGES = {"umbel": "shared", "umbel_server": "server", "umbel_edge": "edge_client", "umbel_sim": "simulations"}
_PACKAGE = re.compile(r"(umbel|umbel_server|umbel_edge|umbel_sim)(/(?!1/)[\w./-]+)?")
_PLACE = re.compile(r"(tests|simulations|shared|server|edge_client|docs|findings)/[\w./-]*")
_OBJECT = re.compile(r"(umbel_server|umbel_edge|umbel_sim)((?:\.[a-z_]\w*)+)(?:[.:]\w+)?")


@pytest.mark.parametrize(
    "page", [page for page in written() if page.name != "CHANGELOG.md"], ids=lambda page: page.name
)
def test_named_files_exist(page: Page) -> None:
    for span in page.spans():
        if (found := _PACKAGE.fullmatch(span)) and found[2]:
            assert (ROOT / PACKAGES[found[1]] / span).exists(), f"{page.name} names {span}"
        elif _PLACE.fullmatch(span) and "NAME" not in span:
            assert (ROOT / span).exists(), f"{page.name} names {span}"
        elif found := _OBJECT.fullmatch(span):
            path = ROOT / PACKAGES[found[1]] / (found[1] + found[2].replace(".", "/"))
            assert path.with_suffix(".py").is_file() or path.is_dir() or path.parent.with_suffix(".py").is_file(), span


def test_each_attack_has_a_test() -> None:
    page = next(page for page in written() if page.name == "SECURITY.md")
    rows = [line for line in page.text.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 20
    for row in rows:
        tests = re.findall(r"`([^`]+)`", row.rstrip("| ").rpartition("|")[2])
        assert tests, row
        for test in tests:
            path = ROOT / (test if "/" in test else f"tests/security/{test}")
            assert test.startswith("make ") or path.is_file(), f"{test} is not there: {row}"
