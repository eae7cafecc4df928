"""A sample of the fault matrix that fits into three minutes; `make faults` runs all of it."""

import os
from itertools import product
from pathlib import Path

import pytest

from tests.brokers import mosquitto_program
from tests.faults.case import BROKERS, OPTIONS, Case, Plans, execute
from tests.faults.injections import FAULTS, cannot
from tests.faults.matrix import compile_plans
from tests.faults.moments import MOMENTS, RANDOM
from tests.sampling import sample

SEED = int(os.environ.get("UMBEL_FAULTS_SEED", "1"))


def cases() -> list[Case]:
    """Every fault once, the moments, brokers and strategies taking turns; which meet which depends on the seed."""
    when = (RANDOM, *MOMENTS)
    kinds = list(product(BROKERS, OPTIONS))
    return [
        Case(fault, when[(number * 3 + SEED) % len(when)], *kinds[(number + SEED) % len(kinds)], SEED)
        for number, fault in enumerate(name for name in FAULTS if name != "none")
    ]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    return compile_plans(tmp_path_factory.mktemp("plans"))


@pytest.mark.serial
@pytest.mark.parametrize(
    "case", sample(cases(), cases()[0]), ids=lambda case: f"{case.fault}-{case.moment}-{case.broker}-{case.strategy}"
)
def test_no_invariant_breaks(case: Case, plans: Plans, tmp_path: Path) -> None:
    if why := cannot(case.fault):
        pytest.skip(why)
    if case.broker == "mosquitto" and mosquitto_program() is None:
        pytest.skip("mosquitto is not installed")
    outcome = execute(case, plans, tmp_path)
    assert not outcome.wrong, "\n".join([*outcome.wrong, f"again: {case.command}"])
