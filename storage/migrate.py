"""Bringing a database to the schema version of this program, and telling when it is of another."""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

from headwater.errors import SchemaVersionError
from storage.database import database_kind, shown
from storage.failures import translate
from storage.schema import REVISION, WRITE_KEY, Base

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(url: str) -> str:
    """Bring the database at `url` to the newest schema version, and return that version.

    Raises:
        SchemaVersionError: it is of a version that this program does not know.
        StorageError: it cannot be reached.
    """
    engine = _engine(url)
    try:
        with engine.begin() as connection:
            _upgrade(connection, url)
    except Exception as error:
        raised = translate(error, f"the database {shown(url)}")
        raise raised from (None if raised is error else error)
    finally:
        engine.dispose()
    return REVISION


def check(url: str) -> str:
    """The schema version of the database at `url`, when it is this program's.

    Raises:
        SchemaVersionError: it has another version, or tables that differ from it.
        StorageError: it cannot be reached.
    """
    from storage.database import open_database

    open_database(url).close()
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            differences = schema_differences(connection)
    finally:
        engine.dispose()
    if differences:
        raise SchemaVersionError(
            f"the tables of {shown(url)} are not those of schema version {REVISION}: "
            + "; ".join(differences[:5])
        )
    return REVISION


def schema_differences(connection: Connection) -> list[str]:
    """How the tables differ from what this program declares; empty when they do not."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return [str(difference) for difference in compare_metadata(context, Base.metadata)]


def ready(engine: Engine, url: str, *, create: bool) -> None:
    """Make sure that the database is of this program's version; an empty one is made if `create`.

    Raises:
        SchemaVersionError: it is of another version; the message names the command.
    """
    with engine.connect() as connection:
        version = _version(connection)
    if version == REVISION:
        return
    if version is None and create:
        with engine.begin() as connection:
            _upgrade(connection, url)
        return
    raise SchemaVersionError(_refusal(version, url))


def _refusal(version: str | None, url: str) -> str:
    url = shown(url)
    command = f"headwater db upgrade --database {url}"
    if version is None:
        return f"the database {url} is empty: `headwater serve` fills it, and so does `{command}`"
    if version > REVISION:
        return (
            f"the database {url} has schema version {version}, newer than {REVISION} of this "
            "program: use the program that made it, or a later one"
        )
    return f"the database {url} has schema version {version}, this program {REVISION}: `{command}`"


def _version(connection: Connection) -> str | None:
    """The schema version; None for a database without any table."""
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        if version is not None:
            return version
        tables.discard("alembic_version")
    if tables:
        raise SchemaVersionError(
            f"{connection.engine.url.render_as_string()} holds tables of another program "
            f"({', '.join(sorted(tables)[:3])}): name a database of its own"
        )
    return None


def _upgrade(connection: Connection, url: str) -> None:
    from alembic import command

    if connection.dialect.name == "postgresql":
        # Another process may be about to do the same. SQLite's transactions exclude each other.
        connection.execute(text(f"SELECT pg_advisory_xact_lock({WRITE_KEY})"))
    version = _version(connection)
    if version is not None and version > REVISION:
        raise SchemaVersionError(_refusal(version, url))
    command.upgrade(_configuration(connection), "head")


def _configuration(connection: Connection) -> "Config":
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    configuration.attributes["connection"] = connection
    return configuration


def _engine(url: str) -> Engine:
    from storage.postgresql import postgresql_engine
    from storage.sqlite import sqlite_engine

    return {"sqlite": sqlite_engine, "postgresql": postgresql_engine}[database_kind(url)](url)
