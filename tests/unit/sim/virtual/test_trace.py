"""Availability from a CSV of intervals."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.errors import UmbelError
from umbel_sim.virtual.availability import Condition
from umbel_sim.virtual.trace import Trace

HEAD = "device,start,end,online,charging,metered"
ROWS = "0,0,3600,1,0,1\n0,3600,7200,0,0,0\n0,7200,10000,1,1,0\n"


def trace(folder: Path, text: str) -> Trace:
    path = folder / "trace.csv"
    path.write_text(text)
    return Trace(path)


def test_the_documented_csv_is_read(tmp_path: Path) -> None:
    found = trace(tmp_path, f"{HEAD},battery\n0,0,60,1,0,1,0.5\n0,60,100,0,1,0,\n1,0,30,0,0,0,0.25\n")
    assert found.at(0, 0) == Condition(True, False, True, 0.5, 60)
    assert found.at(0, 59.9) == Condition(True, False, True, 0.5, 60)
    assert found.at(0, 60) == Condition(False, True, False, 1.0, 100)
    assert found.at(1, 12) == Condition(False, False, False, 0.25, 30)


def test_rows_may_come_in_any_order_and_as_spreadsheets_write_them(tmp_path: Path) -> None:
    ordered = trace(tmp_path, f"{HEAD}\n{ROWS}")
    lines = ROWS.splitlines()
    other = trace(tmp_path, "\ufeff" + "\r\n".join([HEAD, *reversed(lines), ""]))
    assert [other.at(0, time) for time in range(0, 20000, 100)] == [
        ordered.at(0, time) for time in range(0, 20000, 100)
    ]


def test_a_trace_repeats_when_it_is_over(tmp_path: Path) -> None:
    found = trace(tmp_path, f"{HEAD}\n0,100,200,1,0,0\n0,200,400,0,0,0\n")
    for lap in range(4):
        assert found.at(0, 100 + lap * 300) == Condition(True, False, False, 1.0, 200 + lap * 300)
        assert found.at(0, 399 + lap * 300) == Condition(False, False, False, 1.0, 400 + lap * 300)
    assert not found.at(0, 0).online  # before it begins: the end of the lap before
    assert found.at(0, 0).until == 100


def test_more_devices_than_the_trace_has_take_turns_with_its_own(tmp_path: Path) -> None:
    found = trace(tmp_path, f"{HEAD}\n3,0,10,1,0,0\n8,0,20,0,0,0\n")
    assert [found.at(device, 0).online for device in range(5)] == [True, False, True, False, True]


@settings(max_examples=200)
@given(
    st.lists(st.floats(0.01, 1e5), min_size=1, max_size=6),
    st.floats(-1e4, 1e4),
    st.floats(0, 1e7),
)
def test_one_goes_from_change_to_change(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[float], first: float, time: float
) -> None:
    """Seconds that binary numbers do not hold exactly: the next change is always ahead, and one interval later."""
    folder, start, rows = tmp_path_factory.getbasetemp(), first, []
    for number, length in enumerate(lengths):
        rows.append(f"0,{start!r},{start + length!r},{number % 2},0,0")
        start += length
    found = trace(folder, "\n".join([HEAD, *rows]))
    for _ in range(3 * len(lengths)):
        until = found.at(0, time).until
        assert until > time
        time = until


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"{HEAD}\n0,0,10,1,0,0\n0,12,20,1,0,0\n", "a gap between line 2, which ends at 10, and line 3, which starts"),
        (f"{HEAD}\n0,5,20,1,0,0\n0,0,10,1,0,0\n", "an overlap between line 3, which ends at 10, and line 2"),
        (f"{HEAD}\n0,0,10,1,0,0\n0,0,10,1,0,0\n", "an overlap between line 2"),
        ("device,start,end,online,charging\n0,0,1,1,0\n", "column 'metered' is missing; a trace has device,start"),
        ("", "column 'device' is missing"),
        (f"{HEAD}\n", "expected a trace of at least one interval, got none"),
        (f"{HEAD}\n0,0,10,yes,0,0\n", "line 2: expected device,start,end,online,charging,metered as numbers"),
        (f"{HEAD}\n0,0,10,2,0,0\n", "line 2: expected device,start,end,online,charging,metered as numbers: online"),
        (f"{HEAD}\n0,0\n", "line 2: expected"),
        (f"{HEAD}\n0,10,10,1,0,0\n", "line 2: expected a device from 0 on and start < end"),
        (f"{HEAD}\n-1,0,10,1,0,0\n", "line 2: expected a device from 0 on"),
        (f"{HEAD}\n0,-inf,10,1,0,0\n", "line 2: expected a device from 0 on and start < end"),
        (f"{HEAD}\n0,0,inf,1,0,0\n", "line 2: expected a device from 0 on and start < end"),
        (f"{HEAD}\n0,nan,10,1,0,0\n", "line 2: expected a device from 0 on and start < end"),
        (f"{HEAD},battery\n0,0,10,1,0,0,1.5\n", "battery is a share between 0 and 1, got 1.5"),
        (f"{HEAD},battery\n0,0,10,1,0,0,nan\n", "battery is a share between 0 and 1, got nan"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UmbelError) as caught:
        trace(tmp_path, text)
    assert sentence in str(caught.value)
    assert "trace.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UmbelError, match=r"absent\.csv"):
        Trace(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    with pytest.raises(UmbelError, match=r"binary\.csv"):
        Trace(tmp_path / "binary.csv")
