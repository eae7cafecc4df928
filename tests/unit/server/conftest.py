import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def small_heap() -> Iterator[None]:
    """Flower collects garbage for every record it unpacks: what other tests have imported would be looked at each time."""
    gc.freeze()
    yield
    gc.unfreeze()
