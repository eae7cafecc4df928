"""What must hold after a run, whatever happened to it: each check returns a sentence for everything that is wrong."""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tests.faults.agent_host import Line
from tests.faults.fleet import POPULATION, Fleet
from tests.faults.oracle import Update, difference, oracle
from tests.settled_commands import settled
from umbel import tensors
from umbel.tensors import Tensors

LIVE = ("offered", "accepted", "uploaded")
FINAL = ("folded", "declined", "expired", "failed", "rejected", "cancelled")
NEVER_FOLDED = ("nan", "shape", "huge", "silent")
TRANSITIONS = "fault_test_transitions"
NOW = "(julianday('now') - 2440587.5) * 86400"
"""Unix seconds, in SQLite."""
ANSWER_SECONDS = 45.0
"""A device may wait as long before it tries to reach its broker again."""


def record_transitions(database: Path) -> None:
    """Make the database itself write down every change of an assignment's state."""
    connection = sqlite3.connect(database, timeout=30)
    connection.executescript(
        f"""
        CREATE TABLE {TRANSITIONS} (assignment TEXT, before TEXT, after TEXT, at REAL);
        CREATE TRIGGER {TRANSITIONS}_trigger AFTER UPDATE OF state ON assignments WHEN old.state <> new.state
        BEGIN INSERT INTO {TRANSITIONS} VALUES (old.id, old.state, new.state, {NOW}); END;
        """
    )
    connection.close()


@dataclass(frozen=True)
class Expected:
    """What a run was asked for."""

    rounds: int
    strategy: str
    options: Mapping[str, float]
    initial: Tensors
    behaviour: str = ""
    keeps_all: bool = False
    """Whether the policy folds every update that is there by the round's deadline."""


def broken(fleet: Fleet, run: str, expected: Expected) -> list[str]:
    """Everything that is wrong with a run that is over."""
    return [
        *finished(fleet, run, expected.rounds),
        *one_final_state(fleet, run),
        *(nothing_lost(fleet, run) if expected.keeps_all else ()),
        *checkpoints(fleet, run, expected),
        *what_devices_did(fleet, run),
        *harmless(fleet, run, expected.behaviour),
    ]


def finished(fleet: Fleet, id: str, rounds: int) -> list[str]:
    """The run came to its end."""
    (run,) = fleet.rows("SELECT * FROM runs WHERE id = ?", id)
    if run["state"] != "finished" or run["round"] != rounds:
        return [f"the run is {run['state']} at round {run['round']} of {rounds}: {run['reason'] or 'without a reason'}"]
    return []


def one_final_state(fleet: Fleet, run: str) -> list[str]:
    """Every assignment has one final state, came to it once, and its command agrees."""
    wrong = []
    query = """
        SELECT a.id, a.state, a.reason, a.device, a.round, a."update", c.state AS command, c.outcome
        FROM assignments a JOIN commands c ON c.id = a.command WHERE a.run = ?
    """
    for row in fleet.rows(query, run):
        who = f"assignment {row['id']} of {row['device']} in round {row['round']}"
        if row["state"] not in FINAL:
            wrong.append(f"{who} is still {row['state']}")
        if row["state"] not in ("folded", "uploaded") and row["state"] in FINAL and not row["reason"]:
            wrong.append(f"{who} is {row['state']} without a reason")
        if row["command"] in ("pending", "accepted") and row["state"] in FINAL:
            wrong.append(f"{who} is {row['state']}, its command still {row['command']}")
        if row["state"] == "folded":
            outcome = json.loads(row["outcome"] or "null") or {}
            if outcome.get("update", {}).get("sha256") != row["update"]:
                wrong.append(f"{who} was folded with another update than its command's outcome")
    finals = Counter(row["assignment"] for row in fleet.rows(f"SELECT * FROM {TRANSITIONS}") if row["after"] in FINAL)
    wrong += [f"assignment {id} came to a final state {times} times" for id, times in finals.items() if times > 1]
    for row in fleet.rows(f"SELECT * FROM {TRANSITIONS}"):
        if row["before"] in FINAL:
            wrong.append(f"assignment {row['assignment']} went from {row['before']} to {row['after']}")
    return wrong


def nothing_lost(fleet: Fleet, run: str) -> list[str]:
    """Every update that was durable before its round's deadline was folded, or refused for what it was.

    A device counts once in a round: with a late update of it in the round's checkpoint, its next one waits.
    """
    query = f"""
        SELECT a.id, a.device, a.round, a.state, a.reason, a.closes - t.at AS early
        FROM assignments a JOIN {TRANSITIONS} t ON t.assignment = a.id AND t.after = 'uploaded'
        LEFT JOIN rounds r ON r.run = a.run AND r.number = a.round AND r.attempt = a.attempt
        WHERE a.run = ? AND a.state NOT IN ('folded', 'rejected') AND t.at < a.closes AND r.state = 'committed'
        AND NOT EXISTS (
            SELECT 1 FROM assignments b
            WHERE b.run = a.run AND b.device = a.device AND b.folded_into = a.round AND b.id != a.id
        )
    """
    return [
        f"the update of {row['device']} in round {row['round']} came {row['early']:.1f} s before the deadline and was "
        f"lost: {row['state']}, {row['reason']}"
        for row in fleet.rows(query, run)
    ]


