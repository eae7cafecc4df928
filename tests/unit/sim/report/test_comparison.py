"""Variants side by side."""

import json
from pathlib import Path

import pytest

from tests.simulated import result
from umbel.errors import UmbelError
from umbel_sim.report import comparison
from umbel_sim.report.result import Result, Variant

GOAL = {"until": "accuracy", "at_least": 0.6}


def of(*bests: float) -> tuple[Result, ...]:
    return tuple(result(4, seed=seed, best=best, settings=GOAL) for seed, best in enumerate(bests))


def test_a_row_has_medians_over_seeds() -> None:
    (row,) = comparison.rows([Variant({"learning_rate": 0.1}, of(0.7, 0.9, 0.8))])
    assert row["learning_rate"] == 0.1
    assert (row["seeds"], row["rounds"], row["bytes"]) == (3, 4, 7600)
    assert row["accuracy"] == pytest.approx(0.8)
    assert (row["rounds to 0.6"], row["hours to it"]) == (3, 1.5)


def test_a_goal_that_most_seeds_reach_has_a_median_and_one_that_half_reach_none() -> None:
    rows = comparison.rows([Variant({}, of(*bests)) for bests in ((0.6, 0.9, 0.1), (0.9, 0.1), (0.1, 0.2, 0.9))])
    assert [row["rounds to 0.6"] for row in rows] == [4, None, None]


def test_results_without_held_out_examples_have_no_figure() -> None:
    (row,) = comparison.rows([Variant({}, (result(2, held_out=False),))])
    assert (row["accuracy"], row["loss"]) == (None, None)


def test_a_comparison_is_saved_with_each_of_its_simulations(tmp_path: Path) -> None:
    found = [Variant({"partition": "shards:2", "data": "a/b"}, (result(1, seed=3),))]
    rows = comparison.save(found, tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text()) == rows
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert [path.parent.name for path in tmp_path.glob("*/report.html")] == ["partition=shards:2_data=a-b_seed=3"]
    (tmp_path / "taken").write_text("")
    with pytest.raises(UmbelError, match="cannot be written"):
        comparison.save(found, tmp_path / "taken")
