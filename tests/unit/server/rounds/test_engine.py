"""The engine phase by phase. What faults do to it is played in tests/faults/schedules."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel_server.rounds import engine, events
from umbel_server.rounds.assignments import WITH_DEVICE
from umbel_server.rounds.engine import OpenRound, Record, State
from umbel_server.rounds.events import Effect, End, Event, Finish, Look, Offer
from umbel_server.rounds.open_assignments import OpenAssignment
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.rounds.selection import Candidate

POLICY = RoundPolicy(over_selection=1.0, quorum=2, deadline=10.0, attempts=3, backoff=1.0)
ABC = ("a", "b", "c")


class Play:
    """A run that events move on; `effects` are those of the last of them."""

    def __init__(self, policy: RoundPolicy = POLICY, rounds: int = 3, now: float = 0.0, **record: object) -> None:
        before = Record("run", 1, policy, rounds, **{"version": 0, **record})  # type: ignore[arg-type]
        self.now = now
        self.state: State
        self.state, self.effects = engine.recover(before, now)

    def take(self, event: Event) -> tuple[Effect, ...]:
        self.now = event.now
        self.state, self.effects = engine.step(self.state, event)
        return self.effects

    def tick(self, now: float) -> tuple[Effect, ...]:
        return self.take(events.Tick(now))

    def see(self, *devices: str) -> tuple[Offer, ...]:
        """Tell which devices there are; what is offered to them."""
        self.take(events.Candidates(self.now, tuple(Candidate(device) for device in devices)))
        return tuple(
            offer
            for effect in self.effects
            if isinstance(effect, events.Open | events.Assign)
            for offer in effect.offers
        )

    def upload(self, *ids: str, examples: int = 10) -> tuple[Effect, ...]:
        """Updates come and are folded; the effects of the last."""
        for id in ids:
            self.take(events.Uploaded(self.now, id, examples))
            if any(isinstance(effect, events.Fold) for effect in self.effects):
                self.take(events.Folded(self.now, id))
        return self.effects

    def finished(self) -> list[tuple[str, str, bool]]:
        """The assignments that ended in the last step, how, and whether their devices are told."""
        return [(effect.id, effect.state, effect.tell) for effect in self.effects if isinstance(effect, Finish)]

    def contributors(self) -> set[str]:
        """The assignments that the last step commits."""
        (commit,) = [effect for effect in self.effects if isinstance(effect, events.Commit)]
        return {id for id, _ in commit.contributors}

    def only(self, kind: type[Effect]) -> Effect:
        """The one effect of that kind."""
        (found,) = [effect for effect in self.effects if isinstance(effect, kind)]
        return found


def ids(offers: tuple[Offer, ...]) -> list[str]:
    return [offer.id for offer in offers]


def commit(play: Play) -> Play:
    """A play whose round is collected and committed."""
    play.upload(*ids(play.see(*ABC)))
    play.take(events.Committed(play.now))
    return play


# Selecting.


def test_a_run_begins_by_looking_for_devices() -> None:
    play = Play()
    assert play.effects == (Look(),)
    assert (play.state.phase, play.state.number, play.state.wake) == ("selecting", 1, 10.0)


def test_devices_below_the_quorum_are_waited_for_until_the_deadline() -> None:
    play = Play()
    assert play.see("a") == ()
    play.now = 10.0
    assert play.see("a") == ()
    reason = "2 devices are needed and 1 can train; start more devices or lower the quorum"
    assert play.only(events.Abandon) == events.Abandon(1, 0, reason)
    assert play.state.phase == "resting"


def test_a_round_opens_with_an_assignment_a_device() -> None:
    play = Play()
    offers = play.see(*ABC)
    assert [(offer.device, offer.base, offer.closes) for offer in offers] == [
        ("a", 0, 10.0),
        ("b", 0, 10.0),
        ("c", 0, 10.0),
    ]
    assert play.effects == (events.Open(1, 0, 0.0, 10.0, 3, offers),)
    assert play.state.phase == "collecting"
    assert play.see(*ABC) == ()


def test_a_round_asks_more_devices_than_it_wants() -> None:
    play = Play(RoundPolicy(target=2, over_selection=1.5, quorum=1))
    assert len(play.see("a", "b", "c", "d")) == 3
    assert play.state.wanted == 2


# Collecting.


def test_an_update_is_folded_as_it_comes() -> None:
    play = Play()
    first = ids(play.see(*ABC))[0]
    play.take(events.Accepted(1.0, first))
    assert play.state.work[first].state == "accepted"
    assert play.take(events.Uploaded(2.0, first, 30)) == (events.Fold(first, 30.0),)
    assert play.take(events.Folded(2.0, first)) == ()
    assert play.state.count("folded") == 1


def test_a_round_commits_when_it_has_what_it_wants() -> None:
    play = Play()
    work = ids(play.see(*ABC))
    assert play.upload(*work) == (events.Commit(1, 0, tuple(sorted((id, 10.0) for id in work))),)
    assert (play.state.phase, play.state.wake) == ("committing", math.inf)


def test_a_round_commits_with_its_quorum_when_nobody_else_is_coming() -> None:
    play = Play()
    first, second, third = ids(play.see(*ABC))
    assert play.upload(first, second) == ()
    play.take(events.Ended(3.0, third, "c failed: no examples"))
    assert len(play.contributors()) == 2


def test_a_round_commits_with_its_quorum_at_its_deadline() -> None:
    play = Play()
    first, second, third = ids(play.see(*ABC))
    play.upload(first, second)
    play.tick(10.0)
    assert play.only(Finish) == Finish(third, "expired", "not finished by the deadline", tell=True)
    assert len(play.contributors()) == 2


def test_a_round_that_cannot_reach_its_quorum_is_abandoned_with_the_last_trouble() -> None:
    play = Play()
    first, second, third = ids(play.see(*ABC))
    play.upload(first)
    assert not play.take(events.Ended(1.0, second, "b declined: its battery is low"))
    play.take(events.Ended(2.0, third, "c failed: no examples"))
    why = "1 updates came, the quorum is 2; c failed: no examples"
    cancel = Finish(first, "cancelled", f"the round was abandoned: {why}", tell=False)
    assert play.effects == (cancel, events.Abandon(1, 0, why))


def test_a_refused_update_is_rejected_and_the_round_goes_on() -> None:
    play = Play()
    first, second, third = ids(play.see(*ABC))
    play.take(events.Uploaded(1.0, first, 10))
    assert play.take(events.Refused(1.0, first, "NaN")) == (Finish(first, "rejected", "NaN", tell=False),)
    play.upload(second, third)
    assert play.state.phase == "committing"


def test_a_repeated_or_late_word_changes_nothing() -> None:
    play = Play()
    first = ids(play.see(*ABC))[0]
    play.upload(first)
    before = play.state
    repeated = events.Accepted(0.0, first), events.Uploaded(0.0, first, 99), events.Ended(0.0, first)
    for event in (*repeated, events.Folded(0.0, "nobody's"), events.Committed(0.0), events.Unable(0.0, "why")):
        assert play.take(event) == ()
        assert play.state == before


# Committing.


def test_after_a_commit_the_next_round_looks_for_devices() -> None:
    play = commit(Play())
    assert play.effects == (Look(),)
    assert (play.state.version, play.state.number, play.state.phase, play.state.work) == (1, 2, "selecting", {})


def test_after_a_commit_devices_evaluate_when_the_policy_says_so() -> None:
    assert commit(Play(RoundPolicy(evaluate=2))).only(events.Evaluate) == events.Evaluate(1)


@pytest.mark.parametrize(
    ("rounds", "done", "why"),
    [(1, "", "its last round is committed"), (3, "the goal is reached", "the goal is reached")],
)
def test_a_run_finishes_with_its_last_round_or_its_goal(rounds: int, done: str, why: str) -> None:
    play = Play(rounds=rounds)
    play.upload(*ids(play.see(*ABC)))
    assert play.take(events.Committed(1.0, done)) == (End("finished", why),)
    assert play.take(events.Order(2.0, "stop")) == ()


def test_a_strategy_that_is_unable_abandons_the_attempt() -> None:
    play = Play()
    play.upload(*ids(play.see(*ABC)))
    play.take(events.Unable(1.0, "FedAdam made weights that are not finite"))
    assert play.only(events.Abandon) == events.Abandon(1, 0, "FedAdam made weights that are not finite")
    assert play.state.work == {}


def test_an_update_that_comes_while_the_sum_is_committed_waits() -> None:
    play = Play(RoundPolicy(target=1, over_selection=2.0, late="fold", staleness_exponent=1.0, deadline=10.0))
    first, second = ids(play.see("a", "b"))
    play.upload(first)
    assert play.take(events.Uploaded(1.0, second, 10)) == ()
    play.take(events.Committed(2.0))
    assert play.only(events.Fold) == events.Fold(second, 5.0)


# Resting.


def test_a_rest_is_twice_as_long_each_time_and_then_the_run_pauses() -> None:
    play = Play()
    rests = []
    for _ in range(2):
        play.tick(play.state.closes + POLICY.deadline)
        assert play.state.phase == "resting"
        rests.append(play.state.closes - play.now)
        play.tick(play.state.closes)
        assert (play.state.phase, play.effects) == ("selecting", (Look(),))
    play.tick(play.state.closes + POLICY.deadline)
    assert rests == [1.0, 2.0]
    why = "round 1 was abandoned 3 times in a row, last because nobody told which devices there are"
    assert play.only(End) == End("paused", why)


def test_a_commit_ends_the_row_of_failures() -> None:
    play = Play(failures=2, attempts=2)
    assert (play.state.failures, play.state.attempt) == (2, 2)
    commit(play)
    assert (play.state.failures, play.state.attempt) == (0, 0)


# Late updates.


def late_play(policy: RoundPolicy) -> tuple[Play, str]:
    """A play whose first round was committed without the assignment that is named."""
    play = Play(policy)
    first, second = ids(play.see("a", "b"))
    play.upload(first)
    play.take(events.Committed(1.0))
    return play, second


def test_late_updates_are_dropped_and_their_devices_told() -> None:
    play, late = late_play(RoundPolicy(target=1, over_selection=2.0))
    assert play.only(Finish) == Finish(late, "cancelled", "round 1 was committed without it", tell=True)


def test_late_updates_are_folded_at_a_discount() -> None:
    policy = RoundPolicy(
        target=1, over_selection=2.0, late="fold", deadline=10.0, max_staleness=2, staleness_exponent=1.0
    )
    play, late = late_play(policy)
    assert play.state.work[late].closes == 30.0
    play.take(events.Uploaded(11.0, late, 10))
    assert play.only(events.Fold) == events.Fold(late, 5.0)


def test_a_late_and_a_new_update_of_one_device_are_no_quorum_of_two() -> None:
    policy = RoundPolicy(target=2, quorum=2, over_selection=1.5, late="fold", deadline=10.0, max_staleness=2)
    play = Play(policy)
    *first, late = ids(play.see(*ABC))
    play.upload(*first)
    play.take(events.Committed(1.0))
    play.upload(late)  # of c, and c is free again
    new = {offer.device: offer.id for offer in play.see(*ABC)}
    assert set(new) == set(ABC)
    play.take(events.Uploaded(2.0, new["c"], 10))
    assert not any(isinstance(effect, events.Fold | events.Commit) for effect in play.effects)
    play.upload(new["a"])
    assert play.contributors() == {late, new["a"]}
    play.take(events.Committed(3.0))
    play.see(*ABC)
    assert new["c"] in {work.id for work in play.state.work.values() if work.state == "folding"}


def test_the_same_after_a_crash() -> None:
    policy = RoundPolicy(target=2, quorum=2, over_selection=1.5, late="fold", deadline=10.0, max_staleness=2)
    kept = (
        OpenAssignment("late", "c", 0, 30.0, "arrived", 10),
        OpenAssignment("new", "c", 1, 30.0, "arrived", 10),
        OpenAssignment("other", "a", 1, 30.0, "offered"),
    )
    opened = OpenRound(2, 0, 1.0, 11.0, 2)
    play = Play(policy, now=2.0, version=1, open=opened, work=kept)
    assert [effect.id for effect in play.effects if isinstance(effect, events.Fold)] == ["late"]


def test_updates_that_are_too_stale_are_dropped() -> None:
    play, late = late_play(RoundPolicy(target=1, over_selection=2.0, late="fold", max_staleness=0))
    assert play.only(Finish) == Finish(
        late, "cancelled", "1 checkpoints were committed since it was assigned", tell=True
    )


# Asynchronous runs.

ASYNC = RoundPolicy(mode="async", buffer=2, concurrency=2, deadline=10.0)


def test_in_an_asynchronous_run_devices_train_all_the_time() -> None:
    play = Play(ASYNC)
    first, _ = ids(play.see(*ABC))
    assert not play.state.wants_devices
    play.upload(first)
    assert play.state.wants_devices
    (more,) = play.see(*ABC)
    assert (more.base, play.state.count(*WITH_DEVICE)) == (0, 2)


def test_every_buffer_of_updates_makes_a_checkpoint_and_devices_train_on() -> None:
    play = Play(ASYNC)
    first, second = ids(play.see(*ABC))
    play.upload(first)
    (third,) = ids(play.see("d"))
    play.upload(second)
    assert len(play.contributors()) == 2
    play.take(events.Committed(1.0))
    assert set(play.state.work) == {third}


def test_an_asynchronous_round_makes_do_with_its_quorum_at_its_deadline() -> None:
    play = Play(ASYNC)
    play.upload(ids(play.see(*ABC))[0])
    play.tick(10.0)
    assert len(play.contributors()) == 1


# Orders, and what is recovered after them.


def test_a_pause_stops_devices_and_keeps_what_came() -> None:
    play = Play()
    first, second, third = ids(play.see(*ABC))
    play.upload(first)
    play.take(events.Order(1.0, "pause"))
    stopped = [Finish(id, "cancelled", "the run was paused", tell=True) for id in (second, third)]
    assert play.effects == (*stopped, End("paused", "paused by an administrator"))


def test_a_stop_keeps_nothing() -> None:
    play = Play()
    first, second, third = ids(play.see(*ABC))
    play.upload(first)
    play.take(events.Order(1.0, "stop"))
    ends = {id: (state, tell) for id, state, tell in play.finished()}
    assert ends == {first: ("cancelled", False), second: ("cancelled", True), third: ("cancelled", True)}
    assert play.effects[-1] == End("stopped", "stopped by an administrator")


def paused(policy: RoundPolicy = POLICY, now: float = 100.0, arrived: int = 1, wanted: int = 3) -> Play:
    """A play of a round that was paused at `arrived` updates and is resumed at `now`."""
    work = tuple(OpenAssignment(f"kept-{device}", device, 0, 10.0, "arrived", 10) for device in ABC[:arrived])
    opened = OpenRound(1, 0, 0.0, 10.0, wanted, resumed=True)
    return Play(policy, now=now, open=opened, work=work, attempts=1, made=3)


def fold_all(play: Play) -> Play:
    for id in play.state.work:
        play.take(events.Folded(play.now, id))
    return play


def test_a_crash_loses_nothing() -> None:
    work = (OpenAssignment("there", "a", 0, 10.0, "arrived", 10), OpenAssignment("coming", "b", 0, 10.0, "accepted"))
    play = Play(now=5.0, open=OpenRound(1, 0, 0.0, 10.0, 2), work=work, attempts=1, made=2)
    assert play.effects == (events.Fold("there", 10.0),)
    fold_all(play)
    play.upload("coming")
    assert play.only(events.Commit) == events.Commit(1, 0, (("coming", 10.0), ("there", 10.0)))


def test_a_round_whose_deadline_passed_in_a_crash_makes_do_or_is_abandoned() -> None:
    work = tuple(OpenAssignment(f"there-{device}", device, 0, 10.0, "arrived", 10) for device in ABC)
    for count, kind in ((2, events.Commit), (1, events.Abandon)):
        play = Play(now=50.0, open=OpenRound(1, 0, 0.0, 10.0, 3), work=work[:count], attempts=1, made=3)
        fold_all(play)
        assert play.only(kind)


def test_a_paused_round_with_its_quorum_commits_what_it_kept() -> None:
    play = fold_all(paused(arrived=2))
    assert len(play.contributors()) == 2


def test_a_paused_round_below_its_quorum_is_opened_again_for_what_is_missing() -> None:
    play = fold_all(paused())
    assert (play.effects, play.state.phase) == ((Look(),), "selecting")
    offers = play.see(*ABC)
    assert [offer.device for offer in offers] == ["b", "c"]
    assert play.effects == (events.Open(1, 0, 100.0, 110.0, 3, offers),)
    play.upload(*ids(offers))
    assert play.contributors() == {"kept-a", *ids(offers)}


def test_a_paused_round_is_opened_again_once() -> None:
    play = fold_all(paused())
    play.see(*ABC)
    play.tick(110.0)
    assert play.only(events.Abandon) == events.Abandon(1, 0, "1 updates came, the quorum is 2")


def test_a_paused_round_that_finds_nobody_else_is_abandoned() -> None:
    play = fold_all(paused())
    play.now = 110.0
    play.see("a")
    reason = "1 device is needed and 0 can train; start more devices or lower the quorum"
    assert play.only(events.Abandon) == events.Abandon(1, 0, reason)


def test_a_paused_round_whose_kept_update_is_refused_asks_for_that_too() -> None:
    play = paused()
    play.take(events.Refused(100.0, "kept-a", "NaN"))
    assert [offer.device for offer in play.see(*ABC)] == ["a", "b", "c"]


def test_an_asynchronous_round_that_was_paused_past_its_deadline_is_opened_again() -> None:
    play = fold_all(paused(msgspec.structs.replace(ASYNC, quorum=2), wanted=2))
    assert play.state.phase == "selecting"
    assert len(play.see(*ABC)) == 2
    assert play.state.closes == 110.0


def test_a_run_that_has_ended_ends_again_at_recovery() -> None:
    assert Play(version=3).effects == (End("finished", "its last round is committed"),)
    assert Play(done="the goal is reached").effects == (End("finished", "the goal is reached"),)
    assert Play(failures=3, attempts=3).effects == (End("paused", "round 1 was abandoned 3 times in a row"),)


# Whatever happens.

WORDS = st.sampled_from(("tick", "see", "accept", "upload", "end", "fold", "refuse", "commit", "unable"))
POLICIES = st.sampled_from((POLICY, ASYNC, RoundPolicy(target=2, over_selection=1.5, late="fold")))


@given(POLICIES, st.lists(st.tuples(WORDS, st.integers(0, 9), st.floats(0, 6)), max_size=40))
def test_in_any_order_of_events_an_assignment_ends_once_and_the_engine_wakes(
    policy: RoundPolicy, happens: list[tuple[str, int, float]]
) -> None:
    play, offered, finished = Play(policy), list[str](), list[str]()
    for word, which, later in happens:
        now, id = play.now + later, offered[which % len(offered)] if offered else "nobody's"
        play.take(
            {
                "tick": events.Tick(now),
                "see": events.Candidates(now, tuple(Candidate(device) for device in "abcdef"[: which + 1])),
                "accept": events.Accepted(now, id),
                "upload": events.Uploaded(now, id, which + 1),
                "end": events.Ended(now, id, "it failed"),
                "fold": events.Folded(now, id),
                "refuse": events.Refused(now, id, "NaN"),
                "commit": events.Committed(now),
                "unable": events.Unable(now, "it failed"),
            }[word]
        )
        offered += [
            offer.id
            for effect in play.effects
            if isinstance(effect, events.Open | events.Assign)
            for offer in effect.offers
        ]
        finished += [id for id, _, _ in play.finished()]
        assert len(set(offered)) == len(offered)
        assert len(set(finished)) == len(finished)
        assert not set(finished) & set(play.state.work)
        assert set(play.state.work) <= set(offered)
        busy = [work.device for work in play.state.work.values() if work.state in WITH_DEVICE]
        assert len(set(busy)) == len(busy)
        waits = play.state.phase == "selecting" or play.state.count("folding")  # for an answer
        assert waits or play.state.wake > play.now


@given(POLICIES, st.integers(0, 3), st.booleans(), st.floats(0, 200))
def test_what_came_is_folded_at_recovery_whenever_that_is(
    policy: RoundPolicy, arrived: int, resumed: bool, now: float
) -> None:
    work = tuple(OpenAssignment(f"kept-{i}", f"kept-{i}", 0, 10.0, "arrived", 10) for i in range(arrived))
    play = Play(policy, now=now, open=OpenRound(1, 0, 0.0, 10.0, 2, resumed), work=work, attempts=1, made=arrived)
    room = policy.buffer if policy.mode == "async" else arrived
    assert sum(isinstance(effect, events.Fold) for effect in play.effects) == min(arrived, room)
    fold_all(play)
    abandoned = any(isinstance(effect, events.Abandon) for effect in play.effects)
    assert not (abandoned and resumed)