def checkpoints(fleet: Fleet, run: str, asked: Expected) -> list[str]:
    """Every checkpoint is what the oracle makes of the one before and the updates folded into it."""
    rows = fleet.rows("SELECT * FROM checkpoints WHERE run = ? ORDER BY round", run)
    if [row["round"] for row in rows] != list(range(len(rows))):
        return [f"there are checkpoints of rounds {[row['round'] for row in rows]}"]
    if not rows:
        return ["there is no checkpoint"]
    wrong, folded = [], _folded(fleet, run)
    weights = weights_at(fleet, rows[0]["weights"])
    if any(not np.array_equal(weights[name], asked.initial[name]) for name in asked.initial):
        wrong.append("the first checkpoint is not the plan's weights")
    expected = oracle(asked.strategy, asked.options)
    for row in rows[1:]:
        number, into = row["round"], folded.pop(row["round"], [])
        if not into or row["contributors"] != len(into):
            wrong.append(f"round {number} has {row['contributors']} contributors and {len(into)} folded updates")
        if len({update["device"] for update in into}) != len(into):
            wrong.append(f"a device contributed twice to round {number}")
        for update in into:
            stale, weight = number - update["round"], update["weight"]
            if not 0 < weight <= update["examples"] or (stale == 0) != (weight == update["examples"]) or stale < 0:
                wrong.append(
                    f"{update['device']} weighs {weight} with {update['examples']} examples, {stale} rounds late"
                )
        sources = Counter((update["device"], update["round"]) for update in into)
        wrong += [f"{name} is {times} times in round {number}" for (name, _), times in sources.items() if times > 1]
        got = weights_at(fleet, row["weights"])
        if into:
            updates = [Update(update["weight"], weights_at(fleet, update["update"])) for update in into]
            if where := difference(got, expected.step(number, weights, updates), updates):
                wrong.append(f"round {number} is not what its {len(into)} updates make: {where}")
        weights = got
    wrong += [f"updates were folded into round {number}, which has no checkpoint" for number in folded]
    return wrong


def what_devices_did(fleet: Fleet, run: str) -> list[str]:
    """No command had its effect twice, and what was folded of a device is what that device trained."""
    rows = fleet.rows('SELECT id, device, command, state, "update" FROM assignments WHERE run = ?', run)
    assignments = {row["id"]: row for row in rows}
    wrong, trained = [], defaultdict(set)
    for host in fleet.hosts:
        lines = [msgspec.json.decode(line, type=Line) for line in _lines(host.ledger)]
        for (_, device, assignment), times in Counter((ln.life, ln.device, ln.assignment) for ln in lines).items():
            if times > 1:
                wrong.append(f"{device} trained assignment {assignment} {times} times in one life")
        lives = list(dict.fromkeys(line.life for line in lines))
        first_life_of = {line.assignment: lives.index(line.life) for line in reversed(lines)}
        for line in lines:
            trained[line.assignment].add((line.device, line.update))
            known = assignments.get(line.assignment)
            if known is None:
                wrong.append(f"{line.device} trained assignment {line.assignment}, which the server does not know")
            elif known["device"] != line.device:
                wrong.append(f"{line.device} trained {line.assignment}, which is {known['device']}'s")
            elif lives.index(line.life) > first_life_of[line.assignment] and any(
                known["command"] in life[line.device] for life in host.lives
            ):
                wrong.append(
                    f"{line.device} trained {line.assignment} again, which it had answered before it was killed"
                )
    for row in rows:
        ours = row["state"] == "folded" and row["device"].startswith("phone-")
        if ours and (row["device"], row["update"]) not in trained[row["id"]]:
            wrong.append(f"{row['device']} never made the update that was folded for assignment {row['id']}")
    return wrong


def harmless(fleet: Fleet, run: str, behaviour: str) -> list[str]:
    """What hostile devices sent was not folded, and nobody else's work was refused for it."""
    wrong = []
    for row in fleet.rows("SELECT device, round, state, reason FROM assignments WHERE run = ?", run):
        if row["device"].startswith("hostile-") and row["state"] == "folded" and behaviour in NEVER_FOLDED:
            wrong.append(f"the {behaviour} update of {row['device']} was folded in round {row['round']}")
        if row["device"].startswith("phone-") and behaviour and row["state"] in ("declined", "failed", "rejected"):
            wrong.append(f"{row['device']} is {row['state']} in round {row['round']}: {row['reason']}")
    return wrong


def everybody_answers(fleet: Fleet) -> list[str]:
    """Every device that was not taken away is there, and answers a command: nothing hangs that nobody saw."""
    here = [device for host in fleet.hosts for device in host.devices if device not in fleet.gone]
    asked = {"population": POPULATION, "kind": "report", "devices": here, "ttl": ANSWER_SECONDS}
    answered = settled(fleet.client, fleet.client.post("/v1/commands", asked), ANSWER_SECONDS + 2)
    return [
        f"{command['device']} does not answer: {command['state']}, {command['reason']}"
        for command in answered
        if command["state"] != "done"
    ]


def _folded(fleet: Fleet, run: str) -> dict[int, list[dict[str, Any]]]:
    into: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for found in fleet.rows("SELECT * FROM assignments WHERE run = ? AND state = 'folded'", run):
        row = dict(found)
        into[row["folded_into"]].append(row)
    return dict(into)


def weights_at(fleet: Fleet, sha256: str) -> Tensors:
    blobs, name = fleet.server_folder / "blobs", f"{sha256[:2]}/{sha256}"
    data = next(path for path in (blobs / name, *blobs.glob(f"received/*/{name}")) if path.exists()).read_bytes()
    assert tensors.digest(data) == sha256, f"blob {sha256[:12]} has other bytes"
    return tensors.load(data)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []
