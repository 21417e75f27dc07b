"""All rows of a database into a new one, of either kind."""

from sqlalchemy import Table, func, insert, select, text
from sqlalchemy.orm import Session

from headwater.errors import ConflictError
from storage import migrate
from storage.database import Database, open_database, shown
from storage.schema import Base, Claim

ROWS_AT_ONCE = 1_000
_TABLES = [table for table in Base.metadata.sorted_tables if table is not Claim.__table__]
"""Each after those that it refers to. Who holds a database is not of its content."""


def copy_database(source: Database, url: str) -> int:
    """Write every row of one snapshot of `source` to a new database at `url`; returns how many.

    The database at `url` is made, or has no rows yet; it gets all of them in one transaction.

    Raises:
        ConflictError: it has rows already.
        DiskFullError, StorageError: either of the databases failed; nothing was copied.
    """
    migrate.upgrade(url)
    with open_database(url) as target:
        return source.read_now(
            lambda rows: target.write_now(lambda session: _copy(rows, session, shown(url)))
        )


def _copy(source: Session, target: Session, name: str) -> int:
    if any(target.scalar(select(func.count()).select_from(table)) for table in _TABLES):
        raise ConflictError(f"{name} has rows already: name a database of its own")
    return sum(_copy_table(source, target, table) for table in _TABLES)


def _copy_table(source: Session, target: Session, table: Table) -> int:
    # In order of their keys: a model version comes after its parent.
    query = select(table).order_by(*table.primary_key).execution_options(yield_per=ROWS_AT_ONCE)
    count = 0
    for part in source.execute(query).mappings().partitions():
        rows = [dict(row) for row in part]
        target.execute(insert(table), rows)
        count += len(rows)
    if target.get_bind().dialect.name == "postgresql" and "id" in table.primary_key.columns:
        _continue_numbers(target, table)
    return count


def _continue_numbers(target: Session, table: Table) -> None:
    """Let PostgreSQL number further rows from the last one on, as SQLite does by itself."""
    target.execute(
        text(
            f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), "
            f"coalesce(max(id), 0) + 1, false) FROM {table.name}"
        )
    )
