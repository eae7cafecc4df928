"""A running sum is math.fsum, whatever the order."""

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from umbel_server.aggregation.exact_float import ExactFloat


@given(st.lists(st.floats(-1e200, 1e200)), st.integers())
def test_it_is_fsum_in_any_order(values: list[float], seed: int) -> None:
    random.Random(seed).shuffle(values)
    total = ExactFloat()
    for value in values:
        total.add(value)
    assert total.value == math.fsum(values)
