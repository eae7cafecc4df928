"""The fault matrix: every fault at every moment, with both brokers and both strategies, and a table of what broke."""

import argparse
import json
import logging
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.brokers import mosquitto_program
from tests.faults.case import BROKERS, OPTIONS, Case, Outcome, Plans, execute
from tests.faults.injections import FAULTS, cannot
from tests.faults.moments import MOMENTS, RANDOM
from tests.faults.processes import ROOT, script

WHEN = (RANDOM, *MOMENTS)

console = Console(highlight=False)


def cases(
    seed: int, count: int, faults: Sequence[str], moments: Sequence[str], kinds: Sequence[tuple[str, str]]
) -> list[Case]:
    """`count` cases (0: one for every cell of the table) in a random order; `kinds` are brokers with strategies."""
    cells = list(product(faults, moments))
    rng = random.Random(f"cases/{seed}")
    drawn: list[Case] = []
    while len(drawn) < (count or len(cells)):
        number = seed + len(drawn) // len(cells)
        rng.shuffle(cells)
        for index, (fault, moment) in enumerate(cells):
            broker, strategy = kinds[(index + number) % len(kinds)]
            drawn.append(Case(fault, moment, broker, strategy, number))
    return drawn[: count or len(cells)]


def table(outcomes: Sequence[Outcome], notes: Sequence[str]) -> Table:
    """Faults by moments: how many runs there were, and in how many an invariant broke."""
    shown = Table(title="runs / with a broken invariant", caption="\n".join(notes))
    shown.add_column("fault")
    for moment in WHEN:
        shown.add_column(moment, justify="right")
    runs = Counter((o.case.fault, o.case.moment) for o in outcomes)
    broken = Counter((o.case.fault, o.case.moment) for o in outcomes if o.wrong)
    for fault in dict.fromkeys(o.case.fault for o in sorted(outcomes, key=lambda o: list(FAULTS).index(o.case.fault))):
        cells = []
        for moment in WHEN:
            wrong = broken[fault, moment]
            text = f"{runs[fault, moment]} / {wrong}" if runs[fault, moment] else ""
            cells.append(f"[red]{text}[/]" if wrong else text)
        shown.add_row(fault, *cells)
    return shown


def compile_plans(folder: Path) -> Plans:
    """Compile both plans into `folder`, unless they are there; in a process of its own, which may keep TensorFlow."""
    paths = []
    for file in (ROOT / "simulations" / "umbel_sim" / "tasks" / "line.py", Path(__file__).with_name("broad.py")):
        path = folder / f"{file.stem}.plan"
        if not path.exists():
            subprocess.run((script("umbel"), "compile", str(file), "-o", str(path)), check=True, capture_output=True)
        paths.append(path)
    return Plans(*paths)


def main() -> None:
    """Run cases one after the other; exit code 1 when an invariant broke."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="decides the order, the moments and the details")
    parser.add_argument("--runs", type=int, default=0, help="how many cases (default: each fault at each moment, once)")
    parser.add_argument("--fault", choices=FAULTS, action="append", help="only this one; may be given again")
    parser.add_argument("--moment", choices=WHEN, action="append", help="only this one; may be given again")
    parser.add_argument("--broker", choices=BROKERS, help="only this one")
    parser.add_argument("--strategy", choices=OPTIONS, help="only this one")
    parser.add_argument("--keep", type=Path, default=Path("fault-runs"), help="where failing cases and plans are kept")
    parser.add_argument("--json", action="store_true", help="print JSON for machines instead of the table")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))  # also when started in the background: leave nothing running
    logging.getLogger("umbel").setLevel(logging.ERROR)  # hostile devices live in this process, and lose their broker
    brokers = [options.broker] if options.broker else [b for b in BROKERS if b == "embedded" or mosquitto_program()]
    strategies = [options.strategy] if options.strategy else list(OPTIONS)
    wanted = options.fault or list(FAULTS)
    reasons = {fault: cannot(fault) for fault in wanted}
    notes = [f"{fault} was left out: {why}" for fault, why in reasons.items() if why]
    if len(brokers) < len(BROKERS) and not options.broker:
        notes.append("mosquitto is not installed: only the embedded broker was there")
    todo = cases(
        options.seed,
        options.runs,
        [fault for fault in wanted if not reasons[fault]],
        options.moment or WHEN,
        list(product(brokers, strategies)),
    )
    options.keep.mkdir(parents=True, exist_ok=True)
    plans = compile_plans(options.keep)
    outcomes = []
    for number, case in enumerate(todo, 1):
        outcome = execute(case, plans, options.keep)
        outcomes.append(outcome)
        _report(outcome, f"{number}/{len(todo)}", quiet=options.json)
    if options.json:
        print(json.dumps([_as_json(outcome) for outcome in outcomes], indent=2))
    else:
        Console(width=max(console.width, 120), highlight=False).print(table(outcomes, notes))
    sys.exit(any(outcome.wrong for outcome in outcomes))


def _report(outcome: Outcome, progress: str, quiet: bool) -> None:
    out = Console(stderr=True, highlight=False) if quiet else console
    state = "[red]BROKEN[/]" if outcome.wrong else "holds"
    out.print(
        f"{progress:>9}  {state:6}  {outcome.seconds:5.1f} s (run {outcome.run_seconds:4.1f})  {outcome.case}",
        soft_wrap=True,
    )
    for sentence in outcome.wrong[:8]:
        out.print(f"           {sentence}", markup=False, soft_wrap=True)
    if len(outcome.wrong) > 8:
        out.print(f"           ... and {len(outcome.wrong) - 8} more")
    if outcome.wrong:
        out.print(f"           again: {outcome.case.command}   kept: {outcome.folder}", markup=False, soft_wrap=True)


def _as_json(outcome: Outcome) -> dict[str, object]:
    case = outcome.case
    return {
        **{name: getattr(case, name) for name in ("fault", "moment", "broker", "strategy", "seed")},
        "wrong": outcome.wrong,
        "seconds": round(outcome.seconds, 1),
        "run_seconds": round(outcome.run_seconds, 1),
        "tracebacks": outcome.tracebacks,
        "again": case.command,
    }


if __name__ == "__main__":
    main()
