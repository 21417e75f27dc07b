import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from storage import migrate
from storage.database import Database, open_database
from storage.postgresql import postgresql_engine
from storage.schema import Base
from tests.postgresql import PostgresqlServer, postgresql_server  # noqa: F401
from tests.s3 import s3_server  # noqa: F401
from tests.storage.world import World


@dataclass(frozen=True)
class Databases:
    """Databases of one kind: a new one without any table, or one at the newest schema version.

    The second is shared by tests, empty for each; one that changes tables makes its own.
    """

    empty: Callable[[], str]
    ready: Callable[[], str]


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "headwater.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: PostgresqlServer) -> str:  # noqa: F811
    url = postgresql_server.create_database()
    migrate.upgrade(url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> Databases:
    if request.param == "sqlite":
        template = request.getfixturevalue("sqlite_template")
        path = tmp_path / "headwater.db"
        return Databases(
            empty=lambda: f"sqlite:///{path}",
            ready=lambda: f"sqlite:///{shutil.copy(template, path)}",
        )
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    url = request.getfixturevalue("postgresql_template")
    return Databases(empty=server.create_database, ready=lambda: emptied(url))


def emptied(url: str) -> str:
    tables = ", ".join(Base.metadata.tables)
    engine = postgresql_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY"))
    engine.dispose()
    return url


@pytest.fixture
def url(databases: Databases) -> str:
    return databases.ready()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with open_database(url) as database:
        yield database


@pytest.fixture
def world(database: Database) -> World:
    return World(database)
