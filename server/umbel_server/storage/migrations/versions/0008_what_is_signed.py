"""keys to seal with, clocks, the newest answer of each device"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("answered", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("agreement", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("skew", sa.Double(), server_default="0", nullable=False))
    with op.batch_alter_table("commands", schema=None) as batch_op:
        batch_op.add_column(sa.Column("sealed", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("commands", schema=None) as batch_op:
        batch_op.drop_column("sealed")
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.drop_column("skew")
        batch_op.drop_column("agreement")
        batch_op.drop_column("answered")
