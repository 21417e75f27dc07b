"""What a coordinator and the commands say when they cannot do what they are asked."""

import json
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.fleet import Fleet, FleetFactory
from tests.system.processes import Output, Process, run
from tests.system.training import write_job


def serve(folder: Path, *options: str, listen: str = "127.0.0.1:0") -> Output:
    """A coordinator that is expected to end at once."""
    return run("serve", "--listen", listen, "--data-directory", str(folder), *options)


def refused(done: Output, code: int, *words: str) -> None:
    """One line for people on standard error, no traceback, and the documented exit code."""
    assert done.code == code, done
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert done.err.startswith(("headwater: ", "headwater-client: "))
    assert all(word in done.err for word in words), done.err


def test_a_second_coordinator_on_the_same_data_directory(shared_fleet: Fleet) -> None:
    """A second `serve` on the same data directory: exit code 3, naming the holder."""
    pid = shared_fleet.serving.popen.pid
    done = serve(shared_fleet.data)
    refused(done, 3, f"the data directory {shared_fleet.data} is in use by headwater serve")
    refused(done, 3, f"process {pid} on {socket.gethostname()}")


def test_a_second_coordinator_on_the_same_database(shared_fleet: Fleet, tmp_path: Path) -> None:
    """A second `serve` on the same database in another directory: the same refusal."""
    done = serve(tmp_path / "other", "--database", shared_fleet.database)
    refused(done, 3, "headwater.db is in use by headwater serve", "stop it first, or use another")


