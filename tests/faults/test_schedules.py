"""10,000 random schedules of the round engine, and proof that they find an engine's mistakes.

UMBEL_SCHEDULES (how many) and UMBEL_FIRST_SCHEDULE (the first seed) try others.
"""

import os

import pytest

from tests.faults.schedules.mutants import MUTANTS, mutant
from tests.faults.schedules.world import World
from tests.sampling import sample

SHOWN_BY = {
    "an update is folded while the sum is committed": (7888,),
    "late updates are not dropped at recovery": (6443,),
}
"""Schedules to begin with, where it takes thousands to come to one that shows the mistake."""

COUNT = int(os.environ.get("UMBEL_SCHEDULES", "10000"))
FIRST = int(os.environ.get("UMBEL_FIRST_SCHEDULE", "0"))
CHUNK = 500


def play(seed: int) -> World:
    world = World(seed)
    try:
        world.run()
    except Exception as error:
        pytest.fail(f"{error}\nreplay it with: python -m tests.faults.schedules {seed}", pytrace=False)
    return world


@pytest.mark.parametrize("first", sample(range(FIRST, FIRST + COUNT, CHUNK), FIRST))
def test_every_invariant_holds_after_every_event(first: int) -> None:
    for seed in range(first, min(first + CHUNK, FIRST + COUNT)):
        play(seed)


def test_most_runs_finish_and_some_end_in_every_other_way() -> None:
    stores = [play(seed).store for seed in range(300)]
    states = [store.state for store in stores]
    assert states.count("finished") > 150
    assert {"finished", "paused", "stopped"} == set(states)
    assert sum(store.version for store in stores) > 300


def test_a_seed_plays_the_same_schedule_again() -> None:
    first: list[str] = []
    again: list[str] = []
    World(7, said=first).run()
    World(7, said=again).run()
    assert first == again


@pytest.mark.parametrize("mistake", sample(MUTANTS, next(iter(MUTANTS))))
def test_an_engine_with_a_mistake_is_found(mistake: str) -> None:
    engine = mutant(mistake)
    for seed in (*SHOWN_BY.get(mistake, ()), *range(10_000)):
        try:
            World(seed, engine).run()
        except Exception:
            return
    pytest.fail(f"10,000 schedules do not show that {mistake}")
