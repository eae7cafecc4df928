"""What devices and strangers call something cannot draw on a terminal, nor write lines into a log."""

import io
import logging

import pytest

from umbel.printable import LogFormatter, printable

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


def test_a_message_is_one_line_of_the_log() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(LogFormatter())
    log = logging.Logger("umbel.test")
    log.addHandler(handler)
    log.warning("refused a message of %s", f"x\n2026-11-29 00:00:00,000 INFO    umbel.keys: forged{CLEARED}/d")
    assert out.getvalue().count("\n") == 1
    assert CLEARED not in out.getvalue()
    try:
        raise ValueError(f"a\n2026-11-29 00:00:00,000 INFO    umbel.keys: forged{CLEARED}")
    except ValueError:
        log.exception("failed")
    _, said, *trace = out.getvalue().splitlines()
    assert said.endswith("umbel.test: failed")
    assert trace[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in trace)
    assert CLEARED not in out.getvalue()
