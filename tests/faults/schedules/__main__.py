"""Replay the schedule of one seed: `python -m tests.faults.schedules SEED`."""

import sys

from tests.faults.schedules.invariants import Broken
from tests.faults.schedules.world import World


def main(seed: int) -> int:
    said: list[str] = []
    world = World(seed, said=said)
    try:
        store = world.run()
    except (Broken, AssertionError, KeyError) as error:
        said.append(f"{world.now:8.2f}  BROKEN: {error}")
        store = None
    print("\n".join(said))
    if store is None:
        return 1
    print(f"the run is {store.state} with {store.version} of {store.rounds} checkpoints; every invariant held")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
