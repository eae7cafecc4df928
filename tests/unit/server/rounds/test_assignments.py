from itertools import product
from typing import get_args

from umbel_server.rounds.assignments import FINAL, LIVE, WITH_DEVICE, FinalState, LiveState, may_follow


def test_every_state_is_live_or_final() -> None:
    assert get_args(LiveState) == LIVE
    assert get_args(FinalState) == FINAL
    assert set(WITH_DEVICE) < set(LIVE)
    assert not set(LIVE) & set(FINAL)


def test_nothing_follows_a_final_state() -> None:
    assert not any(may_follow(state, next) for state, next in product(FINAL, LIVE + FINAL))


def test_no_state_follows_itself_or_goes_back() -> None:
    for index, state in enumerate(LIVE):
        assert not any(may_follow(state, earlier) for earlier in LIVE[: index + 1])


def test_a_device_may_end_its_assignment_in_every_way_even_when_its_acceptance_was_lost() -> None:
    for state in WITH_DEVICE:
        assert all(may_follow(state, next) for next in ("uploaded", *FINAL))


def test_what_is_uploaded_is_the_servers_to_decide() -> None:
    assert {state for state in FINAL if may_follow("uploaded", state)} == {"folded", "expired", "rejected", "cancelled"}


def test_nothing_follows_a_state_that_there_is_not() -> None:
    assert not may_follow("lost", "folded")
