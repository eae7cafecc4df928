"""Numbers as people read them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel_sim.report.numbers import duration, shown, size


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("bytes_up", 0, "0 B"),
        ("bytes_up", 999, "999 B"),
        ("bytes_up", 1000, "1 kB"),
        ("bytes_up", 999_999, "1 MB"),
        ("bytes", 2_345_678, "2.35 MB"),
        ("bytes", 10**19, "10,000 PB"),
        ("wall_seconds", 0.0123, "0.0123 s"),
        ("wall_seconds", 119.9, "120 s"),
        ("wall_seconds", 120.0, "2 min"),
        ("virtual_hours", 1.0, "60 min"),
        ("virtual_hours", 36.0, "36 h"),
        ("virtual_hours", 24 * 365 * 5.0, "1,825 days"),
        ("hours to it", 2.5, "2.5 h"),
        ("hours to it", None, "not yet"),
        ("wasted_share", 0.1234, "12.3%"),
        ("joules", 3.14159, "3.14 J"),
        ("joules", 3600 * 12_345.0, "12,345 Wh"),
        ("rounds", 12, "12"),
        ("offered", 1_234_567, "1,234,567"),
        ("rounds", 12.5, "12.5"),
        ("test_accuracy", 0.91234567, "0.9123"),
        ("test_loss", 123_456.7, "123,457"),
        ("test_loss", 1.5e300, "1.5e+300"),
        ("test_loss", 2.5e-9, "2.5e-09"),
        ("requires", {}, "-"),
        ("labels", {"class": "phone"}, "class=phone"),
        ("mix", ("phone-low=1", "vehicle"), "phone-low=1, vehicle"),
        ("mix", (), "-"),
        ("until", "", "-"),
        ("charging", True, "True"),
    ],
)
def test_a_figure_has_the_unit_of_its_name(name: str, value: Any, text: str) -> None:
    assert shown(name, value) == text


@given(st.floats(0, 1e17))
def test_sizes_and_times_have_no_exponent(value: float) -> None:
    for text in (size(value), duration(value)):
        number = float(text.split()[0].replace(",", ""))
        assert number >= 0
        assert "e" not in text.split()[0] or value < 1e-3
