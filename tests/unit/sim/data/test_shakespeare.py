from pathlib import Path

import numpy as np
import pytest

from umbel import Task, TensorSpec
from umbel.errors import UmbelError
from umbel_sim.data import load
from umbel_sim.data.shakespeare import CHARACTERS, FILLING, FIRST, OTHER, VOCABULARY_SIZE, encode, shakespeare, spoken
from umbel_sim.partitions import partition

PLAY = """First Citizen:
Before we proceed any further,
hear me speak.

All:
Speak, speak.

First Citizen:
You are all resolved: rather to die
than to famish?

EXIT:

All:
Resolved.
"""


@pytest.fixture
def play(tmp_path: Path) -> Path:
    path = tmp_path / "play.txt"
    path.write_text(PLAY)
    return path


def task(window: int, target: tuple[int, ...]) -> Task:
    return Task("trial", lambda: None, "mse", TensorSpec((window,), "int32"), TensorSpec(target, "int32"))


def decode(codes: np.ndarray) -> str:
    return "".join("_" if code == FILLING else "#" if code == OTHER else CHARACTERS[code - FIRST] for code in codes)


def test_all_that_a_role_says_is_its_text(play: Path) -> None:
    roles = spoken(play)
    assert list(roles) == ["First Citizen", "All"]
    assert roles["All"] == "Speak, speak.\nResolved."
    assert roles["First Citizen"].endswith("You are all resolved: rather to die\nthan to famish?")


def test_the_vocabulary_is_fixed() -> None:
    assert (VOCABULARY_SIZE, len(set(CHARACTERS))) == (82, 80)
    assert encode("\na}").tolist() == [2, FIRST + CHARACTERS.index("a"), 81]
    assert encode("é$\0🎭").tolist() == [OTHER] * 4


def test_every_character_is_predicted_from_those_before_it(play: Path) -> None:
    data = load(f"shakespeare:{play}", task(8, ()))
    text = spoken(play)["All"]
    of_all = data.keys == 1
    assert data.key_names == ("First Citizen", "All")
    assert decode(data.train["y"][of_all]) == text[: len(text) - len(text) // 5]
    assert [decode(x) for x in data.train["x"][of_all][:2]] == ["_" * 8, "_" * 7 + "S"]
    assert decode(data.train["x"][of_all][10]) == text[2:10]
    assert np.array_equal(data.labels, data.keys)


def test_the_last_fifth_of_every_role_is_held_out(play: Path) -> None:
    data = load(f"shakespeare:{play}", task(8, ()))
    held_out = "".join(text[len(text) - len(text) // 5 :] for text in spoken(play).values())
    assert decode(data.test["y"]) == held_out


def test_sequences_are_one_place_on_and_cover_the_text(play: Path) -> None:
    data = load(f"shakespeare:{play}", task(8, (8,)))
    text = spoken(play)["First Citizen"]
    text = text[: len(text) - len(text) // 5]
    x, y = (data.train[name][data.keys == 0] for name in "xy")
    assert np.array_equal(x[:, 1:], y[:, :-1])
    assert [decode(row) for row in x[:2]] == [text[:8], text[8:16]]
    assert decode(x[-1]) + decode(y[-1])[-1] == text[-9:]
    assert len(x) == -(-(len(text) - 1) // 8)


def test_a_role_that_says_little_is_filled_from_the_left(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("A:\nHo!\n\nB:\nx\n")
    data = shakespeare(tmp_path / "short.txt", task(6, (6,)))
    assert [decode(data.train[name][0]) for name in "xy"] == ["____Ho", "___Ho!"]
    assert (data.owners, data.test) == (1, {})


def test_windows_are_of_80_characters_unless_the_task_says_otherwise(play: Path) -> None:
    assert load(f"shakespeare:{play}").train["x"].shape[1] == 80


def test_a_device_is_a_role(play: Path) -> None:
    data = load(f"shakespeare:{play}")
    fleet = partition("natural", data, 2, 0)
    assert [fleet.size(device) for device in range(2)] == [np.sum(data.keys == 0), np.sum(data.keys == 1)]


def test_the_text_is_found_in_the_folder_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path))
    (tmp_path / "tinyshakespeare.txt").write_text(PLAY)
    assert load("shakespeare").owners == 2


def test_what_cannot_be_had_or_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network() -> Path:
        raise Exception("URL fetch failure")

    monkeypatch.delenv("UMBEL_DATA", raising=False)
    with pytest.raises(UmbelError, match="could not be fetched: URL fetch failure; name a text with speaking roles"):
        shakespeare(None, None, no_network)
    with pytest.raises(UmbelError, match=r"none.txt: expected a text in UTF-8"):
        load(f"shakespeare:{tmp_path / 'none.txt'}")
    (tmp_path / "prose.txt").write_text("It was the best of times: it was the worst of times.\n")
    with pytest.raises(UmbelError, match=r"prose.txt: expected paragraphs that begin with a line 'ROLE NAME:'"):
        load(f"shakespeare:{tmp_path / 'prose.txt'}")


def test_a_task_of_another_kind_is_refused(play: Path) -> None:
    with pytest.raises(UmbelError, match=r"should take characters, int32\[80\].*aims at int32\[3\]"):
        load(f"shakespeare:{play}", task(8, (3,)))
