"""Which cases of a parametrised test `make test` runs, and which only `make test-all`."""

from collections.abc import Iterable
from typing import Any

import pytest


def sample(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """All cases, those that are not named in `quick` marked long; raises ValueError for a name that is no case."""
    every = list(cases)
    if unknown := [name for name in quick if name not in every]:
        raise ValueError(f"there are no cases {unknown}; there are {every}")
    return [case if case in quick else pytest.param(case, marks=pytest.mark.long) for case in every]
