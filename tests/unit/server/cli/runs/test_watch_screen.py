"""What `umbel runs watch` shows, as text."""

import io
import math
from typing import Any

import msgspec
import pytest
from rich.console import Console

from umbel_server.answers import Attempt, Checkpoint, LiveRun
from umbel_server.cli.output import span_text
from umbel_server.cli.runs.watch_screen import abandoned_line, line, screen, seconds_left
from umbel_server.rounds.policy import RoundPolicy

NOW = 1_700_000_000.0


def text_of(live: dict[str, Any], width: int = 80, trouble: str = "") -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(screen(msgspec.convert(live, LiveRun), width, trouble))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert all(len(line) <= width for line in lines)
    return "\n".join(lines)


def checkpoint(round: int, committed: float, **metrics: float) -> dict[str, Any]:
    return {
        "round": round,
        "weights": "0" * 64,
        "metrics": metrics,
        "fleet_metrics": {"loss": 1.5},
        "contributors": 14,
        "started": committed - 2.5,
        "committed": committed,
    }


def attempt(state: str = "open", round: int = 3, number: int = 0, **more: Any) -> dict[str, Any]:
    times = {"opened": NOW - 42, "closes": NOW + 78, "closed": 0.0}
    return (
        {"round": round, "attempt": number, "state": state, "reason": "", "wanted": 20, "quorum": 12, "seconds": {}}
        | times
        | more
    )


