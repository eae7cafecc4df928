"""What the register makes of statuses: last wills that come too early, too late or never, and repeated ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from umbel import signing
from umbel.enrolment import EnrolmentRequest
from umbel.messages import Status
from umbel_server.devices.register import Devices, Heard
from umbel_server.storage.database import Database, Device


class Register:
    """A register with one device, and a clock that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.now = 100.0
        self.database = Database(f"sqlite:///{folder / 'umbel.sqlite'}")
        self.devices = Devices(self.database, lambda: self.now)
        with self.database.transaction() as session:
            request = EnrolmentRequest("phone", "phone", signing.public_key(signing.generate_key()), "", "home")
            self.devices.register(session, "home", request, {}, invited=True)

    def heard(
        self, epoch: int, sequence: int, online: bool = True, proven: bool = False, reasons: tuple[str, ...] = ()
    ) -> Heard:
        status = Status("home", "phone", epoch, online, sequence=sequence, reasons=list(reasons))
        return self.devices.heard(status, proven)

    @property
    def row(self) -> Device:
        return self.devices.get("home", "phone")


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Register]:
    made = Register(tmp_path)
    yield made
    made.database.close()


def test_the_will_of_the_new_session_at_a_takeover_is_doubted_and_an_answer_ends_the_doubt(register: Register) -> None:
    assert register.heard(1, 10) is Heard.BEGAN
    assert register.heard(2, 21) is Heard.BEGAN
    assert register.heard(2, 20, online=False) is Heard.DOUBTFUL
    assert not register.row.online
    assert register.heard(2, 22, proven=True) is Heard.BEGAN
    assert register.row.online


def test_the_same_when_the_will_comes_before_the_first_word(register: Register) -> None:
    register.heard(1, 10)
    assert register.heard(2, 20, online=False) is Heard.DOUBTFUL
    assert register.heard(2, 21) is Heard.DOUBTFUL
    assert register.heard(2, 22, proven=True) is Heard.BEGAN


def test_the_old_sessions_will_changes_nothing_in_a_new_session(register: Register) -> None:
    register.heard(1, 10)
    register.heard(2, 21)
    assert register.heard(1, 9, online=False) is Heard.IGNORED
    assert register.row.online


def test_a_device_that_says_goodbye_itself_is_believed(register: Register) -> None:
    register.heard(1, 10)
    assert register.heard(1, 11, online=False) is Heard.LEFT
    assert not register.row.online


def test_a_second_will_of_a_session_that_is_over_asks_nobody(register: Register) -> None:
    register.heard(1, 10)
    register.heard(1, 9, online=False)
    assert register.heard(1, 9, online=False) is Heard.IGNORED


def test_a_late_online_does_not_bring_a_device_back(register: Register) -> None:
    register.heard(1, 10)
    register.heard(1, 9, online=False)
    assert register.heard(1, 12) is Heard.DOUBTFUL
    assert not register.row.online


def test_a_device_that_answers_is_online_although_it_counts_its_sessions_anew(register: Register) -> None:
    register.heard(7, 10, reasons=("hot",))
    register.heard(7, 9, online=False)
    assert register.heard(1, 3, proven=True) is Heard.BEGAN
    assert register.row.online
    assert register.row.reasons == ["hot"]  # an older word does not describe it


def test_a_repeated_status_is_no_sign_of_life(register: Register) -> None:
    register.heard(1, 10)
    register.devices.gone([("home", "phone")])
    assert not register.row.online
    assert register.heard(1, 10) is Heard.DOUBTFUL
    assert not register.row.online


def test_a_status_that_says_nothing_new_is_written_later_and_counts_against_repeats(register: Register) -> None:
    register.heard(1, 10)
    register.now = 200.0
    assert register.heard(1, 11) is Heard.GOES_ON
    assert register.row.last_seen == 100.0
    register.devices.write_heard()
    assert register.row.last_seen == 200.0
    register.devices.forget_presence()
    assert register.heard(1, 11) is Heard.DOUBTFUL


def test_changes_are_written_at_once(register: Register) -> None:
    register.heard(1, 10)
    assert register.heard(1, 11, reasons=("hot",)) is Heard.GOES_ON
    assert register.row.reasons == ["hot"]
    register.heard(1, 12)
    assert register.row.reasons == []


def test_the_sequence_in_memory_is_not_lost_when_the_session_ends(register: Register) -> None:
    register.heard(1, 10)
    register.heard(1, 30)  # kept in memory alone
    register.heard(1, 9, online=False)
    assert register.row.said_sequence == 30


def test_an_answer_without_a_status_counts(register: Register) -> None:
    register.heard(1, 10)
    register.devices.gone([("home", "phone")])
    assert register.devices.answered("home", "phone")
    assert register.row.online
    assert not register.devices.answered("home", "phone")


def test_the_devices_heard_lately_are_asked_first(register: Register) -> None:
    with register.database.transaction() as session:
        for number in range(3):
            request = EnrolmentRequest(f"d{number}", "phone", signing.public_key(signing.generate_key()), "", "home")
            register.now = 1000.0 + number
            register.devices.register(session, "home", request, {}, invited=True)
    assert [device for _, device in register.devices.active()] == ["d2", "d1", "d0", "phone"]
