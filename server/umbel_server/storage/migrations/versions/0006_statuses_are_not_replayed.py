"""the newest status of each device"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("said_epoch", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("said_sequence", sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.drop_column("said_sequence")
        batch_op.drop_column("said_epoch")
