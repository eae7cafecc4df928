"""rounds that survive"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rounds",
        sa.Column("run", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("opened", sa.Double(), nullable=False),
        sa.Column("closes", sa.Double(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("quorum", sa.Integer(), nullable=False),
        sa.Column("closed", sa.Double(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("seconds", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"]),
        sa.PrimaryKeyConstraint("run", "number", "attempt"),
    )
    with op.batch_alter_table("devices") as table:
        table.add_column(sa.Column("assigned", sa.Double(), nullable=False, server_default="0"))
        table.add_column(sa.Column("rejections", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("quarantined", sa.String(), nullable=False, server_default=""))
    with op.batch_alter_table("runs") as table:
        table.add_column(sa.Column("weights", sa.String(length=64), nullable=False, server_default=""))
        table.add_column(sa.Column("resumed", sa.Double(), nullable=False, server_default="0"))
    with op.batch_alter_table("assignments") as table:
        table.add_column(sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("closes", sa.Double(), nullable=False, server_default="0"))
        table.add_column(sa.Column("weight", sa.Double(), nullable=False, server_default="0"))
        table.add_column(sa.Column("folded_into", sa.Integer(), nullable=True))
        table.add_column(sa.Column("bytes_down", sa.BigInteger(), nullable=False, server_default="0"))
        table.add_column(sa.Column("bytes_up", sa.BigInteger(), nullable=False, server_default="0"))
        table.create_index("assignments_into_checkpoint", ["run", "folded_into"])
    op.execute("UPDATE assignments SET folded_into = round, weight = examples WHERE state = 'folded'")
    _settings(_into_policy)


def downgrade() -> None:
    _settings(_out_of_policy)
    with op.batch_alter_table("assignments") as table:
        table.drop_index("assignments_into_checkpoint")
        for name in ("attempt", "closes", "weight", "folded_into", "bytes_down", "bytes_up"):
            table.drop_column(name)
    with op.batch_alter_table("runs") as table:
        table.drop_column("weights")
        table.drop_column("resumed")
    with op.batch_alter_table("devices") as table:
        for name in ("assigned", "rejections", "quarantined"):
            table.drop_column(name)
    op.drop_table("rounds")


def _settings(change) -> None:  # type: ignore[no-untyped-def]
    connection = op.get_bind()
    for id, settings in connection.execute(sa.text("SELECT id, settings FROM runs")).all():
        old = json.loads(settings) if isinstance(settings, str) else settings
        connection.execute(
            sa.text("UPDATE runs SET settings = :settings WHERE id = :id"),
            {"id": id, "settings": json.dumps(change(old))},
        )


def _into_policy(old: dict[str, object]) -> dict[str, object]:
    moved = {new: old.pop(name) for name, new in _MOVED.items() if name in old}
    # What ran before offered no more assignments than it wanted.
    return {**old, "policy": {**moved, "over_selection": 1.0}} if moved else old


def _out_of_policy(new: dict[str, object]) -> dict[str, object]:
    policy = new.pop("policy", {})
    return {**new, **{name: policy[key] for name, key in _MOVED.items() if key in policy}}  # type: ignore[operator,index]


_MOVED = {"fraction": "fraction", "minimum": "quorum", "deadline": "deadline"}
