import numpy as np
import pytest

from umbel.errors import UmbelError
from umbel_sim.data import FunctionFleet


def make(device: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(device)
    return {"x": rng.random((device + 1, 2)), "y": np.full(device + 1, device % 3)}


def test_a_function_is_called_for_what_is_asked() -> None:
    called: list[int] = []

    def counted(device: int) -> dict[str, np.ndarray]:
        called.append(device)
        return make(device)

    fleet = FunctionFleet(counted, 1_000_000, size=lambda device: device + 1)
    assert fleet.size(999_999) == 1_000_000
    assert called == []
    assert fleet.examples(4)["y"].tolist() == [1] * 5
    assert called == [4]


def test_without_sizes_examples_are_counted() -> None:
    assert [FunctionFleet(make, 5).size(device) for device in range(5)] == [1, 2, 3, 4, 5]


def test_statistics_are_those_of_the_sampled_devices() -> None:
    statistics = FunctionFleet(make, 7).statistics(3)
    assert statistics.sampled.tolist() == [0, 3, 6]
    assert (statistics.sizes.min, statistics.sizes.median, statistics.sizes.max) == (1, 4.0, 7)
    assert (statistics.classes.tolist(), statistics.histogram.tolist()) == ([0], [[1], [4], [7]])
    known = FunctionFleet(make, 7, size=lambda device: device + 1).statistics(2)
    assert (known.sizes.median, len(known.sampled)) == (4.0, 2)


def test_what_is_no_fleet_is_refused() -> None:
    with pytest.raises(UmbelError, match="at least 1 device"):
        FunctionFleet(make, 0)
    with pytest.raises(UmbelError, match="device 1: every array should have the same number of examples"):
        FunctionFleet(lambda _: {"x": np.zeros(2), "y": np.zeros(3)}, 2).size(1)
    with pytest.raises(UmbelError, match="device 1: 9 examples were announced, its function gave 2"):
        FunctionFleet(make, 2, size=lambda _: 9).examples(1)
    with pytest.raises(UmbelError, match="device 0: its function gave no 'label', but x, y"):
        FunctionFleet(make, 2, target="label").statistics()
    with pytest.raises(IndexError, match="a fleet of 2"):
        FunctionFleet(make, 2).examples(2)
