"""Rules and readings: what breaks which rule, and that merging two rules forgets neither."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.conditions import NEVER, Readings, Rules, hours_of, violated, violations

PHONE = Readings(0.12, False, True, 1.8, 51.0, 14, 12.0, 40.0, 3)
STRICT = Rules(0.3, True, True, 0.5, 45.0, "22-6", 64.0, 100.0, 10)

HOURS = st.one_of(
    st.sampled_from(["", "22-6", "8-12", "0-6, 22-24", NEVER]),
    st.tuples(st.integers(0, 23), st.integers(0, 24))
    .filter(lambda pair: pair[0] != pair[1])
    .map(lambda pair: f"{pair[0]}-{pair[1]}"),
)
AMOUNTS = st.floats(0, 200, width=16)
RULES = st.builds(
    Rules,
    min_battery=st.floats(0, 1),
    charging=st.booleans(),
    unmetered=st.booleans(),
    max_load=st.none() | AMOUNTS,
    max_temperature=st.none() | AMOUNTS,
    hours=HOURS,
    min_free_memory_mb=AMOUNTS,
    min_free_disk_mb=AMOUNTS,
    min_examples=st.integers(0, 200),
    unknown=st.sampled_from(["allow", "refuse"]),
)
KNOWN = st.builds(
    Readings,
    battery=st.floats(0, 1),
    charging=st.booleans(),
    metered=st.booleans(),
    load=AMOUNTS,
    temperature=AMOUNTS,
    hour=st.integers(0, 23),
    free_memory_mb=AMOUNTS,
    free_disk_mb=AMOUNTS,
    examples=st.integers(0, 200),
)


def test_every_broken_rule_is_named_with_what_was_found() -> None:
    assert violated(STRICT, PHONE) == (
        "battery 0.12 < 0.3",
        "not charging",
        "metered network",
        "load 1.8 > 0.5",
        "temperature 51 C > 45 C",
        "hour 14 is outside 22-6",
        "free memory 12 MB < 64 MB",
        "free disk 40 MB < 100 MB",
        "examples 3 < 10",
    )
    assert violations(STRICT, PHONE)[:2] == (
        ("battery", "0.12 < 0.3", "battery 0.12 < 0.3"),
        ("charging", "no", "not charging"),
    )


def test_what_a_device_cannot_tell_counts_as_its_rules_say() -> None:
    assert violated(STRICT, Readings()) == ()
    unknown = violated(msgspec.structs.replace(STRICT, unknown="refuse"), Readings())
    assert unknown[:3] == ("battery unknown", "charging unknown", "network unknown")
    assert len(unknown) == 9
    assert violated(Rules(unknown="refuse"), Readings()) == ()


@given(RULES, RULES, KNOWN)
def test_merged_rules_are_kept_exactly_when_both_are(one: Rules, other: Rules, now: Readings) -> None:
    merged = {violation.condition for violation in violations(one.merge(other), now)}
    apart = {violation.condition for rules in (one, other) for violation in violations(rules, now)}
    assert merged == apart


@given(RULES, RULES, RULES)
def test_merging_is_a_meet(one: Rules, other: Rules, third: Rules) -> None:
    assert one.merge(other) == other.merge(one)
    assert one.merge(other).merge(third) == one.merge(other.merge(third))
    assert one.merge(one).merge(one) == one.merge(one)
    assert one.merge(Rules()).merge(Rules()) == one.merge(one)


@given(RULES)
def test_rules_survive_a_message(rules: Rules) -> None:
    assert msgspec.json.decode(msgspec.json.encode(rules), type=Rules) == rules
    assert rules.ask_nothing or Rules() != rules


def test_hours_wrap_around_midnight_and_come_in_several_windows() -> None:
    assert hours_of("22-6") == {22, 23, 0, 1, 2, 3, 4, 5}
    assert hours_of("0-6, 22-24") == hours_of("22-6")
    assert Rules(hours="20-4").merge(Rules(hours="2-22")).hours == "2-4, 20-22"
    assert Rules(hours="8-12").merge(Rules(hours="14-18")).hours == NEVER
    assert violated(Rules(hours=NEVER), Readings(hour=3)) == ("hour 3 is outside never",)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"min_battery": 30}, "between 0 and 1"),
        ({"max_temperature": float("nan")}, "degrees Celsius"),
        ({"hours": "night"}, "windows of whole hours"),
        ({"hours": "7-7"}, "windows of whole hours"),
        ({"hours": "9-25"}, "windows of whole hours"),
        ({"min_examples": -1}, "at least 0"),
        ({"unknown": "perhaps"}, "Invalid enum value"),
        ({"moon": "full"}, "unknown field"),
    ],
)
def test_rules_that_make_no_sense_are_refused(raw: dict[str, object], sentence: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=sentence):
        msgspec.convert(raw, Rules)
