"""Results as a simulation would give them, made without one."""

from typing import Any

import numpy as np

from umbel_sim.fleet_data import Spread, Statistics
from umbel_sim.report.result import Result
from umbel_sim.simulation.settings import Settings


def result(
    rounds: int = 3,
    metrics: tuple[str, ...] = ("accuracy",),
    seed: int = 0,
    devices: int = 20,
    held_out: bool = True,
    best: float = 0.9,
    **more: Any,
) -> Result:
    """One whose first metric rises to `best` over its rounds."""
    settings = more.pop("settings", {})
    rows = [_row(number, rounds, metrics if held_out else (), held_out, best) for number in range(rounds + 1)]
    sampled = np.arange(min(devices, 200))
    histogram = np.random.default_rng(seed).integers(0, 9, (len(sampled), 10)).astype(np.int32)
    given: dict[str, Any] = {
        "settings": Settings(devices=devices, rounds=max(1, rounds), seed=seed, **settings),
        "task": "digits",
        "data": "digits",
        "state": "finished",
        "reason": "its last round is committed",
        "rows": tuple(rows),
        "weights": {"dense/kernel": np.ones((3, 2), np.float32)},
        "participation": np.full(devices, rounds, np.int32),
        "statistics": Statistics(devices, Spread(5, 7.0, 9), Spread(2, 3.0, 4), np.arange(10), sampled, histogram),
        "on_devices": tuple(
            {"device": int(device), "loss": 0.5, "examples": 7.0, **dict.fromkeys(metrics, 0.8)} for device in sampled
        ),
        "engine": "litert",
        "why_engine": "the agent's own trainer",
        "workers": 2,
        "wall_seconds": 1.5,
        "metrics": metrics,
    }
    return Result(**(given | more))


def _row(number: int, rounds: int, metrics: tuple[str, ...], held_out: bool, best: float) -> dict[str, Any]:
    share = number / rounds if rounds else 0.0
    row: dict[str, Any] = {"round": number, "virtual_hours": 0.5 * number}
    if number:
        row |= {"round_seconds": 1800.0, "attempts": 1, "abandoned": "", "offered": 12, "folded": 10, "cancelled": 2}
        row |= dict.fromkeys(("declined", "failed", "vanished", "expired", "rejected"), 0)
        row |= {"train_loss": 2.0 - share, "bytes_down": 1000, "bytes_up": 900, "trained_seconds": 20.0}
        row |= {"wasted_seconds": 2.0, "joules": 50.0, "wall_seconds": 0.1}
    if held_out:
        row |= {f"test_{name}": best * share for name in metrics} | {"test_loss": 2.3 - share}
    return row
