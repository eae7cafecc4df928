"""Pictures and the page are made of whatever a simulation gives."""

import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.simulated import result
from umbel_sim.report import page, plots
from umbel_sim.report.result import Result

RESULTS = {
    "one round": result(1),
    "no round, and nothing held out": result(0, held_out=False),
    "no metric": result(3, ()),
    "many rounds": result(500),
    "many devices": result(3, devices=5000, participation=np.arange(5000, dtype=np.int32)),
    "a goal that was not reached": result(3, settings={"until": "accuracy", "at_least": 0.99}),
    "failed": result(2, state="failed", reason="round 3: the loss of device-1 is nan"),
    "one device, and nothing on it": result(3, devices=1, on_devices=({"device": 0, "examples": 1.0},)),
    "an error as metric": result(3, ("mean_absolute_error",), best=1e6),
}


@pytest.mark.parametrize("name", [name for name in RESULTS if name != "failed"])
def test_every_picture_is_made_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in plots.ALL.values():
            draw(RESULTS[name]).draw_without_rendering()


def test_the_same_result_gives_the_same_picture() -> None:
    pictures = [plots.png(plots.participation(result())) for _ in range(2)]
    assert pictures[0] == pictures[1]
    assert pictures[0].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "curves",
    [
        [("one", [result(1)])],
        [("short", [result(2), result(5, seed=1)]), ("long", [result(9)])],
        [(f"variant {number}", [result(2)]) for number in range(12)],
        [("nothing held out", [result(2, held_out=False)])],
    ],
)
def test_variants_are_drawn_side_by_side(curves: list[tuple[str, list[Result]]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.comparison(curves, "accuracy").draw_without_rendering()


class _Outside(HTMLParser):
    """What a page would fetch, and the scripts that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data")]


@pytest.mark.parametrize("name", ["one round", "no metric", "a goal that was not reached", "failed"])
def test_the_page_holds_everything_itself(name: str) -> None:
    made = page.page(RESULTS[name], {"learning": b"png", "work": b"png"})
    found = _Outside()
    found.feed(made)
    assert len(found.addresses) == 2
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert "url(" not in made
    assert "@import" not in made
    assert RESULTS[name].reason in made
    assert re.search(r"20 virtual devices", made)


def test_the_page_escapes_what_people_wrote() -> None:
    evil = '<script>alert("&")</script>'
    made = page.page(
        result(
            1,
            task=evil,
            data=evil,
            reason=evil,
            state=f'"{evil}',
            settings={"partition": evil, "mix": (evil,), "availability": evil, "strategy": evil},
        ),
        {f'">{evil}': b"png"},
    )
    assert "<script" not in made
    assert made.count("&lt;script&gt;") >= 8
    found = _Outside()
    found.feed(made)
    assert "script" not in found.tags


def test_a_saved_result_is_complete_and_readable(tmp_path: Path) -> None:
    import json

    import pandas as pd

    from umbel.tensors import load

    given = result(3, metrics=("accuracy", "top_k"))
    given.save(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("result.json", "weights.safetensors", "rounds.parquet", "devices.parquet", "report.html"),
        *(f"{name}.png" for name in plots.ALL),
    }
    found = json.loads((folder / "result.json").read_text())
    assert found["summary"] == given.summary()
    assert found["settings"]["devices"] == 20
    rounds = pd.read_parquet(folder / "rounds.parquet")
    assert rounds["test_accuracy"].tolist() == pytest.approx([0, 0.3, 0.6, 0.9])
    assert len(pd.read_parquet(folder / "devices.parquet")) == 20
    np.testing.assert_array_equal(load((folder / "weights.safetensors").read_bytes())["dense/kernel"], np.ones((3, 2)))


def test_tables_are_csv_files_where_pyarrow_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    monkeypatch.setattr("umbel_sim.report.result.find_spec", lambda name: None)
    result(3, metrics=("accuracy",)).save(tmp_path)
    assert pd.read_csv(tmp_path / "rounds.csv")["test_accuracy"].tolist() == pytest.approx([0, 0.3, 0.6, 0.9])
    assert len(pd.read_csv(tmp_path / "devices.csv")) == 20
    assert not list(tmp_path.glob("*.parquet"))


def test_a_goal_is_found_in_the_rows() -> None:
    given = result(4, best=0.8, settings={"until": "accuracy", "at_least": 0.39})
    assert given.rounds_to(0.39) == 2
    assert given.hours_to(0.39) == 1.0
    assert given.rounds_to(0.81) is None
    assert given.hours_to(0.81) is None
    summary = given.summary()
    assert (summary["goal"], summary["rounds_to_goal"], summary["updates"]) == ("accuracy>=0.39", 2, 40)
    assert summary["wasted_share"] == pytest.approx(0.1)
