"""invitations, and the life cycle of devices"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "invitations",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("population", sa.String(length=64), nullable=False),
        sa.Column("secret", sa.String(length=64), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("used", sa.Double(), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("revoked", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("secret"),
    )
    op.create_table(
        "refused_keys",
        sa.Column("fingerprint", sa.String(length=43), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("population", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint"),
    )
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("name", sa.String(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("set_labels", sa.JSON(), server_default="{}", nullable=False))
        batch_op.add_column(sa.Column("state", sa.String(), server_default="active", nullable=False))
        batch_op.add_column(sa.Column("state_reason", sa.String(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("state_since", sa.Double(), server_default="0", nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("devices", schema=None) as batch_op:
        for name in ("state_since", "state_reason", "state", "set_labels", "name"):
            batch_op.drop_column(name)
    op.drop_table("refused_keys")
    op.drop_table("invitations")
