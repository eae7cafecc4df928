"""Whom the server asks whether it is there, and who is gone."""

import itertools

from umbel_server.commands.roll_call import (
    ANSWER_SECONDS,
    ASKED_PER_SECOND,
    FIRST_REST,
    LAST_REST,
    SPREAD_SECONDS,
    TRIES,
    Name,
    Question,
    RollCall,
)

PHONE: Name = ("home", "phone")


def ask(call: RollCall, now: float) -> tuple[list[Question], list[Name]]:
    """A turn, with the ids of its questions noted."""
    questions, gone = call.turn(now)
    for question in questions:
        call.asked(question.name, f"q{now}")
    return questions, gone


def test_a_device_that_is_silent_is_asked_and_is_gone_when_it_does_not_answer() -> None:
    call = RollCall(silence=90.0)
    call.heard(PHONE, 0.0)
    assert ask(call, 89.0) == ([], [])
    now = 90.0
    for _ in range(TRIES):
        assert ask(call, now) == ([Question(PHONE, 0.0)], [])
        assert call.is_online(PHONE)
        now += ANSWER_SECONDS
    assert ask(call, now) == ([], [PHONE])
    assert not call.is_online(PHONE)


def test_a_device_that_speaks_is_not_asked() -> None:
    call = RollCall(silence=90.0)
    for now in range(0, 1000, 80):
        call.heard(PHONE, float(now))
        assert ask(call, float(now)) == ([], [])


def test_an_answer_ends_the_question_and_is_one_only_once() -> None:
    call = RollCall(silence=90.0)
    call.doubt(PHONE, 0.0, online=False)
    ask(call, 0.0)
    assert call.is_answer(PHONE, "q0.0")
    assert not call.is_answer(PHONE, "q1.0")
    assert not call.is_answer(PHONE, "")
    call.heard(PHONE, 1.0)
    assert not call.is_answer(PHONE, "q0.0")
    assert call.is_online(PHONE)


def test_doubt_does_not_ask_again_while_a_question_is_open() -> None:
    call = RollCall(silence=90.0)
    call.doubt(PHONE, 0.0, online=False)
    assert len(ask(call, 0.0)[0]) == 1
    for now in (1.0, 2.0, 3.0):
        call.doubt(PHONE, now, online=False)
        assert ask(call, now) == ([], [])


def test_a_device_that_does_not_answer_is_asked_more_and_more_rarely_for_ever() -> None:
    call = RollCall(silence=90.0)
    call.ask_all([PHONE], 0.0)
    times = []
    for now in range(0, 30_000):
        if ask(call, float(now))[0]:
            times.append(now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[0] <= ANSWER_SECONDS + 1
    assert max(pauses) >= LAST_REST
    assert times[2] <= 2 * ANSWER_SECONDS + FIRST_REST + 2
    assert times[-1] > 25_000


def test_a_device_that_said_goodbye_is_not_asked_at_once() -> None:
    call = RollCall(silence=90.0)
    call.heard(PHONE, 0.0)
    call.left(PHONE, 1.0)
    assert ask(call, FIRST_REST) == ([], [])
    assert ask(call, FIRST_REST + 1.0)[0] == [Question(PHONE, 0.0)]


def test_a_large_fleet_is_asked_at_a_bounded_rate_in_order_and_spreads_its_answers() -> None:
    call = RollCall(silence=90.0)
    names = [("home", f"{number:04}") for number in range(3000, 0, -1)]
    call.turn(100.0)
    call.ask_all(names, 100.0)
    asked: list[Name] = []
    now = 100.0
    while len(asked) < len(names):
        now += 1.0
        questions, _ = ask(call, now)
        assert len(questions) <= ASKED_PER_SECOND
        assert {question.within for question in questions} == {SPREAD_SECONDS}
        asked += [question.name for question in questions]
        for question in questions:
            call.heard(question.name, now + 1.0)
    assert asked == names
    assert now - 100.0 <= len(names) / ASKED_PER_SECOND + 1


def test_devices_that_enrolled_since_are_asked_too() -> None:
    call = RollCall(silence=90.0)
    call.heard(PHONE, 0.0)
    call.add([PHONE, ("home", "other")], 1.0)
    assert ask(call, 1.0)[0] == [Question(("home", "other"), 0.0)]


def test_a_forgotten_device_is_asked_no_more() -> None:
    call = RollCall(silence=90.0)
    call.heard(PHONE, 0.0)
    call.forget(PHONE)
    assert ask(call, 1000.0) == ([], [])
