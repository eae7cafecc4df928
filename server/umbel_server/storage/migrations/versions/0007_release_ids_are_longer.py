"""release ids are longer than 32 characters"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("releases") as table:
        table.alter_column("id", existing_type=sa.String(length=32), existing_nullable=False, type_=sa.String(128))


def downgrade() -> None:
    with op.batch_alter_table("releases") as table:
        table.alter_column("id", existing_type=sa.String(length=128), existing_nullable=False, type_=sa.String(32))