def a_run(settings: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    policy = msgspec.to_builtins(RoundPolicy(target=20, quorum=12))
    run: dict[str, Any] = {
        "id": "a1b2c3d4e5f6",
        "task": "digits",
        "plan": "0" * 64,
        "population": "home",
        "strategy": "fedavg",
        "state": "running",
        "reason": "",
        "round": 2,
        "rounds": 10,
        "created": NOW - 340,
        "updated": NOW - 42,
        "settings": {"policy": policy, **(settings or {})},
        "now": NOW,
        "bytes_down": 1_200_000,
        "bytes_up": 300_000,
        "checkpoints": [checkpoint(n, NOW - 62 + 10 * n, accuracy=0.5 + n / 10) for n in range(3)],
        "attempt": attempt(),
        "next": 0.0,
        "states": {"round": {"uploaded": 10, "accepted": 5, "offered": 9, "declined": 2}, "earlier": {}},
        "waiting": [],
        "abandoned": {"count": 0, "latest": []},
        "devices": None,
    }
    return run | more


def live_run(**more: Any) -> LiveRun:
    return msgspec.convert(a_run(**more), LiveRun)


def of(row: dict[str, Any]) -> Checkpoint:
    return msgspec.convert(row, Checkpoint)


def waiting(device: str, state: str, since: float, online: bool = True, round: int = 3) -> dict[str, Any]:
    return {"device": device, "state": state, "since": since, "online": online, "round": round, "closes": NOW + 78}


def test_a_round_under_way() -> None:
    late = [
        waiting("phone-17", "offered", NOW - 42),
        waiting("vehicle-2", "accepted", NOW - 41, online=False),
        waiting("phone-3", "accepted", NOW - 12.4),
        waiting("phone-4", "accepted", NOW - 0.5),
    ]
    assert text_of(a_run(waiting=late)) == "\n".join(
        [
            "digits  fedavg on home                     run a1b2c3d4e5f6  running  5 min 40 s",
            "",
            "rounds      ━━━━━━──────────────────────────  2 of 10  about 70 s left",
            "held out    accuracy  ▁▄▇  0.7000  +0.1000",
            "",
            "round 3     ━━━━━━━━━━━━━━━━╍╍╍╍╍╍╍╍────────  10 of 20  closes in 78 s",
            "                               ╰ quorum 12",
            "            10 uploaded   5 accepted   9 offered   2 declined",
            "",
            "traffic     1.2 MB down  300.0 kB up",
            "",
            "waits for   phone-17   not answered for 42 s",
            "            vehicle-2  offline, accepted 41 s ago",
            "            phone-3    training for 12 s",
            "            and 11 more",
        ]
    )


def test_a_quorum_that_is_reached_and_a_deadline_that_has_come() -> None:
    states = {"round": {"uploaded": 13}, "earlier": {}}
    text = text_of(a_run(states=states, attempt=attempt(closes=NOW - 1, number=1)))
    assert "╰ quorum 12 reached" in text
    assert "13 of 20  its deadline has come" in text
    assert "attempt 2   13 uploaded" in text


def test_a_goal_and_budgets() -> None:
    settings = {"until": "accuracy", "at_least": 0.97, "budget_bytes": 2_000_000, "budget_hours": 0.5}
    text = text_of(a_run(settings))
    assert "0.7000  +0.1000  goal 0.97" in text
    assert "at most 70 s left" in text
    assert "75 % of 2.0 MB  5 min 40 s of 30 min 00 s" in text


def test_what_devices_measure_stands_in_for_what_is_held_out() -> None:
    text = text_of(a_run(checkpoints=[checkpoint(1, NOW - 9), checkpoint(2, NOW - 5)]))
    assert "devices     loss  ▄▄  1.5000  +0.0000" in text


def test_updates_of_earlier_rounds_count_in_an_asynchronous_run() -> None:
    policy = msgspec.to_builtins(RoundPolicy(mode="async", buffer=10, quorum=10))
    states = {"round": {"uploaded": 3, "accepted": 4}, "earlier": {"uploaded": 4, "accepted": 51}}
    late = [waiting("phone-1", "accepted", NOW - 90, round=1)]
    live = a_run({"policy": policy}, states=states, attempt=attempt(wanted=10, quorum=10), waiting=late)
    text = text_of(live)
    assert "━━━━━━━━━━━━━━━━━━━━━━╍╍╍╍╍╍╍╍╍╍  7 of 10" in text
    assert "4 uploaded   51 accepted from earlier rounds" in text
    assert "waits for   phone-1  training for 90 s  round 1" in text


def test_a_run_that_waits_for_devices_says_why_there_are_none() -> None:
    excluded = {"offline": 3, "without the labels": 4, "battery 0.12 < 0.3": 2, "quarantined": 1}
    text = text_of(a_run(attempt=None, devices={"available": 1, "excluded": excluded}), 160)
    assert (
        "round 3     waits for devices: 1 can train, the quorum is 12; not: 4 without the labels, 3 offline, "
        "2 battery 0.12 < 0.3, 1 for other reasons"
    ) in text
    over = attempt("committed", 2, closed=NOW - 5)
    assert "0 can train, the quorum is 12\n" in text_of(a_run(attempt=over, devices={"available": 0, "excluded": {}}))


def test_a_round_that_was_just_committed_stays_for_a_moment() -> None:
    states = {"round": {"folded": 20, "cancelled": 4}, "earlier": {}}
    text = text_of(a_run(attempt=attempt("committed", 2, opened=NOW - 1.25, closed=NOW - 0.25), states=states))
    assert "round 2     ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  20 of 20  committed in 1 s" in text
    assert "20 folded   4 cancelled" in text


def test_abandoned_attempts_say_why_and_when_another_begins() -> None:
    why = "3 updates came, the quorum is 12; start more devices or lower the quorum, whichever is easier now"
    gone = [attempt("abandoned", 3, number, reason=why, closed=NOW - 1) for number in (4, 3, 2, 1)]
    live = a_run(attempt=gone[0], next=NOW + 3.2, abandoned={"count": 5, "latest": gone})
    text = text_of(live)
    assert "round 3     attempt 6 begins in 3.2 s" in text
    assert "abandoned   round 3, attempt 5  3 updates came, the quorum is 12; start more" in text
    assert "            devices or lower the quorum, whichever is easier now\n" in text
    assert "            round 3, attempt 4  3 updates came, the quorum is 12; start more de…\n" in text
    assert "            and 2 more" in text


@pytest.mark.parametrize("state", ["paused", "finished", "stopped", "failed"])
def test_a_run_that_has_ended_shows_no_round(state: str) -> None:
    text = text_of(a_run(state=state))
    assert f"{state}  4 min 58 s" in text
    for word in ("round 3", "left", "waits"):
        assert word not in text


def test_what_is_wrong_with_watching_is_said() -> None:
    assert text_of(a_run(), trouble="no answer from the server").endswith("\n\nno answer from the server")


@pytest.mark.parametrize("width", [40, 60, 200])
def test_any_width_will_do(width: int) -> None:
    many = [waiting(f"a-device-with-a-long-name-{n:04}", "offered", NOW - 9) for n in range(8)]
    assert "round 3" in text_of(a_run(waiting=many), width)


def test_a_metric_that_is_not_finite_breaks_nothing() -> None:
    checkpoints = [checkpoint(1, NOW - 9, loss=1.0), checkpoint(2, NOW - 5, loss=math.nan)]
    assert "loss" in text_of(a_run(checkpoints=checkpoints))


def test_the_time_that_is_left_follows_the_pace_of_the_newest_rounds() -> None:
    # 10 s a round; the third has been under way for 42 s already, so nothing of its pace is left.
    assert seconds_left(live_run()) == 70
    assert seconds_left(live_run(now=NOW - 40)) == 78
    assert seconds_left(live_run(checkpoints=[checkpoint(0, NOW)])) is None
    assert seconds_left(live_run(round=10)) == 0


def test_lines_for_logs() -> None:
    first, second = checkpoint(1, NOW, accuracy=0.5), checkpoint(2, NOW, accuracy=0.625, loss=2.0)
    assert line(of(first), None, 10) == "round 1/10  accuracy 0.5  14 updates  2.5 s"
    assert line(of(second), of(first), 10) == "round 2/10  accuracy 0.625 (+0.125)  loss 2  14 updates  2.5 s"
    gone = msgspec.convert(attempt("abandoned", 7, 1, reason="why"), Attempt)
    assert abandoned_line(gone) == "round 7, attempt 2 abandoned: why"


def test_spans() -> None:
    spans = [span_text(s) for s in (0.0312, 0.5, 1.25, 9.96, 99.4, 100, 3725, 7200, 90_000, 10 * 86400, -1)]
    assert spans == [
        *("0.031 s", "0.5 s", "1.2 s", "10 s", "99 s", "1 min 40 s", "62 min 05 s", "2 h 00 min", "25 h 00 min"),
        *("10.0 days", "0 s"),
    ]
