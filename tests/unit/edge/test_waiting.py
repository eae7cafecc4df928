"""The pauses between failed attempts."""

import random

from umbel_edge.waiting import back_off


def test_pauses_grow_up_to_a_bound_however_often_it_was_tried() -> None:
    source = random.Random(0)
    for tried in range(10):
        assert 0.5 * 2**tried <= back_off(tried, 1.0, 1e9, source) <= 1.5 * 2**tried
    for tried in (10, 1023, 1024, 10_000):  # 2**1024 is no float any more
        assert 10.0 <= back_off(tried, 0.2, 20.0, source) <= 30.0
