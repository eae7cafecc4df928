"""How often something may happen: buckets, whose message is whose fault, and refusals that are counted and said once a minute."""

import logging

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.enrolment import Access
from umbel_server.limits.bucket import RateLimit
from umbel_server.limits.rates import BURST_SECONDS, STRANGERS, Limits, MessageLimits, RequestLimits, network_of
from umbel_server.limits.refusals import QUIET_SECONDS, Refusals
from umbel_server.security.used_tokens import UsedTokens


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_used_token_that_is_forgotten_early_is_not_taken_again() -> None:
    used = UsedTokens(Clock(), most=2)
    first, *others = (Access("home", "d", "PUT", "/x", 1000.0 + n, nonce=str(n)) for n in range(5))
    assert used.use(first)
    assert not used.use(first)
    assert all(used.use(other) for other in others)
    assert not used.use(first)
    assert used.since > first.at


moves = st.lists(st.tuples(st.sampled_from("ab"), st.floats(-5, 100)), max_size=60)


@given(burst=st.integers(1, 20), seconds=st.floats(0.01, 10), moves=moves)
def test_no_key_is_ever_used_more_often_than_its_bucket_allows(
    burst: int, seconds: float, moves: list[tuple[str, float]]
) -> None:
    clock = Clock()
    limit = RateLimit(burst, seconds, clock)
    forwards, used = 0.0, {"a": 0, "b": 0}
    for key, passed in moves:
        clock.now += passed
        forwards += max(0.0, passed)
        wait = limit.wait(key)
        might = limit.use(key)
        assert might == (wait == 0)
        used[key] += might
        assert used[key] <= burst + forwards / seconds + 1e-6
        if not might:
            assert 0 < wait <= seconds
            clock.now += wait + 1e-6
            forwards += wait + 1e-6
            assert limit.use(key), "what it says to wait is enough"
            used[key] += 1


@given(uses=st.integers(0, 200))
def test_one_who_floods_takes_nothing_from_another(uses: int) -> None:
    limit = RateLimit(10, 1.0, Clock())
    for _ in range(uses):
        limit.use("flood")
    assert [limit.use("quiet") for _ in range(11)] == [True] * 10 + [False]


def test_the_limits_are_read_and_make_sense() -> None:
    assert msgspec.convert({"transfers": 2}, Limits).transfers == 2
    for wrong in ({"requests_per_second": 0}, {"transfers": 0}, {"request_kb": 1}, {"colour": 1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, Limits)


def test_requests_of_devices_and_of_addresses_have_limits_of_their_own() -> None:
    clock = Clock()
    limits = RequestLimits(Limits(requests_per_second=2, enrolments_per_second=1, wrong_tokens_per_second=1), clock)
    assert [limits.device("p", "a") for _ in range(20)] == [0.0] * 20
    assert 0 < limits.device("p", "a") <= 0.5
    assert limits.device("p", "b") == 0
    assert limits.device("q", "a") == 0
    assert [limits.enrolment("192.0.2.1") for _ in range(10)] == [0.0] * 10
    assert limits.enrolment("192.0.2.1") > 0
    assert limits.enrolment("192.0.2.2") == 0
    for _ in range(10):
        assert limits.suspect("192.0.2.1") == 0
        limits.wrong("192.0.2.1")
    assert 0 < limits.suspect("192.0.2.1") <= 1
    clock.now += 1.01
    assert limits.suspect("192.0.2.1") == 0


def test_an_ipv6_network_is_one_sender() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") == "2001:db8::"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert network_of("::ffff:192.0.2.1") != network_of("::ffff:192.0.2.2")
    assert network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("testclient") == "testclient"


def message_limits(clock: Clock) -> tuple[MessageLimits, Refusals]:
    refusals = Refusals(clock)
    return MessageLimits(Limits(messages_per_second=5, forgeries_per_second=2), refusals, clock), refusals


def test_who_floods_with_what_he_signed_is_dropped_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    limits, refusals = message_limits(clock)
    taken = 0
    for _ in range(1000):
        if limits.admit("p/loud", True):
            limits.signed("p/loud")
            taken += 1
        assert limits.admit("p/quiet", True)
    assert taken == 5 * BURST_SECONDS
    assert refusals.of("p/loud") == {"messages": 950}
    assert refusals.of("p/quiet") == {}
    assert len(caplog.records) == 1
    clock.now += 1.0
    assert sum(limits.admit("p/loud", True) and limits.signed("p/loud") is None for _ in range(100)) == 5


def test_who_forges_messages_of_another_takes_nothing_of_what_that_one_may_send() -> None:
    clock = Clock()
    limits, refusals = message_limits(clock)
    looked = 0
    for _ in range(1000):
        if limits.admit("p/victim", True):
            limits.forged("p/victim", "it does not verify")
            looked += 1
    assert looked == 2 * BURST_SECONDS
    assert refusals.of("p/victim") == {"forged messages": 20, "messages": 980}
    assert limits.admit("p/other", True)
    clock.now += (
        0.6  # the flood is over: at once some of its messages are looked at, and it may send all it could before
    )
    assert limits.admit("p/victim", True)
    clock.now += BURST_SECONDS
    sent = 0
    while limits.admit("p/victim", True):
        limits.signed("p/victim")
        sent += 1
    assert sent == 5 * BURST_SECONDS


def test_devices_that_there_are_not_share_a_limit_that_known_ones_do_not_need() -> None:
    limits, _ = message_limits(Clock())
    looked = sum(limits.admit(f"p/{n}", False) and limits.forged(STRANGERS, "unknown") is None for n in range(500))
    assert looked == 2 * BURST_SECONDS
    assert not limits.admit("p/new", False)
    assert limits.admit("p/old", True)


def test_refusals_are_counted_and_said_once_a_minute_each(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    refusals = Refusals(clock)
    with caplog.at_level(logging.WARNING, "umbel.refused"):
        for _ in range(100):
            refusals.note("p/a", "messages", "too many")
            refusals.note("p/b", "messages", "too many")
        refusals.note("p/a", "requests", "too often")
        assert [record.getMessage() for record in caplog.records] == [
            "refused messages of p/a: too many",
            "refused messages of p/b: too many",
            "refused requests of p/a: too often",
        ]
        clock.now += QUIET_SECONDS
        refusals.note("p/a", "messages", "too many")
    assert caplog.records[-1].getMessage() == "refused messages of p/a: too many (100 since the last such line)"
    assert refusals.of("p/a") == {"messages": 101, "requests": 1}
    assert refusals.of("nobody") == {}
