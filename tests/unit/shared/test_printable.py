"""Names that devices choose cannot control a terminal."""

import pytest

from umbel.printable import printable

CLEARED = "\x1b[2J"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("phone 3, été", "phone 3, été"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        (f"{CLEARED}\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("\x9b2J\u202eabc\ud800", r"\x9b2J\u202eabc\ud800"),
    ],
)
def test_what_is_not_printable_is_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
