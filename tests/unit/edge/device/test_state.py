"""What an agent remembers: across restarts, across versions, and when the storage is full."""

import sqlite3
import time
from pathlib import Path

import pytest

from umbel.enrolment import CLOCK_TOLERANCE
from umbel_edge.device.state import DATABASE, AgentState, Answer
from umbel_edge.device.storage import is_full


def test_begun_commands_are_remembered_in_their_order_until_they_are_answered(tmp_path: Path) -> None:
    state = AgentState(tmp_path / "state")
    later = time.time() + 60
    for id in ("b", "a", "c"):
        assert state.begin(id, later, id.encode()) is False
    state.answer("a", Answer("ack", b"done"))
    state.cancel("x", time.time())
    state.close()
    again = AgentState(tmp_path / "state")
    assert again.unanswered() == {"b": b"b", "c": b"c"}
    assert again.begin("b", later) is None
    assert again.begin("a", later) == Answer("ack", b"done")
    assert [again.is_cancelled(id) for id in ("x", "y")] == [True, False]
    again.forget("b")
    assert again.begin("b", later) is False
    again.close()


def test_the_state_of_an_older_agent_is_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    AgentState(folder).close()
    (folder / DATABASE).unlink()
    with sqlite3.connect(folder / DATABASE) as old:
        old.executescript(
            "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);"
            "CREATE TABLE inbox (id TEXT PRIMARY KEY, expires REAL NOT NULL, channel TEXT NOT NULL DEFAULT '',"
            " token BLOB NOT NULL DEFAULT x'');"
            "INSERT INTO facts VALUES ('schema', '1'), ('rounds', '7');"
        )
        old.execute("INSERT INTO inbox VALUES ('done', ?, 'ack', x'01'), ('begun', ?, '', x'')", [time.time()] * 2)
    old.close()
    state = AgentState(folder)
    assert state.fact("rounds") == "7"
    assert state.begin("done", 0.0) == Answer("ack", b"\x01")
    assert state.unanswered() == {"begun": b""}
    assert state.begin("new", time.time(), b"signed") is False
    state.close()
    AgentState(folder).close()


def test_storage_that_is_full_is_recognised_and_changes_nothing(tmp_path: Path) -> None:
    state = AgentState(tmp_path / "state")
    state.remember("kept", "yes")
    pages = state._database.execute("PRAGMA page_count").fetchone()[0]
    state._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.Error) as caught:
        state.remember("kept", "x" * 50_000)
    assert is_full(caught.value)
    assert state.fact("kept") == "yes"
    state.close()


def test_what_nobody_can_send_any_more_is_forgotten_and_never_taken_for_new(tmp_path: Path) -> None:
    state, now = AgentState(tmp_path / "state"), 1_000_000.0
    for id, expires in (("over", now - CLOCK_TOLERANCE - 1), ("late", now - 1), ("open", now + 60)):
        state.begin(id, expires, b"signed")
        state.answer(id, Answer("ack", b"done", 5))
    state.begin("unanswered", now - 10_000, b"signed")
    state.forget_old(now)
    assert [id for id in ("over", "late", "open") if state.known(id)] == ["late", "open"]
    assert state.unanswered() == {"unanswered": b"signed"}
    state.forget_old(now - 50_000)  # a clock that went back
    state.close()
    again = AgentState(tmp_path / "state")
    assert not again.remembers(10, now - CLOCK_TOLERANCE - 1)
    assert again.remembers(10, now - 1)
    assert again.answered == 5
    again.close()


def test_answers_that_are_noted_in_another_order_are_none_too_few(tmp_path: Path) -> None:
    """Two threads answer; a lower number that is written later may not look like a loss of memory."""
    state = AgentState(tmp_path / "state")
    for sequence in (5, 9, 7):
        state.note_answered(sequence)
    assert state.answered == 9
    state.close()


def test_of_before_its_memory_began_a_device_remembers_nothing(tmp_path: Path) -> None:
    state = AgentState(tmp_path / "state")
    assert state.remembers(1, 1.0)
    state.begin_memory(100)
    assert not state.remembers(100, 1e12)
    assert state.remembers(101, 1e12)
    state.close()
