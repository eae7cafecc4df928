"""The command that shows a run as it is: its rounds, and who did what in one of them."""

import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.markup import escape

from umbel.errors import UmbelError
from umbel_server.cli.run_text import ends_text, head
from umbel_server.cli.show import (
    DEFAULT_STATE,
    JsonOption,
    RunArgument,
    StateOption,
    ago,
    console,
    metrics_text,
    print_json,
    print_table,
    size_text,
    span_text,
    state_text,
)
from umbel_server.client import Client
from umbel_server.rounds.assignments import LIVE, WITH_DEVICE

NEWEST = 20
"""Rounds that are listed at most."""


def show_run(
    run: RunArgument,
    round: Annotated[
        int | None,
        typer.Option(min=1, help="show this round: its attempts, and which device is in which state and why"),
    ] = None,
    state: StateOption = DEFAULT_STATE,
    json: JsonOption = False,
) -> None:
    """Show a run: its rounds, and who did what in the newest or another."""
    row = Client.of_state(state).get(f"/v1/runs/{run}", round=round)
    if json:
        print_json(row)
        return
    if round is not None and not row["attempts"]:
        raise UmbelError(f"run {row['id']} has not begun round {round}; it has committed {row['round']} rounds")
    console.print(head(row), highlight=False)
    if round is None:
        _print_settings(row)
        _print_rounds(row["checkpoints"])
    now = time.time()
    for attempt in row["attempts"]:
        console.print()
        _print_attempt(attempt, [a for a in row["assignments"] if _belongs(a, attempt)], now)
    if evaluations := [a for a in row["assignments"] if a["kind"] == "evaluate"]:
        console.print("\n[bold]evaluations of its checkpoint[/]")
        _print_assignments(evaluations, now)


def _print_settings(row: dict[str, Any]) -> None:
    settings, policy = row["settings"], row["settings"]["policy"]
    wants = str(policy["target"] or f"{policy['fraction']:.0%} of the devices")
    if policy["mode"] == "async":
        wants = f"{policy['buffer']} updates a checkpoint, {policy['concurrency']} devices at work"
    words = [f"wants {wants}", f"quorum {policy['quorum']}", f"deadline {span_text(policy['deadline'])}"]
    if policy["labels"]:
        words.append(", ".join(f"{name}={value}" for name, value in policy["labels"].items()))
    if ends := ends_text(settings):
        words.append(f"ends at {ends}")
    words.append(f"{size_text(row['bytes_down'])} down, {size_text(row['bytes_up'])} up")
    console.print(f"[dim]{escape('; '.join(words))}[/]\n", highlight=False)


def _print_rounds(checkpoints: list[dict[str, Any]]) -> None:
    evaluated = any(checkpoint.get("evaluators") for checkpoint in checkpoints)
    if len(checkpoints) > NEWEST:
        console.print(f"[dim]{len(checkpoints) - NEWEST} earlier rounds are not shown; --json has them[/]")
    print_table(
        ("round", "held out", "while training", *(["evaluated by devices"] if evaluated else []), "updates", "took"),
        (
            (
                str(checkpoint["round"]),
                metrics_text(checkpoint["metrics"]),
                metrics_text(checkpoint["fleet_metrics"]),
                *([_evaluated(checkpoint)] if evaluated else []),
                str(checkpoint["contributors"]),
                span_text(checkpoint["committed"] - checkpoint["started"]),
            )
            for checkpoint in checkpoints[-NEWEST:]
        ),
        "No checkpoint yet.",
    )


def _evaluated(checkpoint: dict[str, Any]) -> str:
    count = checkpoint.get("evaluators", 0)
    return f"{metrics_text(checkpoint['evaluated'])}  by {count}" if count else "-"


def _belongs(assignment: dict[str, Any], attempt: dict[str, Any]) -> bool:
    return bool(assignment["kind"] == "train" and assignment["attempt"] == attempt["attempt"])


def _print_attempt(attempt: dict[str, Any], assignments: list[dict[str, Any]], now: float) -> None:
    name = f"round {attempt['round']}" + (f", attempt {attempt['attempt'] + 1}" if attempt["attempt"] else "")
    passed = span_text((attempt["closed"] or now) - attempt["opened"])
    match attempt["state"]:
        case "committed":
            how = f"{state_text('committed')} in {passed}"
        case "abandoned":
            how = f"{state_text('abandoned')} after {passed}: {escape(attempt['reason'])}"
        case _:
            left = attempt["closes"] - now
            closes = f"closes in {span_text(left)}" if left > 0 else "its deadline has come"
            how = f"{state_text('open')} for {passed}, {closes}"
    times = f"opened {_clock(attempt['opened'])}" + (
        f", closed {_clock(attempt['closed'])}" if attempt["closed"] else ""
    )
    console.print(f"[bold]{name}[/]  {how}", highlight=False)
    console.print(f"[dim]wanted {attempt['wanted']}, quorum {attempt['quorum']}, {times}[/]", highlight=False)
    if not assignments:
        console.print("No device was assigned.")
        return
    counts = Counter(a["state"] for a in assignments)
    console.print("   ".join(f"[bold]{n}[/] {state_text(state)}" for state, n in counts.most_common()), highlight=False)
    _print_assignments(assignments, now)


def _print_assignments(assignments: list[dict[str, Any]], now: float) -> None:
    print_table(
        ("device", "state", "since", "took", "examples", "weight", "down / up", "why"),
        _rows(assignments, now),
        "No assignments.",
    )


def _rows(assignments: list[dict[str, Any]], now: float) -> Iterator[tuple[str, ...]]:
    for a in assignments:
        live = a["state"] in WITH_DEVICE
        took = f"{span_text(now - a['offered'])} so far" if live else span_text(a["seconds"]) if a["seconds"] else "-"
        yield (
            a["device"],
            state_text(a["state"]),
            ago(a["since"]),
            took,
            str(a["examples"] or "-"),
            _weight(a),
            f"{size_text(a['bytes_down'])} / {size_text(a['bytes_up']) if a['bytes_up'] else '-'}",
            escape(a["reason"] or _expected(a, now)),
        )


def _weight(assignment: dict[str, Any]) -> str:
    if assignment["folded_into"] is None:
        return "-"
    stale = assignment["folded_into"] - assignment["round"]
    late = f", {stale} stale" if stale > 0 and assignment["kind"] == "train" else ""
    return f"{assignment['weight']:.4g}{late}"


def _expected(assignment: dict[str, Any], now: float) -> str:
    if assignment["state"] not in LIVE:
        return ""
    if assignment["state"] == "uploaded":
        return "waits for the commit"
    left = assignment["closes"] - now
    return f"expires in {span_text(left)}" if left > 0 else "expires now"


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment).strftime("%H:%M:%S")
