"""The import graph of the four packages: what import-linter's contracts in pyproject.toml cannot express."""

import re
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

PACKAGES = ("umbel", "umbel_server", "umbel_edge", "umbel_sim")
PUBLIC = {"app", "serverapp", "clientapp", "simulation"}
"""Modules of flwr that it documents."""


@pytest.fixture
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def cycle_in(graph: grimp.ImportGraph) -> list[str]:
    """The modules of one circle of imports, those for type checkers included; empty when there is none."""
    try:
        TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_through_others(graph: grimp.ImportGraph) -> None:
    assert cycle_in(graph) == []


def test_a_circle_through_a_package_and_its_module_is_found(graph: grimp.ImportGraph) -> None:
    graph.add_import(importer="umbel_server.compiler.stages", imported="umbel_server.compiler")
    assert {"umbel_server.compiler", "umbel_server.compiler.stages"} <= set(
        cycle_in(graph)
    )  # the longer way round counts


def test_one_module_goes_below_flowers_public_api(graph: grimp.ImportGraph) -> None:
    below = {
        importer
        for importer in graph.find_modules_that_directly_import("flwr")
        for detail in graph.get_import_details(importer=importer, imported="flwr")
        for part in re.findall(r"\bflwr\b(?:\.(\w+))?", detail["line_contents"])
        if part not in PUBLIC
    }
    assert below == {"umbel_server.flower.internals"}
