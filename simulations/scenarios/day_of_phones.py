"""A day of 10,000 phones that train only while they charge on an unmetered network.

The system of Bonawitz et al.: Towards Federated Learning at Scale: System Design, MLSys 2019 (arXiv 1902.01046), whose
figures show the same: most devices can be had at night, rounds follow the day, and devices that are taken off their chargers
fail. Here people have habits and nights differ from each other (umbel_sim.virtual.availability.Diurnal); a round wants 100
updates, offers 130 assignments and makes do with 60 after ten minutes; a phone trains at most once an hour.

    python simulations/scenarios/day_of_phones.py --plot day.png
"""

import sys
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from umbel.conditions import Rules
from umbel_sim import Result, simulate
from umbel_sim.data import load
from umbel_sim.scenario import SMALL, arguments, keep
from umbel_sim.simulation.world import World
from umbel_sim.virtual.availability import HOUR, Diurnal
from umbel_sim.virtual.classes import mix

RULES = Rules(charging=True, unmetered=True)
MIX = ("phone-low:seconds_per_step=20,drop_out=0.02=0.7", "phone-high:seconds_per_step=5,drop_out=0.01=0.3")
"""Steps of seconds: phones train what takes minutes."""

ENDS = ("folded", "cancelled", "declined", "failed", "vanished", "expired")
HOURS = 24


def who_can_train(seed: int, devices: int) -> list[dict[str, int]]:
    """For each hour, at its half: how many devices are connected, and how many of them may train."""
    world = World(seed, devices, mix(MIX), Diurnal(seed), RULES)
    found = []
    for hour in range(HOURS):
        time = (hour + 0.5) * HOUR
        online = [device for device in range(devices) if world.availability.at(device, time).online]
        able = sum(not world.why_not(device, time, RULES, 1) for device in online)
        found.append({"hour": hour, "online": len(online), "can_train": able})
    return found


def by_hour(result: Result) -> list[dict[str, Any]]:
    """For each hour: the rounds that were committed in it, and what became of their assignments."""
    found = []
    for hour in range(HOURS):
        rows = [row for row in result.rows[1:] if hour <= row["virtual_hours"] < hour + 1]
        found.append(
            {
                "rounds": len(rows),
                **{end: sum(row[end] for row in rows) for end in ENDS},
                "trained_seconds": sum(row["trained_seconds"] for row in rows),
                "wasted_seconds": sum(row["wasted_seconds"] for row in rows),
                "accuracy": rows[-1]["test_accuracy"] if rows else None,
            }
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Let a day pass and show it by hour."""
    parser = arguments(__doc__)
    given = parser.parse_args(argv)
    devices, wanted = (500, 10) if given.small else (10_000, 100)
    data = load("digits", SMALL)
    console = Console()
    with console.status("compiling") as status:
        result = simulate(
            SMALL,
            data,
            devices=devices,
            partition="iid:50",
            target=wanted,
            over_selection=1.3,
            quorum=wanted * 6 // 10,
            deadline=600.0,
            attempts=1000,
            minimum_gap=HOUR,
            rounds=100_000,
            budget_hours=float(HOURS),
            learning_rate=0.1,
            mix=MIX,
            availability="diurnal",
            conditions=RULES,
            seed=given.seed,
            told=lambda row: status.update(f"{row['virtual_hours']:.1f} h, round {row['round']}"),
        )
        status.update("counting who can train")
        able = who_can_train(given.seed, devices)
    rows = [{**who, **what} for who, what in zip(able, by_hour(result), strict=True)]
    ends = [end for end in ENDS if any(row[end] for row in rows)]
    heads = ("hour", "online", "able", "rounds", *ends, "wasted", "accuracy")
    shown = Table(*heads, title=f"{devices:,} phones", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        trained = row["trained_seconds"]
        shown.add_row(
            *(str(row[name]) for name in ("hour", "online", "can_train", "rounds", *ends)),
            f"{row['wasted_seconds'] / trained:.0%}" if trained else "-",
            "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
        )
    console.print(shown)
    summary = result.summary()
    console.print(
        f"{summary['rounds']} rounds, {summary['updates']:,} updates of {summary['devices_that_took_part']:,} phones; "
        f"{summary['wasted_share']:.0%} of the training was wasted; it took {summary['wall_seconds']:.0f} s"
    )

    def draw() -> Any:
        from umbel_sim.report import plots

        layers = [(end, [row[end] for row in rows]) for end in ENDS]
        return plots.stacks(layers, "What became of assignments, by hour of the day", "hour", "assignments")

    keep(given, rows, draw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
