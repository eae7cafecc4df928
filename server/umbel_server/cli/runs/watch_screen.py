"""The text of `umbel runs watch`, made from the API's answers: a screen for terminals, lines for logs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from umbel.printable import printable
from umbel_server import answers
from umbel_server.cli.output import size_text, span_text, state_style

LABEL, NOTE, LEAST_BAR, LONGEST_BAR = 12, 36, 10, 60
"""Columns of the labels, of the words after a bar, and of a bar."""
METRICS, SPARK, REASONS = 4, 24, 3
PATIENCE = 1.0
"""Seconds after which a silent device is listed as waited for, and a committed round is no longer shown as open."""
STATES = ("uploaded", "folded", "accepted", "offered", "declined", "rejected", "failed", "expired", "cancelled")
SPARKS = "▁▂▃▄▅▆▇"
ARRIVED, AT_WORK, TO_COME = "━╍─"
"""The characters of a bar. They differ, so that a bar can be read without colours."""


def screen(live: answers.LiveRun, width: int, trouble: str = "") -> RenderableType:
    """The screen of a run as it is now, for a terminal of `width` columns; `trouble` is the latest error."""
    bar = max(LEAST_BAR, min(LONGEST_BAR, width - LABEL - NOTE))
    body = Table.grid(padding=(0, 2, 0, 0), expand=True)
    body.add_column(width=LABEL - 2, min_width=LABEL - 2, style="dim", no_wrap=True)
    body.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    rows: list[tuple[str, RenderableType]] = [("rounds", _rounds(live, bar)), *_metrics(live)]
    if live.state == "running":
        rows += [("", ""), *_round(live, bar)]
    rows += [("", ""), ("traffic", _traffic(live)), *_abandoned(live)]
    if live.state == "running":
        rows += _waiting(live)
    for label, content in rows:
        body.add_row(label, content)
    parts: list[RenderableType] = [_title(live), Text(), body]
    if trouble:
        parts += [Text(), Text(printable(trouble), style="red")]
    return Group(*parts)


def line(checkpoint: answers.Checkpoint, before: answers.Checkpoint | None, rounds: int) -> str:
    """A committed round in one line, with the change of its metrics since the round `before`."""
    metrics, _ = _measured(checkpoint)
    known, _ = _measured(before) if before is not None else ({}, "")
    words = [f"round {checkpoint.round}/{rounds}"]
    for name, value in sorted(metrics.items()):
        change = f" ({value - known[name]:+.3g})" if name in known else ""
        words.append(f"{printable(name)} {value:.4g}{change}")
    words += [_count(checkpoint.contributors, "update"), span_text(checkpoint.committed - checkpoint.started)]
    return "  ".join(words)


def abandoned_line(attempt: answers.Attempt) -> str:
    """An abandoned attempt in one line."""
    return f"round {attempt.round}, attempt {attempt.attempt + 1} abandoned: {printable(attempt.reason)}"


def seconds_left(live: answers.LiveRun) -> float | None:
    """Seconds until the last round at the pace of the newest rounds; None with fewer than two checkpoints."""
    times = [checkpoint.committed for checkpoint in live.checkpoints][-21:]
    if len(times) < 2:
        return None
    pace = statistics.median(after - before for before, after in pairwise(times))
    return float(max(0.0, (live.rounds - live.round) * pace - min(pace, live.now - times[-1])))


def _title(live: answers.LiveRun) -> RenderableType:
    title = Table.grid(expand=True)
    title.add_column(no_wrap=True, overflow="ellipsis")
    title.add_column(justify="right", no_wrap=True)
    where = f"{live.strategy} on {live.population}"
    what = Text.assemble((printable(live.task), "bold"), ("  ", ""), printable(where), style="default")
    passed = live.now if live.state == "running" else live.updated
    state = Text.assemble(
        (f"run {live.id}  ", "dim"),
        (live.state, f"bold {state_style(live.state)}"),
        (f"  {span_text(passed - live.created)}", "dim"),
    )
    title.add_row(what, state)
    return title


def _rounds(live: answers.LiveRun, bar: int) -> Text:
    text = _bar(bar, live.rounds, ((live.round, ARRIVED, "green"),))
    text.append(f"  {live.round} of {live.rounds}")
    left = seconds_left(live)
    if live.state == "running" and left is not None:
        ahead = (
            "at most" if any(live.settings.get(name) for name in ("until", "budget_hours", "budget_bytes")) else "about"
        )
        text.append(f"  {ahead} {span_text(max(1.0, left))} left", "dim")
    return text


def _metrics(live: answers.LiveRun) -> list[tuple[str, RenderableType]]:
    shown = [_measured(checkpoint) for checkpoint in live.checkpoints]
    if not shown or not shown[-1][0]:
        return []
    (newest, where), goal = shown[-1], live.settings.get("until", "")
    names = sorted(newest, key=lambda name: (name != goal, name))
    table = Table.grid(padding=(0, 2, 0, 0))
    for name in names[:METRICS]:
        history = [metrics[name] for metrics, source in shown if source == where and name in metrics]
        change = f"{newest[name] - history[-2]:+.4f}" if len(history) > 1 else ""
        note = f"goal {live.settings['at_least']:g}" if name == goal else ""
        spark, value = Text(_spark(history), style="cyan"), Text(f"{newest[name]:.4f}", style="bold")
        table.add_row(Text(printable(name)), spark, value, Text(change, style="dim"), Text(note))
    return [(where, table)]


def _measured(checkpoint: answers.Checkpoint) -> tuple[Mapping[str, float], str]:
    """A checkpoint's metrics and their source: the held-out examples, or else the devices' own examples."""
    if checkpoint.metrics:
        return checkpoint.metrics, "held out"
    return checkpoint.fleet_metrics, "devices"


def _round(live: answers.LiveRun, bar: int) -> list[tuple[str, RenderableType]]:
    attempt, now = live.attempt, live.now
    if attempt is not None and (
        attempt.state == "open" or (attempt.state == "committed" and now - attempt.closed < PATIENCE)
    ):
        return _open_round(live, attempt, bar)
    words = _shortage(live)
    if attempt is not None and attempt.state == "abandoned":
        words = f"attempt {attempt.attempt + 2} "
        words += f"begins in {span_text(live.next - now)}" if live.next > now else _shortage(live)
    return [(f"round {live.round + 1}", Text(words, style="yellow", no_wrap=False))]


def _shortage(live: answers.LiveRun) -> str:
    there, needed = live.devices, live.settings["policy"]["quorum"]
    if there is None:
        return "waits for devices"
    common = sorted(there.excluded.items(), key=lambda item: (-item[1], item[0]))
    why = [f"{count} {printable(reason)}" for reason, count in common[:REASONS]]
    if rest := sum(count for _, count in common[REASONS:]):
        why.append(f"{rest} for other reasons")
    not_they = f"; not: {', '.join(why)}" if why else ""
    return f"waits for devices: {there.available} can train, the quorum is {needed}{not_they}"


def _open_round(live: answers.LiveRun, attempt: answers.Attempt, bar: int) -> list[tuple[str, RenderableType]]:
    counts, earlier = live.states.round, live.states.earlier
    folded, uploaded = counts.get("folded", 0), counts.get("uploaded", 0) + earlier.get("uploaded", 0)
    arrived, accepted = folded + uploaded, counts.get("accepted", 0) + earlier.get("accepted", 0)
    wanted, quorum = max(1, attempt.wanted), attempt.quorum
    parts = ((folded, ARRIVED, "folded"), (uploaded, ARRIVED, "uploaded"), (accepted, AT_WORK, "accepted"))
    text = _bar(bar, wanted, [(count, character, state_style(state)) for count, character, state in parts])
    text.append(f"  {arrived} of {wanted}", "bold")
    if attempt.state == "committed":
        text.append(f"  committed in {span_text(attempt.closed - attempt.opened)}", "green")
    else:
        left = attempt.closes - live.now
        text.append(
            f"  closes in {span_text(math.ceil(left))}" if left > 0 else "  its deadline has come",
            "red" if left < 0.1 * (attempt.closes - attempt.opened) else "dim",
        )
    again = f", attempt {attempt.attempt + 1}" if attempt.attempt else ""
    rows: list[tuple[str, RenderableType]] = [(f"round {attempt.round}", text)]
    rows.append(("", _mark(bar, quorum, wanted, arrived >= quorum)))
    rows.append((again.removeprefix(", "), _counts(counts)))
    if earlier:
        rows.append(("", Text.assemble(_counts(earlier), (" from earlier rounds", "dim"))))
    return rows


def _mark(bar: int, quorum: int, wanted: int, reached: bool) -> Text:
    """A line under a bar that points at the quorum."""
    place = min(bar - 1, max(0, math.ceil(bar * quorum / wanted) - 1))
    words = f"quorum {quorum} reached" if reached else f"quorum {quorum}"
    return Text(f"{' ' * place}╰ {words}", style="green" if reached else "dim")


def _counts(counts: Mapping[str, int]) -> Text:
    text = Text()
    for state in STATES:
        if counts.get(state):
            text.append("   " if text else "")
            text.append(str(counts[state]), f"bold {state_style(state)}")
            text.append(f" {state}", state_style(state))
    return text


def _traffic(live: answers.LiveRun) -> Text:
    down, up, budget = live.bytes_down, live.bytes_up, live.settings.get("budget_bytes", 0)
    text = Text(f"{size_text(down)} down  {size_text(up)} up")
    if budget:
        text.append(f"  {100 * (down + up) / budget:.0f} % of {size_text(budget)}", "dim")
    if hours := live.settings.get("budget_hours"):
        text.append(f"  {span_text(live.now - live.created)} of {span_text(3600 * hours)}", "dim")
    return text


def _abandoned(live: answers.LiveRun) -> list[tuple[str, RenderableType]]:
    gone = live.abandoned
    rows: list[tuple[str, RenderableType]] = []
    for attempt in gone.latest[:3]:
        text = Text(f"round {attempt.round}, attempt {attempt.attempt + 1}  ", style="default")
        text.append(printable(attempt.reason), "dim")
        text.no_wrap = bool(rows)  # the newest reason says what to do: all of it
        rows.append(("" if rows else "abandoned", text))
    if gone.count > len(rows):
        rows.append(("", Text(f"and {gone.count - len(rows)} more", style="dim")))
    return rows


def _waiting(live: answers.LiveRun) -> list[tuple[str, RenderableType]]:
    late = [work for work in live.waiting if live.now - work.since >= PATIENCE]
    if not late:
        return []
    table = Table.grid(padding=(0, 2, 0, 0))
    number = live.attempt.round if live.attempt is not None else 0
    for work in late[:5]:
        earlier = f"round {work.round}" if work.round < number else ""
        table.add_row(Text(printable(work.device)), _why(work, live.now), Text(earlier, style="dim"))
    counts = live.states
    out = sum(when.get(state, 0) for when in (counts.round, counts.earlier) for state in ("offered", "accepted"))
    rows: list[tuple[str, RenderableType]] = [("", ""), ("waits for", table)]
    if out > len(late[:5]):
        rows.append(("", Text(f"and {out - len(late[:5])} more", style="dim")))
    return rows


def _why(work: answers.WaitedFor, now: float) -> Text:
    silent = span_text(math.floor(now - work.since))
    what = f"training for {silent}" if work.state == "accepted" else f"not answered for {silent}"
    if not work.online:
        return Text(f"offline, {work.state} {silent} ago", style="red")
    return Text(what, style="" if work.state == "accepted" else "yellow")


def _bar(width: int, total: int, parts: Sequence[tuple[int, str, str]]) -> Text:
    """A bar for `total`, filled by parts of (amount, character, style) one after the other."""
    text, done, filled = Text(), 0, 0
    for amount, character, style in parts:
        done = min(total, done + amount)
        cells = int(width * done / total) - filled
        text.append(character * cells, style)
        filled += cells
    text.append(TO_COME * (width - filled), "dim")
    return text


def _spark(values: Sequence[float]) -> str:
    """The newest values as bars between their least and their largest."""
    values = [value for value in values if math.isfinite(value)][-SPARK:]
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    return "".join(
        SPARKS[round((len(SPARKS) - 1) * (value - low) / (high - low))] if high > low else SPARKS[3] for value in values
    )


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
