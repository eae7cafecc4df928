"""People's days: what holds on a device, and until when."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel_sim.virtual.availability import DAY, HOUR, Always, Condition, Diurnal

SEEDS = st.integers(0, 1000)
DEVICES = st.integers(0, 10**6)
TIMES = st.one_of(
    st.floats(0, 400 * DAY), st.integers(0, 400 * 24).map(lambda hour: hour * HOUR), st.floats(-3 * DAY, 0)
)


def held(condition: Condition) -> tuple[object, ...]:
    return condition.online, condition.charging, condition.metered, condition.battery


def test_always_is_always() -> None:
    assert Always().at(3, 1e9) == Condition(True, True, False, 1.0, math.inf)


@given(SEEDS, DEVICES, TIMES)
def test_what_holds_depends_on_nothing_but_seed_device_and_time(seed: int, device: int, time: float) -> None:
    assert Diurnal(seed).at(device, time) == Diurnal(seed).at(device, time)


@settings(max_examples=300)
@given(SEEDS, DEVICES, TIMES, st.floats(0, 1))
def test_nothing_changes_before_until(seed: int, device: int, time: float, share: float) -> None:
    world = Diurnal(seed)
    now = world.at(device, time)
    assert time < now.until <= time + HOUR
    assert 0 <= now.battery <= 1
    later = min(time + share * (now.until - time), math.nextafter(now.until, -math.inf))
    assert held(world.at(device, later)) == held(now)


@settings(max_examples=30)
@given(SEEDS, DEVICES, st.floats(0, 400 * DAY))
def test_one_goes_from_change_to_change_through_a_week(seed: int, device: int, time: float) -> None:
    """A change that is due at the second at which one looks would be waited for forever."""
    world, end, looks = Diurnal(seed), time + 7 * DAY, 0
    while time < end:
        until = world.at(device, time).until
        assert until > time
        time, looks = until, looks + 1
    assert looks < 8 * (24 + 3)


def test_about_a_third_of_devices_charge_and_more_at_night() -> None:
    """Habits: on the charger from about 22:30 for 7.5 hours; online 95 % of that and half of it otherwise."""
    world, devices = Diurnal(5, zones=0.0), 300
    by_hour = [[world.at(device, 10 * DAY + hour * HOUR + 1) for device in range(devices)] for hour in range(24)]
    charging = [sum(one.charging for one in hour) / devices for hour in by_hour]
    assert sum(charging) / 24 == pytest.approx(7.5 / 24, abs=0.03)
    assert charging[2] > 0.9
    assert charging[15] < 0.02
    there = [one for hour in by_hour for one in hour if one.charging]
    away = [one for hour in by_hour for one in hour if not one.charging]
    assert sum(one.online for one in there) / len(there) == pytest.approx(0.95, abs=0.02)
    assert sum(one.online for one in away) / len(away) == pytest.approx(0.475, abs=0.03)
    assert all(one.metered for one in away)
    assert sum(not one.metered for one in there) / len(there) == pytest.approx(0.85, abs=0.06)
    assert min(one.battery for one in away) < 0.5
    assert all(one.battery == 1.0 for one in there)


def test_a_battery_falls_through_the_day() -> None:
    world = Diurnal(1)
    day = [world.at(0, 3 * DAY + quarter * HOUR / 4) for quarter in range(96)]
    for before, after in pairwise(day):
        if not before.charging and not after.charging:
            assert after.battery <= before.battery
