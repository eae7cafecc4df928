"""List runs, and show one: its rounds, and the assignments of one of them."""

import time
from collections import Counter
from datetime import datetime
from typing import Annotated

import typer

from umbel.errors import UmbelError
from umbel_server import answers
from umbel_server.cli.open_client import open_client
from umbel_server.cli.options import DEFAULT_STATE, JsonOption, RunArgument, StateOption
from umbel_server.cli.output import (
    ago,
    console,
    metrics_text,
    plain,
    print_json,
    print_table,
    size_text,
    span_text,
    state_text,
)
from umbel_server.cli.runs.text import ends_text, print_head
from umbel_server.rounds.assignments import LIVE

NEWEST, WIDE = 20, 100
"""The most rounds to list; the least columns of a terminal to show bytes for each device."""
ORDER = {"offered": 1, "accepted": 2, "uploaded": 3, "folded": 4, "declined": 5, "cancelled": 6}
"""The order of assignments by state, after those that went wrong."""


def list_runs(state: StateOption = DEFAULT_STATE, json: JsonOption = False) -> None:
    """List the runs, newest first."""
    rows = open_client(state).runs.list()
    if json:
        print_json(rows)
        return
    print_table(
        ("run", "task", "population", "strategy", "round", "state", "started"),
        (
            (
                row.id,
                plain(row.task),
                plain(row.population),
                plain(row.strategy),
                f"{row.round}/{row.rounds}",
                state_text(row.state),
                ago(row.created),
            )
            for row in rows
        ),
        "No runs yet; start one with 'umbel runs start PLAN -p POPULATION'.",
    )


