import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel_server.rounds.bounds import POLICY
from umbel_server.rounds.policy import LONGEST_BACKOFF, RoundPolicy, scalar_fields

NUMBERS = [name for name, kind in scalar_fields().items() if kind is not str]


def test_every_number_of_a_policy_has_bounds() -> None:
    assert sorted(NUMBERS) == sorted(POLICY)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_least_and_the_most_are_allowed_and_nothing_beyond(name: str) -> None:
    least, most, above = POLICY[name]
    together = {"target": {"quorum": 1}, "quorum": {"target": 0}, "buffer": {"quorum": 1}}.get(name, {})
    for value in (most, least + 0.5 if above else least):
        kind = scalar_fields()[name]
        assert getattr(RoundPolicy(**{name: kind(value), **together}), name) == value
    text = name.replace("_", " ")
    with pytest.raises(ValueError, match=f"^{text} should be {'over' if above else 'at least'} .*, got "):
        RoundPolicy(**{name: least if above else least - 1})  # type: ignore[arg-type]
    for value in (most * 2, 10**400):
        with pytest.raises(ValueError, match=f"^{text} should be at most .*, got "):
            RoundPolicy(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got nan"):
        RoundPolicy(**{name: math.nan})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"target": 2, "quorum": 3}, "target should be at least the quorum of 3, got 2"),
        ({"mode": "async", "buffer": 2, "quorum": 3}, "buffer should be at least the quorum of 3, got 2"),
        ({"minimum": 3}, "unknown field `minimum`"),
        ({"late": "keep"}, "Invalid enum value 'keep'"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=sentence):
        msgspec.convert(fields, RoundPolicy)


@pytest.mark.parametrize(
    ("policy", "available", "wanted"),
    [
        (RoundPolicy(target=7), 100, 7),
        (RoundPolicy(fraction=0.25), 10, 3),
        (RoundPolicy(fraction=0.01, quorum=4), 10, 4),
        (RoundPolicy(mode="async", buffer=6), 100, 6),
    ],
)
def test_a_round_wants_its_target_or_a_fraction(policy: RoundPolicy, available: int, wanted: int) -> None:
    assert policy.wanted(available) == wanted


def test_more_devices_are_asked_than_updates_are_wanted() -> None:
    policy = RoundPolicy(over_selection=1.3)
    assert policy.offers(available=100, wanted=10) == 13
    assert policy.offers(available=100, wanted=3) == 4
    assert policy.offers(available=8, wanted=10) == 8
    assert policy.offers(available=8, wanted=0) == policy.offers(available=8, wanted=-2) == 0


@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(1, 100))
def test_all_that_can_be_are_asked_and_nobody_else(available: int, wanted: int, over: float) -> None:
    asked = RoundPolicy(over_selection=over).offers(available, wanted)
    assert min(available, wanted) <= asked <= available


def test_staleness_discounts_an_update() -> None:
    assert RoundPolicy().weight(30, staleness=0) == 30
    assert RoundPolicy().weight(30, staleness=3) == 15
    assert RoundPolicy(staleness_exponent=0.0).weight(30, staleness=3) == 30


def test_the_rest_doubles_up_to_a_minute() -> None:
    policy = RoundPolicy(backoff=2.0)
    assert [policy.rest(failures) for failures in (1, 2, 3, 10, 10**9)] == [2, 4, 8, LONGEST_BACKOFF, LONGEST_BACKOFF]
    assert RoundPolicy(backoff=0.0).rest(5) == 0


def test_late_updates_are_folded_when_the_policy_says_so_or_is_asynchronous() -> None:
    assert not RoundPolicy().folds_late
    assert RoundPolicy(late="fold").folds_late
    assert RoundPolicy(mode="async").folds_late
