"""How often a reading is taken for rules that are checked again and again."""

from pathlib import Path

from umbel.conditions import Rules
from umbel_edge.device.condition_check import ConditionCheck


def test_readings_are_measured_at_most_once_a_second(tmp_path: Path) -> None:
    now = [0.0]
    measured: list[float] = []
    sensors = {"load": lambda: measured.append(now[0]) or 0.0}
    conditions = ConditionCheck(tmp_path, lambda: 3, clock=lambda: now[0], sensors=sensors)
    for tick in range(30):
        now[0] = tick / 10
        conditions.violations(Rules(max_load=1.0))
    assert measured == [0.0, 1.0, 2.0]
