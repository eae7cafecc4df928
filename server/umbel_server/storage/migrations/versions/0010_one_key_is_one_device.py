"""one key is one device"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from umbel import signing
from umbel.errors import SignatureError
from umbel.signing import PublicKey

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("devices", sa.Column("fingerprint", sa.String(length=43), nullable=True))
    devices = sa.table("devices", sa.column("population"), sa.column("id"), sa.column("fingerprint"))
    connection, seen = op.get_bind(), set[str]()
    enrolled = connection.execute(
        sa.text("SELECT population, id, key FROM devices WHERE state != 'deleted' ORDER BY enrolled, population, id")
    ).all()
    for population, id, key in enrolled:
        fingerprint = _fingerprint(json.loads(key) if isinstance(key, str) else key)
        if fingerprint is None or fingerprint in seen:
            continue  # who enrolled a key after another did goes on with it until it is revoked
        seen.add(fingerprint)
        connection.execute(
            sa.update(devices)
            .where(devices.c.population == population, devices.c.id == id)
            .values(fingerprint=fingerprint)
        )
    op.create_index("devices_fingerprint", "devices", ["fingerprint"], unique=True)


def downgrade() -> None:
    op.drop_index("devices_fingerprint", "devices")
    op.drop_column("devices", "fingerprint")


def _fingerprint(key: Any) -> str | None:
    try:
        return signing.fingerprint(signing.import_public(PublicKey(**key)))
    except (SignatureError, TypeError):
        return None
