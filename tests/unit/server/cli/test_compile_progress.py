"""The time that a compilation is said to take."""

import pytest

from umbel_server.cli.compile_progress import estimate
from umbel_server.compiler import Stage


def test_what_is_left_follows_from_the_stages_that_are_done() -> None:
    stage = Stage("converting", 3, 7, 0.1, 0.6)
    assert estimate(Stage("building", 1, 7, 0.0, 0.1), 0.0, 3.0).left is None
    begun = estimate(stage, 10.0, 10.0)
    assert (begun.done, begun.left) == (pytest.approx(0.1), pytest.approx(90.0))
    assert estimate(stage, 10.0, 40.0).left == pytest.approx(60.0)
    slower = estimate(stage, 10.0, 100.0)
    assert (slower.done, slower.left) == (pytest.approx(0.6), pytest.approx(40.0))
