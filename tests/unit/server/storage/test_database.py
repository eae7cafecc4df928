"""The database's schema is made by migrations, and read through the models: both say the same."""

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, select

from umbel.errors import UmbelError
from umbel_server.storage import database
from umbel_server.storage.database import Base, Database, Release, Run

MIGRATIONS = Path(database.__file__).with_name("migrations")


def test_the_migrated_schema_is_that_of_the_models(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'umbel.sqlite'}"
    Database(url).close()
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_a_release_survives_every_migration_since_its_id_grew(tmp_path: Path) -> None:
    files = {"float32": {"sha256": "0" * 64, "size": 1}}
    url, id = f"sqlite:///{tmp_path / 'umbel.sqlite'}", "digits-" + "x" * 100
    fleet = Database(url)
    with fleet.transaction() as session:
        session.add(Run(id="run", population="home", plan="p", task="digits", settings={}, created=1.0, updated=1.0))
        session.flush()
        session.add(Release(id=id, run="run", round=1, task="digits", created=1.0, manifest=b"m", files=files))
    fleet.close()
    config, engine = Config(), create_engine(url)
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0006")
        connection.commit()
    engine.dispose()
    fleet = Database(url)
    with fleet.transaction() as session:
        release = session.scalars(select(Release)).one()
        assert (release.id, release.run, release.manifest, release.files) == (id, "run", b"m", files)
    fleet.close()


def test_a_sqlite_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 34, 1))
    with pytest.raises(UmbelError, match=r"SQLite should be 3\.35 or newer"):
        Database(f"sqlite:///{tmp_path / 'umbel.sqlite'}")
