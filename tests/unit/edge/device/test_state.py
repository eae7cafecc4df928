"""The agent's state: after a restart, after an upgrade, and when the storage is full."""

import sqlite3
import time
from pathlib import Path

import pytest

from umbel import signing
from umbel.enrolment import CLOCK_TOLERANCE
from umbel.errors import UmbelError
from umbel_edge.device.database import DAMAGED, DATABASE, StateDatabase
from umbel_edge.device.full_storage import is_full
from umbel_edge.device.inbox import Answer, Begun
from umbel_edge.device.state import AgentState


def test_begun_commands_are_remembered_in_their_order_until_they_are_answered(tmp_path: Path) -> None:
    state = AgentState(tmp_path / "state")
    later = time.time() + 60
    for id in ("b", "a", "c"):
        assert state.inbox.begin(id, later, id.encode()) is Begun.NEW
    state.inbox.answer("a", Answer("ack", b"done"))
    state.cancellations.add("x", time.time())
    state.close()
    again = AgentState(tmp_path / "state")
    assert again.inbox.unanswered() == {"b": b"b", "c": b"c"}
    assert again.inbox.begin("b", later) is Begun.UNANSWERED
    assert again.inbox.answer_of("b") is None
    assert again.inbox.begin("a", later) is Begun.ANSWERED
    assert again.inbox.answer_of("a") == Answer("ack", b"done")
    assert [assignment in again.cancellations for assignment in ("x", "y")] == [True, False]
    again.inbox.forget("b")
    assert again.inbox.begin("b", later) is Begun.NEW
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
    assert state.rounds == 7
    assert state.inbox.begin("done", 0.0) is Begun.ANSWERED
    assert state.inbox.answer_of("done") == Answer("ack", b"\x01")
    assert state.inbox.unanswered() == {"begun": b""}
    assert state.inbox.begin("new", time.time(), b"signed") is Begun.NEW
    state.close()
    AgentState(folder).close()


@pytest.mark.parametrize(
    ("schema", "sentence"), [("3", "made by a newer umbel-agent"), ("x", "not a database of umbel-agent")]
)
def test_a_database_that_is_not_understood_is_refused_and_the_folder_let_go(
    tmp_path: Path, schema: str, sentence: str
) -> None:
    folder = tmp_path / "state"
    state = AgentState(folder)
    known = state.database.fact("schema")
    state.database.remember("schema", schema)
    state.close()
    for _ in range(2):
        with pytest.raises(UmbelError, match=sentence):
            AgentState(folder)
    with sqlite3.connect(folder / DATABASE) as mended:
        mended.execute("UPDATE facts SET value = ? WHERE name = 'schema'", (known,))
    mended.close()
    AgentState(folder).close()


def test_a_folder_belongs_to_the_device_that_claimed_it_first(tmp_path: Path) -> None:
    state = AgentState(tmp_path / "state")
    assert [state.claim_device(device) for device in ("one", "two", "one")] == ["one"] * 3
    state.close()


def test_storage_that_is_full_is_recognised_and_changes_nothing(tmp_path: Path) -> None:
    database = StateDatabase(tmp_path)
    database.remember("kept", "yes")
    pages = database.rows("PRAGMA page_count")[0][0]
    database.rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.Error) as caught:
        database.remember("kept", "x" * 50_000)
    assert is_full(caught.value)
    assert database.fact("kept") == "yes"
    database.close()


def test_what_nobody_can_send_any_more_is_forgotten_and_never_taken_for_new(tmp_path: Path) -> None:
    state, now = AgentState(tmp_path / "state"), 1_000_000.0
    for id, expires in (("over", now - CLOCK_TOLERANCE - 1), ("late", now - 1), ("open", now + 60)):
        state.inbox.begin(id, expires, b"signed")
        state.inbox.answer(id, Answer("ack", b"done", 5))
    state.inbox.begin("unanswered", now - 10_000, b"signed")
    state.forget_old(now)
    assert [id for id in ("over", "late", "open") if state.inbox.answer_of(id)] == ["late", "open"]
    assert state.inbox.unanswered() == {"unanswered": b"signed"}
    state.forget_old(now - 50_000)  # a clock that went back
    state.close()
    again = AgentState(tmp_path / "state")
    assert not again.inbox.remembers(10, now - CLOCK_TOLERANCE - 1)
    assert again.inbox.remembers(10, now - 1)
    assert again.inbox.last_answered == 5
    again.close()


def test_answers_that_are_noted_in_another_order_are_none_too_few(tmp_path: Path) -> None:
    """Two threads answer; a lower number that is written later may not look like a loss of memory."""
    state = AgentState(tmp_path / "state")
    for sequence in (5, 9, 7):
        state.inbox.note_answered(sequence)
    assert state.inbox.last_answered == 9
    state.close()


def test_of_before_its_memory_began_a_device_remembers_nothing(tmp_path: Path) -> None:
    state = AgentState(tmp_path / "state")
    assert state.inbox.remembers(1, 1.0)
    state.inbox.begin_memory(100)
    assert not state.inbox.remembers(100, 1e12)
    assert state.inbox.remembers(101, 1e12)
    state.close()


@pytest.mark.parametrize("damage", ["zeros", "cut in half", "another page"])
def test_a_damaged_database_is_set_aside_and_the_identity_kept(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = AgentState(tmp_path / "state")
    known = signing.fingerprint(state.key)
    with state.change():
        for number in range(200):
            state.inbox.begin(f"c{number}", time.time() + 60, b"x" * 500)
    state.close()
    path = tmp_path / "state" / DATABASE
    whole = path.read_bytes()
    page = len(whole) // 4096 // 2 * 4096
    damaged = {
        "zeros": bytes(len(whole)),
        "cut in half": whole[: len(whole) // 2],
        "another page": whole[:page] + b"\xff" * 4096 + whole[page + 4096 :],
    }[damage]
    path.write_bytes(damaged)
    again = AgentState(tmp_path / "state")
    assert signing.fingerprint(again.key) == known
    assert again.epoch == 0
    assert not again.inbox.unanswered()
    assert (tmp_path / "state" / DAMAGED).read_bytes() == damaged
    assert "The device keeps its identity" in caplog.text
    again.close()
    caplog.clear()
    AgentState(tmp_path / "state").close()
    assert not caplog.records


def test_a_file_that_cannot_be_opened_is_not_set_aside(tmp_path: Path) -> None:
    (tmp_path / DATABASE).mkdir()
    with pytest.raises(UmbelError, match="not a database of umbel-agent"):
        StateDatabase(tmp_path)
    assert (tmp_path / DATABASE).is_dir()