def test_a_busy_port(tmp_path: Path) -> None:
    """A busy port: exit code 3, one line, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = serve(tmp_path / "data", listen=address)
    refused(done, 3, f"cannot listen on {address}", "--listen")


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:", "127.0.0.1:99999", ":7070"])
def test_a_malformed_address(tmp_path: Path, listen: str) -> None:
    """A bad address: exit code 2, and how to write it."""
    refused(serve(tmp_path / "data", listen=listen), 2, repr(listen), "HOST:PORT")


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:", ":7070"])
def test_a_malformed_coordinator(address: str) -> None:
    """A bad --coordinator: exit code 2, and how to write it."""
    done = run("jobs", "list", "--coordinator", address)
    refused(done, 2, f"--coordinator {address!r}", "write HOST:PORT, such as 127.0.0.1:7070")


def test_held_out_data_that_is_not_there(new_fleet: FleetFactory, tmp_path: Path) -> None:
    """A missing held-out file: a warning at the start, for the file may come."""
    fleet = new_fleet()
    fleet.serve("--data", f"digits={tmp_path}/none.npz?input=x")
    fleet.serving.wait_line(
        f"warning held-out data of digits: there is no file or folder {tmp_path}/none.npz"
    )


def test_an_open_address_needs_insecure(tmp_path: Path) -> None:
    """Another address than loopback without --insecure: exit code 2, and nothing is made."""
    done = serve(tmp_path / "data", listen="0.0.0.0:0")
    refused(done, 2, "--listen 0.0.0.0:0 is open to the network", "--insecure")
    assert not (tmp_path / "data").exists()


def test_insecure_warns_and_shows(new_fleet: FleetFactory) -> None:
    """--insecure: a warning at each start, and a note on each client in `clients list`."""
    fleet = new_fleet()
    fleet.address = "0.0.0.0:0"
    for _ in range(2):
        fleet.serve("--insecure")
        fleet.serving.wait_line("warning INSECURE: .* is open to the network")
        fleet.serving.stop()
    fleet.serve("--insecure")
    fleet.address = fleet.address.replace("0.0.0.0", "127.0.0.1")
    fleet.device("ann").attend()
    (client,) = fleet.json("clients", "list")
    assert client["insecure"] is True
    assert "INSECURE: attends over an open network" in fleet.cli("clients", "list").out


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("nonsense", 2, ("'nonsense' is no database URL", "sqlite:///PATH")),
        ("mysql://root@localhost/x", 2, ("is no database URL", "postgresql://")),
        ("sqlite://", 2, ("names no file",)),
        ("sqlite:////no/such/folder/x.db", 3, ("the folder /no/such/folder",)),
        ("postgresql://u:secret@127.0.0.1:1/x", 3, ("cannot be reached",)),
    ],
)
def test_a_bad_database_url(tmp_path: Path, url: str, code: int, words: tuple[str, ...]) -> None:
    """A bad URL: one line, without the password."""
    done = serve(tmp_path / "data", "--database", url)
    refused(done, code, *words)
    assert "secret" not in done.err


@pytest.mark.parametrize("command", ["serve", "jobs list", "db check", "db upgrade"])
def test_a_database_of_another_schema_version(tmp_path: Path, command: str) -> None:
    """A newer schema: refused with what to do, and the database is left as it is."""
    path = tmp_path / "newer.db"
    url = f"sqlite:///{path}"
    assert run("db", "upgrade", "--database", url).code == 0
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = path.read_bytes()
    done = (
        serve(tmp_path / "data", "--database", url)
        if command == "serve"
        else run(*command.split(), "--database", url)
    )
    refused(done, 3, "has schema version 9999, newer than", "use the program that made it")
    assert path.read_bytes() == before


def test_a_database_of_an_older_schema_version(tmp_path: Path) -> None:
    """An older schema: refused with the command that upgrades it."""
    path = tmp_path / "older.db"
    url = f"sqlite:///{path}"
    run("db", "upgrade", "--database", url)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    connection.close()
    refused(
        serve(tmp_path / "data", "--database", url),
        3, "has schema version 0000", f"headwater db upgrade --database {url}",
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [("jobs", "list"), ("rounds", "list", "x"), ("clients", "list"), ("jobs", "pause", "x")],
)
def test_no_coordinator(arguments: tuple[str, ...]) -> None:
    """No coordinator running: exit code 3, one line that says how to start one."""
    done = run(*arguments, "--coordinator", "127.0.0.1:1")
    refused(done, 3, "no coordinator answers at 127.0.0.1:1", "headwater serve", "--coordinator")


def test_submitting_without_a_coordinator(tmp_path: Path) -> None:
    """No coordinator for `submit`: exit code 3 and one line after what was compiled."""
    done = run("submit", str(write_job(tmp_path)), "--coordinator", "127.0.0.1:1")
    assert done.code == 3
    assert "no coordinator answers at 127.0.0.1:1" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    """Reading a database file that does not exist makes none."""
    path = tmp_path / "none.db"
    refused(run("jobs", "list", "--database", f"sqlite:///{path}"), 3, "there is no database at")
    assert not path.exists()


def test_a_command_that_does_not_exist() -> None:
    """A wrong command or option: exit code 2 from the command line itself."""
    assert run("jbos").code == 2
    assert run("jobs", "list", "--colour").code == 2


def test_logs_for_programs(new_fleet: FleetFactory) -> None:
    """--log-format json: every line is an object with time, level and message."""
    fleet = new_fleet()
    process: Process = fleet.serve("--log-format", "json")
    fleet.device("ann").attend()
    process.wait_line('"client": "ann"')
    process.stop()
    lines = [json.loads(line) for line in process.text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["jobs", "list", "--help"], {"sqlalchemy", "alembic", "torch", "onnxruntime"}),
        (["submit", "--help"], {"sqlalchemy", "alembic", "torch", "onnxruntime"}),
        (["serve", "--help"], {"torch"}),
    ],
)
def test_a_command_imports_what_it_uses(arguments: list[str], heavy: set[str]) -> None:
    """Each of these takes up to seconds, which a command that does not need it need not wait."""
    code = (
        "import sys; from coordinator.cli import commands, run;"
        f"run(commands.headwater, {arguments}); print('imported', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.rpartition("imported")[2].split())
    assert "click" in imported
    assert not heavy & imported
