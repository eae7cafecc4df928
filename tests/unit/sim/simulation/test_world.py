"""The course of an assignment on a virtual device."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtual_fleet import EVEN
from umbel.conditions import Rules
from umbel_sim.simulation.world import Load, World
from umbel_sim.virtual.availability import HOUR, Always, Availability, Condition, Diurnal
from umbel_sim.virtual.classes import CLASSES, DeviceClass, Mix

LOAD = Load(down=1000, up=1000, operations=6000.0)
SLOW = replace(EVEN, download=100.0, upload=100.0)
"""Fetching takes 10 seconds and sending too; an assignment of n steps takes 21 + n seconds."""


class Scripted:
    """Conditions from one time to the next; the last one holds forever."""

    def __init__(self, *conditions: Condition) -> None:
        self._conditions = conditions

    def at(self, device: int, time: float) -> Condition:
        return next(condition for condition in self._conditions if time < condition.until)


def world(
    availability: Availability | None = None, kind: DeviceClass = SLOW, conditions: Rules | None = None, seed: int = 0
) -> World:
    return World(seed, 5, Mix((kind,), (1.0,)), availability or Always(), conditions or Rules())


def test_an_assignment_is_accepted_fetched_trained_and_sent() -> None:
    course = world().course(0, "a", 100.0, LOAD, 7, 10, Rules())
    assert (course.accepts, course.trains, course.computes, course.ends) == (100.5, 110.5, 117.5, 128.0)
    assert (course.outcome, course.reason) == ("uploaded", "")
    assert [course.trained(time) for time in (0, 110.5, 112.5, 117.5, 1000)] == [0, 0, 2, 7, 7]


def test_a_device_declines_what_it_may_not_do_when_it_is_asked() -> None:
    course = world(Scripted(Condition(charging=False))).course(0, "a", 0.0, LOAD, 7, 10, Rules(charging=True))
    assert (course.outcome, course.ends, course.reason) == ("declined", 0.5, "not charging")
    assert course.trained(math.inf) == 0
    own = world(Scripted(Condition(metered=True)), conditions=Rules(unmetered=True))
    assert own.course(0, "a", 0.0, LOAD, 7, 10, Rules()).reason == "metered network"
    assert world().course(0, "a", 0.0, LOAD, 7, 10, Rules(min_examples=11)).outcome == "declined"


def test_training_fails_at_the_second_at_which_a_condition_ends() -> None:
    away = Scripted(Condition(until=13.0), Condition(charging=False))
    course = world(away).course(0, "a", 0.0, LOAD, 7, 10, Rules(charging=True))
    assert (course.outcome, course.ends, course.reason) == ("failed", 13.0, "not charging")
    assert course.trained(math.inf) == 2.5
    late = Scripted(Condition(until=17.5), Condition(charging=False))
    assert world(late).course(0, "a", 0.0, LOAD, 7, 10, Rules(charging=True)).outcome == "uploaded"
    assert world(away).course(0, "a", 0.0, LOAD, 7, 10, Rules()).outcome == "uploaded"


def test_training_fails_when_its_hours_end_however_long_conditions_hold() -> None:
    course = world().course(0, "a", 8 * HOUR - 13, LOAD, 7, 10, Rules(hours="6-8"))
    assert (course.outcome, course.ends) == ("failed", 8 * HOUR)
    assert world().course(0, "a", 8 * HOUR, LOAD, 7, 10, Rules(hours="6-8")).outcome == "declined"


def test_a_device_that_is_offline_sends_when_it_is_back() -> None:
    back = Scripted(Condition(until=15.0), Condition(online=False, until=500.0), Condition())
    course = world(back).course(0, "a", 0.0, LOAD, 7, 10, Rules())
    assert (course.outcome, course.computes, course.ends) == ("uploaded", 17.5, 510.5)
    assert course.trained(math.inf) == 7


def test_an_update_waits_for_an_unmetered_network_when_it_must() -> None:
    """As the agent: rules are looked at before each batch, and an unmetered network before sending."""
    metered = Scripted(Condition(until=17.5), Condition(metered=True, until=500.0), Condition())
    course = world(metered).course(0, "a", 0.0, LOAD, 7, 10, Rules(unmetered=True))
    assert (course.outcome, course.ends) == ("uploaded", 510.5)


def test_a_device_that_never_comes_back_has_vanished() -> None:
    gone = Scripted(Condition(until=15.0), Condition(online=False))
    course = world(gone).course(0, "a", 0.0, LOAD, 7, 10, Rules())
    assert (course.outcome, course.ends, course.trained(math.inf)) == ("vanished", math.inf, 7)
    endless = world(kind=replace(EVEN, upload=1e-300)).course(0, "a", 0.0, LOAD, 7, 10, Rules())
    assert (endless.outcome, endless.ends) == ("vanished", math.inf)


def test_devices_vanish_as_often_as_their_class_says() -> None:
    there = world(kind=replace(SLOW, drop_out=0.2))
    stories = [there.course(0, str(number), 0.0, LOAD, 7, 10, Rules()) for number in range(2000)]
    vanished = [course for course in stories if course.outcome == "vanished"]
    assert len(vanished) == pytest.approx(400, abs=72)  # 4 sigma
    assert all(course.ends == math.inf and 0 <= course.trained(1e9) <= 7 for course in vanished)
    assert len({course.trained(1e9) for course in vanished}) > 50
    assert stories[7] == there.course(0, "7", 0.0, LOAD, 7, 10, Rules())


RULES = st.sampled_from(
    [Rules(), Rules(charging=True), Rules(unmetered=True), Rules(min_battery=0.5), Rules(hours="22-6")]
)
KINDS = st.sampled_from([*CLASSES.values(), SLOW, replace(CLASSES["phone-low"], drop_out=0.3)])


@settings(max_examples=200)
@given(st.integers(0, 99), KINDS, RULES, RULES, st.floats(0, 1e8), st.integers(1, 10**6), st.integers(1, 10**9))
def test_a_story_goes_forward_in_time(
    seed: int, kind: DeviceClass, own: Rules, requires: Rules, start: float, steps: int, size: int
) -> None:
    there = World(seed, 5, Mix((kind,), (1.0,)), Diurnal(seed), own)
    course = there.course(3, "a", start, Load(size, size, 24.0 * size), steps, 10, requires)
    assert start <= course.accepts <= course.ends
    assert course.accepts <= course.trains <= course.computes or course.outcome == "vanished"
    assert (course.ends == math.inf) == (course.outcome == "vanished")
    assert bool(course.reason) == (course.outcome != "uploaded")
    if course.outcome == "uploaded":
        assert course.computes <= course.ends
        assert there.availability.at(3, course.computes).until > course.computes
    times = [start + step * 3600.0 for step in range(48)] + [math.inf]
    trained = [course.trained(time) for time in times]
    assert trained == sorted(trained)
    assert trained[0] >= 0
    assert trained[-1] <= max(0.0, course.computes - course.trains)
    assert course == there.course(3, "a", start, Load(size, size, 24.0 * size), steps, 10, requires)


def test_names_are_in_the_order_of_numbers() -> None:
    there = World(0, 1001, Mix((EVEN,), (1.0,)), Always(), Rules())
    names = [there.name(device) for device in range(1001)]
    assert names == sorted(names)
    assert [there.number(name) for name in names] == list(range(1001))
