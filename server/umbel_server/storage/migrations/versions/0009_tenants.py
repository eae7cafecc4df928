"""blobs belong to populations; quotas"""

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.engine import Connection

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

UNMEASURED = -1


def upgrade() -> None:
    blobs = op.create_table(
        "blob_populations",
        sa.Column("population", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("population", "sha256"),
    )
    op.create_index("blob_populations_size", "blob_populations", ["population", "size"])
    op.create_table(
        "quotas",
        sa.Column("population", sa.String(length=64), nullable=False),
        sa.Column("devices", sa.BigInteger(), nullable=True),
        sa.Column("storage", sa.BigInteger(), nullable=True),
        sa.Column("bytes_per_day", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("population"),
    )
    op.create_table(
        "traffic",
        sa.Column("population", sa.String(length=64), nullable=False),
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("down", sa.BigInteger(), nullable=False),
        sa.Column("up", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("population", "day"),
    )
    op.create_index("assignments_waiting", "assignments", ["population", "state"])
    now, found = time.time(), dict[tuple[str, str], int]()
    for population, sha256, size in _referred(op.get_bind()):
        known = found.get((population, sha256), UNMEASURED)
        found[population, sha256] = max(known, size)
    rows = [
        {"population": population, "sha256": sha256, "size": size, "since": now}
        for (population, sha256), size in found.items()
    ]
    for start in range(0, len(rows), 1000):
        op.bulk_insert(blobs, rows[start : start + 1000])


def downgrade() -> None:
    op.drop_index("assignments_waiting", "assignments")
    op.drop_table("traffic")
    op.drop_table("quotas")
    op.drop_index("blob_populations_size", "blob_populations")
    op.drop_table("blob_populations")


def _referred(connection: Connection) -> Iterator[tuple[str, str, int]]:
    """Every blob that something of a population names, with its size where that is known."""
    for population, plan, weights, settings in connection.execute(
        sa.text("SELECT population, plan, weights, settings FROM runs")
    ):
        for sha256 in (plan, weights, _json(settings).get("held_out", "")):
            if sha256:
                yield population, sha256, UNMEASURED
    of_runs = "SELECT runs.population, {} FROM {} AS t JOIN runs ON runs.id = t.run"
    for population, weights, strategy in connection.execute(
        sa.text(of_runs.format("t.weights, t.strategy", "checkpoints"))
    ):
        yield population, weights, UNMEASURED
        if strategy:
            yield population, strategy, UNMEASURED
    for population, files in connection.execute(sa.text(of_runs.format("t.files", "releases"))):
        for file in _json(files).values():
            yield population, file["sha256"], file["size"]
    waiting = (
        'SELECT population, "update", bytes_up FROM assignments WHERE state = \'uploaded\' AND "update" IS NOT NULL'
    )
    yield from (tuple(row) for row in connection.execute(sa.text(waiting)))
    commands = sa.text("SELECT population, token, outcome FROM commands WHERE kind IN ('infer', 'install', 'export')")
    for population, token, outcome in connection.execute(commands):
        for blob in (*_blobs(_payload(token).get("body")), *_blobs(_json(outcome))):
            yield population, blob["sha256"], blob["size"]


def _blobs(told: Any) -> Iterator[dict[str, Any]]:
    """The addresses among the fields of a command's body or of its outcome."""
    for value in told.values() if isinstance(told, dict) else ():
        if isinstance(value, dict) and isinstance(value.get("sha256"), str) and isinstance(value.get("size"), int):
            yield value


def _json(value: Any) -> dict[str, Any]:
    """A JSON column, which SQLite gives as text."""
    found = json.loads(value) if isinstance(value, str) else value
    return found if isinstance(found, dict) else {}


def _payload(token: bytes) -> dict[str, Any]:
    """What a compact JWS of this server's own says; its signature is not looked at."""
    part = bytes(token).split(b".")[1]
    return _json(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)).decode())
