"""Bytes from outside, right ones with something broken in them: refused with a sentence, soon, and in little memory."""

import json
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.security.parsers import PARSERS, REFUSED, Parser, tried

MOST_SECONDS = 5.0
"""For one input on a machine that does other things too; `make fuzz` asks for one second."""

NASTY = [
    b"",
    b"\x00",
    b"{" * 100_000,
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b'"' + b"\\u0000" * 1000 + b'"',
    b"1e999",
    b"-" * 1000,
    b"\xff\xfe" * 1000,
    b"9" * 100_000,
    b'{"version":' + b"9" * 5000 + b"}",
    b"latest@" + b"9" * 5000,
    b"x = " + b"[" * 3000,
    (2**63).to_bytes(8, "little") + b"{}",
    (10).to_bytes(8, "little") + b'{"a":' * 10,
    b"PK\x03\x04" + b"\xff" * 100,
    b"PK\x05\x06" + bytes(18),
]


@st.composite
def broken(draw: st.DrawFn, name: str) -> bytes:
    """A right input with a few pieces replaced, repeated, cut out or put in."""
    data = bytearray(draw(st.sampled_from(PARSERS[name].seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 40)))
        piece = draw(
            st.one_of(st.binary(max_size=20), st.sampled_from(NASTY[:9]), st.just(bytes(data[start:stop]) * 2))
        )
        data[start:stop] = piece
    return bytes(data)


@pytest.mark.parametrize("name", PARSERS)
def test_right_ones_and_nasty_ones_are_taken_or_refused(name: str) -> None:
    for data in (*PARSERS[name].seeds, *NASTY):
        began = time.monotonic()
        tried(PARSERS[name], data)
        assert time.monotonic() - began < MOST_SECONDS, data[:60]


@pytest.mark.parametrize("name", PARSERS)
def test_broken_ones_are_taken_or_refused(name: str) -> None:
    @settings(max_examples=60, deadline=MOST_SECONDS * 1000, suppress_health_check=list(HealthCheck), database=None)
    @example(b"")
    @given(broken(name))
    def check(data: bytes) -> None:
        tried(PARSERS[name], data)

    check()


def test_no_input_fills_the_memory() -> None:
    """In a process of its own that may have 400 MB more than it begins with, which is no more than it needs to begin."""
    program = """
import json, resource
from tests.security.parsers import PARSERS, tried
from tests.security.test_parsers import NASTY
own = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (own + 400_000_000,) * 2)
grown = {}
for name, parser in PARSERS.items():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in (*parser.seeds, *NASTY):
        tried(parser, data)
    grown[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps(grown))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    grown = json.loads(done.stdout)
    assert grown.keys() == PARSERS.keys()
    assert {name: kilobytes for name, kilobytes in grown.items() if kilobytes >= 20_000} == {}


def test_what_is_refused_is_refused_with_a_sentence() -> None:
    silent = [
        (name, data[:40])
        for name, parser in PARSERS.items()
        for data in NASTY
        if (error := refusal(parser, data)) is not None and not str(error)
    ]
    assert silent == []


def refusal(parser: Parser, data: bytes) -> Exception | None:
    try:
        parser.parse(data)
    except REFUSED as error:
        return error
    return None
