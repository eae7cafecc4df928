"""Two devices with one identity are told from one that starts anew."""

import pytest

from umbel import signing
from umbel.messages import Status
from umbel_server.devices.twins import NAMED_SECONDS, Twins

KEYS = [signing.public_key(signing.generate_key()) for _ in range(4)]


class Heard:
    def __init__(self) -> None:
        self.now = 0.0
        self.twins = Twins(lambda: self.now)

    def __call__(self, key: int | None, sequence: int, epoch: int = 1) -> bool:
        agreement = KEYS[key] if key is not None else None
        self.twins.hear(Status("home", "phone", epoch, True, agreement=agreement, sequence=sequence))
        return self.twins.named("home", "phone")


def test_an_agent_that_starts_again_and_again_is_one_device() -> None:
    heard = Heard()
    assert not any(heard(key, number) for number, key in enumerate((0, 0, 1, 2, 2, 3, 3), start=1))


@pytest.mark.parametrize("epochs", [(6, 6, 7, 7), (100, 7, 101, 8)])
def test_a_key_that_comes_back_is_of_a_second_device(epochs: tuple[int, ...]) -> None:
    heard = Heard()
    said = [
        heard(key, number, epoch) for number, (key, epoch) in enumerate(zip((0, 1, 0, 1), epochs, strict=True), start=1)
    ]
    assert said == [False, False, True, True]


def test_a_repeated_old_status_is_not_a_second_device() -> None:
    heard = Heard()
    heard(0, 1)
    heard(1, 2)
    assert not heard(0, 1)
    assert not heard(0, 2)


def test_devices_without_such_a_key_are_not_compared() -> None:
    heard = Heard()
    assert not any(heard(None, number) for number in range(1, 6))


def test_they_are_named_until_they_were_not_seen_for_long() -> None:
    heard = Heard()
    for number, key in enumerate((0, 1, 0), start=1):
        heard(key, number)
    heard.now = NAMED_SECONDS - 1.0
    assert heard(0, 4)
    heard.now = NAMED_SECONDS + 1.0
    assert not heard(0, 5)
