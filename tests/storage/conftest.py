import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage import migrate
from storage.database import Database, open_database
from tests.postgresql import PostgresqlServer, postgresql_server  # noqa: F401
from tests.storage.world import World


@dataclass(frozen=True)
class Databases:
    """How to make databases of one kind: without any table, or at the newest schema version."""

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
    return url.split("/")[3].split("?")[0]


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
    name = request.getfixturevalue("postgresql_template")
    return Databases(
        empty=server.create_database, ready=lambda: server.create_database(template=name)
    )


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
