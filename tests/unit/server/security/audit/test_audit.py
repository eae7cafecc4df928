"""Whatever is done to the audit log behind the server's back is found: changed, removed, swapped, cut off, written anew."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session

from tests.empty_database import empty_database
from umbel import signing
from umbel_server.security.audit.chain import START, Entry, Head, Walk, chained
from umbel_server.security.audit.log import REFUSALS, SEAL, Audit, NotRecorded
from umbel_server.security.keyring import KEY, Keyring
from umbel_server.storage.database import AuditEntry, Database

TEXT = st.text(max_size=8)
FIELDS = ("at", "who", "action", "subject", "population", "detail", "outcome", "previous", "hash")


def chain_of(contents: list[tuple[float, str, str, str]]) -> list[Entry]:
    entries: list[Entry] = []
    previous = START
    for number, (at, who, subject, outcome) in enumerate(contents, 1):
        entry = chained(Entry(number, at, who, "run.start", subject, "home", "{}", outcome, previous))
        entries.append(entry)
        previous = entry.hash
    return entries


CHAINS = st.lists(st.tuples(st.floats(allow_nan=False), TEXT, TEXT, TEXT), min_size=2, max_size=12).map(chain_of)


def fault_of(entries: list[Entry], head: Entry) -> str:
    walk = Walk([Head(head.sequence, head.hash)])
    fault = walk.take(entries) or walk.end()
    return fault.sentence if fault is not None else ""


@given(CHAINS)
def test_a_chain_is_whole(entries: list[Entry]) -> None:
    assert fault_of(entries, entries[-1]) == ""


@given(CHAINS, st.data())
def test_a_changed_field_is_found(entries: list[Entry], data: st.DataObject) -> None:
    at, field = data.draw(st.integers(0, len(entries) - 1)), data.draw(st.sampled_from(FIELDS))
    before = getattr(entries[at], field)
    value = data.draw((st.floats(allow_nan=False) if field == "at" else TEXT).filter(lambda new: new != before))
    changed = [*entries[:at], replace(entries[at], **{field: value}), *entries[at + 1 :]]
    assert fault_of(changed, entries[-1]) == f"entry {at + 1} was changed: its hash is not that of its contents"


@given(CHAINS, st.data())
def test_a_change_with_a_new_hash_is_found(entries: list[Entry], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(entries) - 1))
    forged = chained(replace(entries[at], outcome=entries[at].outcome + "!"))
    changed = [*entries[:at], forged, *entries[at + 1 :]]
    assert fault_of(changed, entries[-1])


@given(CHAINS, st.data())
def test_a_chain_written_anew_is_found(entries: list[Entry], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(entries) - 1))
    forged = list(entries)
    forged[at] = replace(forged[at], outcome=forged[at].outcome + "!")
    for number in range(at, len(forged)):
        forged[number] = chained(replace(forged[number], previous=forged[number - 1].hash if number else START))
    assert "not the one that the server has noted" in fault_of(forged, entries[-1])


@given(CHAINS, st.data())
def test_a_removed_entry_is_found(entries: list[Entry], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(entries) - 1))
    last = data.draw(st.integers(first, len(entries) - 1))
    sentence = fault_of(entries[:first] + entries[last + 1 :], entries[-1])
    assert "missing" in sentence
    assert f"{first + 1} " in sentence


@given(CHAINS, st.data())
def test_a_removed_entry_whose_place_is_closed_up_is_found(entries: list[Entry], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(entries) - 2))
    closed = entries[:at] + [replace(entry, sequence=entry.sequence - 1) for entry in entries[at + 1 :]]
    assert "out of order" in fault_of(closed, entries[-1])


@given(CHAINS, st.data())
def test_swapped_entries_are_found(entries: list[Entry], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(entries) - 2))
    second = data.draw(st.integers(first + 1, len(entries) - 1))
    swapped = list(entries)
    swapped[first] = replace(entries[second], sequence=first + 1)
    swapped[second] = replace(entries[first], sequence=second + 1)
    sentence = fault_of(swapped, entries[-1])
    assert sentence == f"entries are out of order: in the place of {first + 1} stands what was {second + 1}"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Opened:
    """A log in a database of its own, and its clock."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder, self.clock = folder, clock
        self.path = folder / "log.sqlite"
        signing.load_or_create_key(folder / KEY)
        self.keys = Keyring(folder)
        self.open()

    def open(self) -> None:
        self.database = Database(empty_database(self.path))
        self.audit = Audit(self.database, self.folder, self.keys, self.clock, ["the-admin-token"])

    def close(self) -> None:
        self.audit.stop()
        self.database.close()

    def behind_its_back(self, *statements: str) -> None:
        """What somebody does who has the database, and takes the triggers away first."""
        with closing(sqlite3.connect(self.path)) as connection:
            for trigger in ("audit_no_update", "audit_no_delete", "audit_in_order"):
                connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    def fault(self) -> str:
        fault = self.audit.verify()[1]
        return fault.sentence if fault is not None else ""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    log = Opened(tmp_path, Clock())
    for number in range(1, 7):
        log.audit.append("alice", "run.start", f"run-{number}", "home", {"round": number})
    yield log
    log.close()


