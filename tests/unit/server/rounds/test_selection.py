import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel_server.rounds.policy import RoundPolicy
from umbel_server.rounds.selection import Candidate, available, choose, in_turn

NOW = 1000.0
FLEET = [Candidate(f"d{i}", examples=10 * i, assigned=100.0 - i) for i in range(6)]


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (Candidate("a", online=False, quarantined="it sent NaN"), "offline"),
        (Candidate("a", quarantined="it sent NaN"), "quarantined"),
        (Candidate("a", labels={"country": "fr"}), "without the labels"),
        (Candidate("a"), "without the labels"),
        (Candidate("busy", labels={"country": "de"}), "busy"),
        (Candidate("a", labels={"country": "de"}, reasons=("its battery is low", "it moves")), "its battery is low"),
        (Candidate("a", labels={"country": "de"}, assigned=NOW - 59), "assigned lately"),
    ],
)
def test_a_device_that_cannot_train_is_counted_by_reason(candidate: Candidate, reason: str) -> None:
    policy = RoundPolicy(labels={"country": "de"}, minimum_gap=60.0)
    there = available(policy, [candidate], {"busy"}, NOW)
    assert there.candidates == ()
    assert there.excluded == {reason: 1}


def test_those_that_can_train_come_by_name() -> None:
    policy = RoundPolicy(labels={"country": "de"}, minimum_gap=60.0)
    fleet = [Candidate(name, labels={"country": "de", "kind": "phone"}, assigned=NOW - 60) for name in "cab"]
    assert [candidate.device for candidate in available(policy, fleet, (), NOW).candidates] == ["a", "b", "c"]


def test_a_shortage_says_who_is_missing_and_why() -> None:
    fleet = [Candidate("a"), Candidate("b", online=False), Candidate("c", online=False)]
    assert available(RoundPolicy(), fleet, (), NOW).shortage(2) == (
        "2 devices are needed and 1 can train (2 offline); start more devices or lower the quorum"
    )
    fleet.append(Candidate("d", quarantined="it sent NaN"))
    assert available(RoundPolicy(), fleet, (), NOW).shortage(2) == (
        "2 devices are needed and 1 can train (2 offline, 1 quarantined); "
        "wait until more of them can, start more devices, or lower the quorum"
    )


def test_the_longest_without_an_assignment_are_chosen() -> None:
    assert choose(RoundPolicy(select="least-recent"), FLEET, 2, "seed") == ("d4", "d5")


def test_those_with_the_most_examples_are_chosen() -> None:
    assert choose(RoundPolicy(select="most-examples"), FLEET[:5], 2, "seed") == ("d3", "d4")


def test_of_equals_the_first_by_name_are_chosen() -> None:
    equals = [Candidate(name) for name in "cab"]
    for select in ("least-recent", "most-examples"):
        assert choose(RoundPolicy(select=select), equals, 2, "seed") == ("a", "b")


@given(st.permutations(FLEET), st.integers(0, 8), st.text(max_size=5))
def test_a_choice_at_random_depends_on_the_seed_and_not_on_order(fleet: list[Candidate], count: int, seed: str) -> None:
    chosen = choose(RoundPolicy(), fleet, count, seed)
    assert chosen == choose(RoundPolicy(), FLEET, count, seed)
    assert len(set(chosen)) == len(chosen) == min(count, len(FLEET))


def test_other_seeds_choose_others() -> None:
    assert len({choose(RoundPolicy(), FLEET, 3, str(seed)) for seed in range(50)}) > 10


@given(st.integers(1, 6), st.integers(1, 50))
def test_evaluations_go_round(count: int, first: int) -> None:
    turns = [device for number in range(first, first + len(FLEET)) for device in in_turn(FLEET, count, number)]
    assert {turns.count(candidate.device) for candidate in FLEET} == {count}


def test_nobody_evaluates_where_nobody_is() -> None:
    assert in_turn([], 3, 1) == ()
