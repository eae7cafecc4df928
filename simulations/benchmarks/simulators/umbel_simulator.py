"""Umbel's simulator through its Python API, with the defaults of all other options."""

from collections.abc import Mapping
from typing import Any

import workload
from numpy.typing import NDArray
from workload import EXAMPLES, RATE, Case

from umbel_sim import simulate
from umbel_sim.data import FunctionFleet
from umbel_sim.reference_models import REFERENCE_MODELS


def train(case: Case) -> tuple[list[float], str]:
    """See workload.main."""

    def examples(device: int) -> Mapping[str, NDArray[Any]]:
        x, y = workload.examples(case.model, device)
        return {"x": x, "y": y}

    fleet = FunctionFleet(examples, case.devices, size=lambda device: EXAMPLES)
    clock = workload.Clock()
    result = simulate(
        REFERENCE_MODELS[case.model],
        fleet,
        target=case.cohort,
        rounds=case.rounds,
        learning_rate=RATE,
        told=lambda row: clock.tick(),
    )
    folded = {row["folded"] for row in result.rows[1:]}
    if folded != {case.cohort}:
        raise RuntimeError(f"every round should have folded {case.cohort} updates, they folded {sorted(folded)}")
    return clock.seconds, f"{result.engine}, {result.workers} workers"


if __name__ == "__main__":
    workload.main(train)