def test_a_log_is_whole_also_after_a_restart(opened: Opened) -> None:
    assert (opened.audit.verify()[0].count, opened.fault()) == (6, "")
    opened.close()
    opened.open()
    opened.audit.append("bob", "run.stop", "run-1", "home")
    assert (opened.audit.verify()[0].count, opened.fault()) == (7, "")
    assert [row.who for row in opened.audit.list(limit=2)] == ["bob", "alice"]
    assert opened.audit.list(who="bob", populations=["office"]) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET who = 'mallory' WHERE sequence = 3",
        "DELETE FROM audit WHERE sequence = 3",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit SELECT sequence, at, 'mallory', action, subject, population, detail, outcome, previous, "
        "hash FROM audit WHERE sequence = 3",
        "INSERT INTO audit SELECT sequence + 60, at, who, action, subject, population, detail, outcome, previous, hash "
        "FROM audit WHERE sequence = 3",
    ],
)
def test_the_database_itself_refuses(opened: Opened, statement: str) -> None:
    with (
        closing(sqlite3.connect(opened.path)) as connection,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        connection.execute(statement)
    assert opened.fault() == ""


def test_the_database_refuses_our_own_code_too(opened: Opened) -> None:
    with pytest.raises(DatabaseError, match="append-only"), opened.database.transaction() as session:
        session.get_one(AuditEntry, 2).outcome = "nothing happened"
    with pytest.raises(DatabaseError, match="append-only"), opened.database.transaction() as session:
        session.delete(session.get_one(AuditEntry, 2))


@pytest.mark.parametrize(
    ("statements", "sentence"),
    [
        (["UPDATE audit SET who = 'mallory' WHERE sequence = 3"], "entry 3 was changed"),
        (["UPDATE audit SET detail = '{\"round\":  4}' WHERE sequence = 4"], "entry 4 was changed"),
        (["UPDATE audit SET at = at + 1 WHERE sequence = 1"], "entry 1 was changed"),
        (["UPDATE audit SET who = X'80' WHERE sequence = 2"], "entry 2 was changed"),
        (["DELETE FROM audit WHERE sequence = 3"], "entry 3 is missing"),
        (["DELETE FROM audit WHERE sequence < 3"], "entries 1 to 2 are missing"),
        (
            ["DELETE FROM audit WHERE sequence > 4"],
            "entries 5 to 6 are missing: the server has noted that there were 6",
        ),
        (["DELETE FROM audit"], "entries 1 to 6 are missing"),
        (
            [
                "UPDATE audit SET sequence = 99 WHERE sequence = 2",
                "UPDATE audit SET sequence = 2 WHERE sequence = 5",
                "UPDATE audit SET sequence = 5 WHERE sequence = 99",
            ],
            "in the place of 2 stands what was 5",
        ),
    ],
)
@pytest.mark.parametrize("restarted", [False, True])
def test_what_is_done_behind_its_back_is_found(
    opened: Opened, statements: list[str], sentence: str, restarted: bool
) -> None:
    if restarted:
        opened.close()
        opened.behind_its_back(*statements)
        opened.open()
    else:
        opened.behind_its_back(*statements)
    assert sentence in opened.fault()


@pytest.mark.parametrize("restarted", [False, True])
def test_what_is_written_after_a_cut_does_not_hide_it(opened: Opened, restarted: bool) -> None:
    if restarted:
        opened.close()
    opened.behind_its_back("DELETE FROM audit WHERE sequence > 3")
    if restarted:
        opened.open()
    for number in range(10):
        opened.audit.append("mallory", "run.stop", f"run-{number}", "home")
    opened.close()
    opened.open()
    assert "not the one that the server has noted" in opened.fault() or "does not follow" in opened.fault()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A log for all examples of a property: a new database for each would take longer than the property."""
    log = Opened(tmp_path_factory.mktemp("log"), Clock())
    yield log
    log.close()


@pytest.fixture(scope="module")
def seal(log: Opened) -> bytes:
    log.audit.append("alice", "run.start")
    log.audit.seal()
    return (log.folder / SEAL).read_bytes()


@settings(max_examples=40)
@given(st.data())
def test_any_byte_of_the_seal_counts(log: Opened, seal: bytes, data: st.DataObject) -> None:
    path, changed = log.folder / SEAL, bytearray(seal)
    assert log.fault() == ""
    at = data.draw(st.integers(0, len(seal) - 2))  # the last character has bits that mean nothing
    changed[at] ^= data.draw(st.integers(1, 127))
    try:
        path.write_bytes(bytes(changed))
        assert "audit-head" in log.fault()
    finally:
        path.write_bytes(seal)


def test_the_end_stays_sealed_when_the_signing_key_changes(opened: Opened) -> None:
    opened.audit.append("olga", "x")
    opened.audit.seal()
    opened.keys.begin(0.0, 1000.0)
    assert opened.fault() == ""
    assert opened.audit.is_sealed_before
    again = Audit(opened.database, opened.folder, Keyring(opened.folder), opened.clock)
    assert again.verify()[1] is None
    again.reseal()
    assert not again.is_sealed_before
    assert signing.signer_of((opened.folder / SEAL).read_bytes()) == signing.fingerprint(opened.keys.current)
    assert opened.fault() == ""
    (opened.folder / SEAL).write_bytes(signing.sign(b"{}", signing.generate_key()))
    assert not again.is_sealed_before
    assert "audit-head" in opened.fault()
    opened.close()


def test_a_seal_that_is_gone_or_another_message_of_the_server_is_found(opened: Opened) -> None:
    opened.audit.seal()
    path = opened.folder / SEAL
    path.write_bytes(signing.sign(b'{"count": 0, "hash": ""}', opened.keys.current))
    assert "audit-head" in opened.fault()
    path.unlink()
    assert "audit-head" in opened.fault()
    opened.database.close()
    opened.open()
    assert "audit-head" in opened.fault()


def test_the_thread_seals_what_was_appended(tmp_path: Path) -> None:
    log = Opened(tmp_path, Clock())
    log.audit.start()
    log.audit.append("alice", "run.start")
    log.audit.append("alice", "run.stop")
    log.close()
    log.behind_its_back("DELETE FROM audit WHERE sequence = 2")
    log.open()
    assert log.fault() == "entry 2 is missing: the server has noted that there were 2"
    log.close()


def test_refusals_are_written_now_and_then_and_the_others_counted(tmp_path: Path) -> None:
    log = Opened(tmp_path, Clock())
    for _ in range(REFUSALS + 100):
        log.audit.refused("unknown", "run.start", "", "", {}, "this token is not known here")
    written = log.audit.verify()[0].count
    assert written == REFUSALS
    log.clock.now += 90
    log.audit.refused("unknown", "run.start", "", "", {}, "this token is not known here")
    assert log.audit.list(limit=1)[0].detail["refusals_not_written"] == 100
    log.audit.append("alice", "run.start")
    assert log.audit.list(limit=1)[0].who == "alice"
    for _ in range(50):
        log.audit.refused("unknown", "run.start", "", "", {}, "this token is not known here")
    log.close()
    log.open()
    assert log.audit.list(limit=1)[0].action == "audit.unwritten"
    assert log.fault() == ""
    log.close()


@given(
    st.text(max_size=400),
    st.dictionaries(
        st.text(max_size=60), st.one_of(st.text(max_size=400), st.lists(st.text(max_size=90)), st.floats())
    ),
)
@settings(max_examples=40)
def test_texts_are_bounded_lines_and_stored_as_they_are_hashed(
    log: Opened, text: str, detail: dict[str, object]
) -> None:
    log.audit.append(text, "run.start", text, text, detail, text)
    row = log.audit.list()[0]
    assert all("\n" not in text for text in (row.who, row.subject, row.population, row.outcome))
    assert len(row.outcome) <= 300
    assert log.fault() == ""


class ForgetfulDatabase(Database):
    """A database that reports its next commit as failed, and has made it."""

    forgets = False

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with super().transaction() as session:
            yield session
        if self.forgets:
            self.forgets = False
            raise OperationalError("COMMIT", {}, Exception("the connection was lost"))


def test_an_entry_whose_commit_was_reported_as_failed_is_no_tampering(opened: Opened) -> None:
    database = ForgetfulDatabase(f"sqlite:///{opened.path}")
    audit = Audit(database, opened.folder, opened.keys, opened.clock)
    database.forgets = True
    with pytest.raises(NotRecorded):
        audit.append("alice", "run.start")
    audit.append("alice", "run.stop")
    audit.stop()
    database.close()
    opened.close()
    opened.open()
    opened.behind_its_back("DELETE FROM audit WHERE sequence = 8")
    assert opened.fault() == "entry 8 is missing: the server has noted that there were 8"


def test_entries_of_many_threads_are_one_chain(opened: Opened) -> None:
    def append(who: str) -> None:
        for number in range(20):
            opened.audit.append(who, "run.start", f"run-{number}")

    threads = [threading.Thread(target=append, args=(f"admin-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (opened.audit.verify()[0].count, opened.fault()) == (166, "")
    for number in range(8):
        subjects = [row.subject for row in opened.audit.list(who=f"admin-{number}")]
        assert subjects == [f"run-{index}" for index in reversed(range(20))]


def test_secrets_are_struck_out(opened: Opened) -> None:
    token = "umbel_" + "a" * 16 + "_" + "S-_" * 14 + "x"
    opened.audit.append("alice", "run.stop", f"/{token}/", "home", {token: [token, "the-admin-token"]}, f"no {token}.")
    row = str(opened.audit.list(limit=1)[0])
    assert "S-_" not in row
    assert "the-admin-token" not in row
    assert "umbel_" + "a" * 16 + "_[secret]" in row
