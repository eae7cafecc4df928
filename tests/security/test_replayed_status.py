"""What a broker may do with the statuses that devices said before."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from umbel import signing
from umbel.enrolment import EnrolmentRequest
from umbel.messages import Status
from umbel_server.devices.register import Devices, Heard
from umbel_server.storage.database import Database


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[Devices]:
    database = Database(f"sqlite:///{tmp_path / 'umbel.sqlite'}")
    made = Devices(database, lambda: 0.0)
    with database.transaction() as session:
        request = EnrolmentRequest("phone", "phone", signing.public_key(signing.generate_key()), "", "home")
        made.register(session, "home", request, {}, invited=True)
    yield made
    database.close()


def status(epoch: int, sequence: int, online: bool = True) -> Status:
    return Status("home", "phone", epoch, online, sequence=sequence, reasons=[f"{epoch}.{sequence}"])


def said(devices: Devices) -> str:
    return str(devices.get("home", "phone").reasons[0])


def test_an_older_status_of_the_same_session_is_not_believed(devices: Devices) -> None:
    assert devices.heard(status(1, 1)) is Heard.BEGAN
    devices.heard(status(1, 3))
    devices.heard(status(1, 2))
    assert said(devices) == "1.3"
    devices.heard(status(1, 3))
    devices.heard(status(1, 4))
    assert said(devices) == "1.4"


def test_nor_is_it_after_the_server_has_forgotten_who_is_online(devices: Devices) -> None:
    devices.heard(status(1, 1))
    devices.heard(status(2, 2))
    devices.heard(status(2, 5))
    devices.forget_presence()
    for old in (status(2, 4), status(1, 9), status(1, 1)):
        assert devices.heard(old) is Heard.DOUBTFUL
        assert not devices.get("home", "phone").online
    assert devices.heard(status(2, 5)) is Heard.DOUBTFUL  # as the broker kept it: no proof that the device is there
    assert not devices.get("home", "phone").online
    assert devices.heard(status(2, 6), proven=True) is Heard.BEGAN
    assert devices.get("home", "phone").online


def test_a_new_session_may_count_anew(devices: Devices) -> None:
    devices.heard(status(1, 7))
    devices.heard(status(1, 0, online=False))
    assert devices.heard(status(1, 8)) is Heard.DOUBTFUL
    assert not devices.get("home", "phone").online
    assert devices.heard(status(2, 1)) is Heard.BEGAN
    assert said(devices) == "2.1"


def test_devices_that_do_not_count_are_believed_as_before(devices: Devices) -> None:
    devices.heard(status(1, 0))
    devices.heard(status(1, 0))
    assert devices.get("home", "phone").online