def show_run(
    run: RunArgument,
    round: Annotated[
        int | None,
        typer.Option(min=1, help="show this round: its attempts, and each device's state and reason"),
    ] = None,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Show a run: its rounds, and the assignments of one round (default: the newest)."""
    row = open_client(state).runs.show(run, round)
    if json:
        print_json(row)
        return
    if round is not None and not row.attempts:
        raise UmbelError(f"run {row.id} has not begun round {round}; it has committed {row.round} rounds")
    print_head(row)
    if round is None:
        _print_settings(row)
        _print_rounds(row.checkpoints)
    now = time.time()
    for attempt in row.attempts:
        console.print()
        _print_attempt(attempt, [a for a in row.assignments if _belongs(a, attempt)], now)
    if evaluations := [a for a in row.assignments if a.kind == "evaluate"]:
        console.print("\n[bold]evaluations of its checkpoint[/]")
        _print_assignments(evaluations, now)


def _print_settings(row: answers.RunDetails) -> None:
    settings, policy = row.settings, row.settings["policy"]
    wants = str(policy["target"] or f"{policy['fraction']:.0%} of the devices")
    if policy["mode"] == "async":
        wants = f"{policy['buffer']} updates a checkpoint, {policy['concurrency']} devices at work"
    words = [f"wants {wants}", f"quorum {policy['quorum']}", f"deadline {span_text(policy['deadline'])}"]
    if policy["labels"]:
        words.append(", ".join(f"{name}={value}" for name, value in policy["labels"].items()))
    if ends := ends_text(settings):
        words.append(f"ends at {ends}")
    if settings.get("encrypt_commands"):
        words.append("commands are encrypted")
    words.append(f"{size_text(row.bytes_down)} down, {size_text(row.bytes_up)} up")
    console.print(f"[dim]{plain('; '.join(words))}[/]\n", highlight=False)


def _print_rounds(checkpoints: list[answers.EvaluatedCheckpoint]) -> None:
    evaluated = any(checkpoint.evaluators for checkpoint in checkpoints)
    if len(checkpoints) > NEWEST:
        console.print(f"[dim]{len(checkpoints) - NEWEST} earlier rounds are not shown; --json has them[/]")
    print_table(
        ("round", "held out", "while training", *(["evaluated by devices"] if evaluated else []), "updates", "took"),
        (
            (
                str(checkpoint.round),
                metrics_text(checkpoint.metrics),
                metrics_text(checkpoint.fleet_metrics),
                *([_evaluated(checkpoint)] if evaluated else []),
                str(checkpoint.contributors),
                span_text(checkpoint.committed - checkpoint.started),
            )
            for checkpoint in checkpoints[-NEWEST:]
        ),
        "No checkpoint yet.",
    )


def _evaluated(checkpoint: answers.EvaluatedCheckpoint) -> str:
    count = checkpoint.evaluators
    return f"{metrics_text(checkpoint.evaluated)}  by {count}" if count else "-"


def _belongs(assignment: answers.Assignment, attempt: answers.Attempt) -> bool:
    return bool(assignment.kind == "train" and assignment.attempt == attempt.attempt)


def _print_attempt(attempt: answers.Attempt, assignments: list[answers.Assignment], now: float) -> None:
    name = f"round {attempt.round}" + (f", attempt {attempt.attempt + 1}" if attempt.attempt else "")
    passed = span_text((attempt.closed or now) - attempt.opened)
    match attempt.state:
        case "committed":
            how = f"{state_text('committed')} in {passed}"
        case "abandoned":
            how = f"{state_text('abandoned')} after {passed}: {plain(attempt.reason)}"
        case _:
            left = attempt.closes - now
            closes = f"closes in {span_text(left)}" if left > 0 else "its deadline has come"
            how = f"{state_text('open')} for {passed}, {closes}"
    closed = f" to {_clock(attempt.closed)}" if attempt.closed else ""
    down, up = (size_text(sum(_bytes(a, way) for a in assignments)) for way in ("down", "up"))
    facts = f"wanted {attempt.wanted}, quorum {attempt.quorum}"
    facts += f"; {_clock(attempt.opened)}{closed}; {down} down, {up} up"
    console.print(f"[bold]{name}[/]  {how}", highlight=False)
    console.print(f"[dim]{facts}[/]", highlight=False)
    if not assignments:
        console.print("No device was assigned.")
        return
    counts = Counter(a.state for a in assignments)
    words = [f"[bold]{counts[state]}[/] {state_text(state)}" for state in sorted(counts, key=lambda s: ORDER.get(s, 0))]
    console.print("   ".join(words) + "\n", highlight=False)
    _print_assignments(assignments, now)


def _print_assignments(assignments: list[answers.Assignment], now: float) -> None:
    """Print the assignments, those that went wrong first. A narrow terminal has no columns of bytes."""
    travelled = ("down", "up") if console.width >= WIDE else ()
    rows = sorted(assignments, key=lambda a: (ORDER.get(a.state, 0), a.since, a.device))
    print_table(
        ("device", "state", "since", "took", "examples", "weight", *travelled, "why"),
        (
            (
                plain(a.device),
                state_text(a.state),
                ago(a.since),
                span_text(a.seconds) if a.seconds else "-",
                str(a.examples or "-"),
                _weight(a),
                *(_size(_bytes(a, way)) for way in travelled),
                plain(a.reason or _expected(a, now)),
            )
            for a in rows
        ),
        "No assignments.",
    )


def _bytes(assignment: answers.Assignment, way: str) -> int:
    return assignment.bytes_down if way == "down" else assignment.bytes_up


def _size(count: int) -> str:
    return size_text(count) if count else "-"


def _weight(assignment: answers.Assignment) -> str:
    if assignment.folded_into is None:
        return "-"
    stale = assignment.folded_into - assignment.round
    late = f", {stale} stale" if stale > 0 and assignment.kind == "train" else ""
    return f"{assignment.weight:.4g}{late}"


def _expected(assignment: answers.Assignment, now: float) -> str:
    if assignment.state not in LIVE:
        return ""
    if assignment.state == "uploaded":
        return "waits for its round"
    left = assignment.closes - now
    return f"expires in {span_text(left)}" if left > 0 else "expires now"


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment).strftime("%H:%M:%S")
