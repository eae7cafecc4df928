import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def rounds_heard() -> Iterator[None]:
    """A scenario silences the rounds of its process; other tests listen to them."""
    logger = logging.getLogger("umbel.rounds")
    level = logger.level
    yield
    logger.setLevel(level)
