from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from umbel_server.rounds.assignments import WITH_DEVICE
from umbel_server.rounds.open_assignments import OpenAssignment, OpenAssignments

STATES = ("offered", "accepted", "arrived", "folding", "folded")
works = st.builds(
    OpenAssignment,
    st.sampled_from("abcdef"),
    st.just("device"),
    st.integers(0, 2),
    st.floats(0, 10),
    st.sampled_from(STATES),
)


@given(st.lists(st.one_of(works, st.sampled_from("abcdef")), max_size=30))
def test_the_sums_are_those_of_what_it_holds(steps: list[OpenAssignment | str]) -> None:
    mine, plain = OpenAssignments(), {}
    for step in steps:
        before, copy = mine, dict(mine)
        if isinstance(step, OpenAssignment):
            mine, plain = mine.put(step), {**plain, step.id: step}
        elif step in plain:
            mine, plain = mine.without(step), {id: work for id, work in plain.items() if id != step}
        assert dict(before) == copy
        assert dict(mine) == plain
        for state in STATES:
            assert mine.count(state) == sum(work.state == state for work in plain.values())
        for base in range(3):
            coming = sum(work.state in WITH_DEVICE and work.base == base for work in plain.values())
            assert mine.coming(base) == coming
        at_work = [work for work in plain.values() if work.state in WITH_DEVICE]
        assert all(mine.soonest <= work.closes for work in at_work)
        for now in (0.0, 3.0, 10.0):
            assert mine.overdue(now) == [work for work in at_work if work.closes <= now]
        assert OpenAssignments(mine.values()).soonest == min((work.closes for work in at_work), default=float("inf"))


def test_several_are_put_at_once() -> None:
    one = OpenAssignment("a", "device", 0, 5.0)
    both = OpenAssignments().put(one, replace(one, id="b", state="arrived"))
    assert (len(both), both.count("offered", "arrived"), both.coming(0)) == (2, 2, 1)
