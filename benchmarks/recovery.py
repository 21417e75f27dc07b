"""How long a killed coordinator takes to go on, with 10,000 past rounds in its database.

A job of no-op clients runs until some rounds are committed; then coordinator and clients are
killed. The history is copied under another job until it has as many rounds as asked, each with its
ledger, metrics, version and events. Then the coordinator is started and killed again, several
times: from the start of the process until it listens, with the job taken up in the round where it
was. The floor is the same without a history beyond the job's own.
"""

import sqlite3
import sys
import time
from pathlib import Path

import click

from benchmarks.deployment import COORDINATOR, Deployment
from benchmarks.random_plan import random_plan, write_job
from benchmarks.report import Report, median

CLIENT = [sys.executable, str(Path(__file__).with_name("no_op_client.py"))]
CLIENTS = 4
OWN_ROUNDS = 20
COLUMNS = {
    "past_rounds": "past rounds",
    "ledger_rows": "ledger rows",
    "database_mib": "database, MiB",
    "starts": "starts",
    "median_seconds": "median s to listen",
    "worst_seconds": "worst s",
}


@click.command(help=__doc__)
@click.option("--rounds", default=10_000, show_default=True, help="Past rounds.")
@click.option("--starts", default=7, show_default=True, help="Starts that count.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each case.")
def main(rounds: int, starts: int, as_json: bool) -> None:
    report = Report("recovery", COLUMNS, as_json=as_json)
    with Deployment() as deployment:
        interrupt_job(deployment)
        database = deployment.folder / "data" / "headwater.db"
        for wanted in (OWN_ROUNDS, rounds):
            multiply(database, wanted)
            seconds = [started(deployment) for _ in range(starts)]
            report.add(
                {
                    "past_rounds": count(database, "rounds"),
                    "ledger_rows": count(database, "assignments"),
                    "database_mib": size_bytes(database) / 2**20,
                    "starts": starts,
                    "median_seconds": median(seconds),
                    "worst_seconds": max(seconds),
                }
            )


def interrupt_job(deployment: Deployment) -> None:
    """Run a job for some rounds, and kill everyone in the middle of one."""
    names = [f"no-op-{number}" for number in range(CLIENTS)]
    for name in names:
        deployment.start_client(name, CLIENT, ())
    job_file = write_job(deployment.folder, clients=CLIENTS, rounds=1_000_000)
    reference = deployment.control.submit(job_file, random_plan(1000)).reference
    while deployment.control.show_job(reference).job.rounds_done < OWN_ROUNDS:
        time.sleep(0.01)
    for name in (*names, COORDINATOR):
        deployment.kill(name)


def started(deployment: Deployment) -> float:
    """Seconds from the start of the process until it listens, with its job under way."""
    seconds = deployment.serve()
    if "continues in round" not in deployment.log:
        raise RuntimeError(f"the job is not taken up:\n{deployment.log}")
    deployment.kill(COORDINATOR)
    return seconds


def count(database: Path, table: str) -> int:
    """Rows of a table."""
    with sqlite3.connect(database) as connection:
        (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(rows)


def size_bytes(database: Path) -> int:
    """The file with its write-ahead log."""
    return sum(path.stat().st_size for path in database.parent.glob(f"{database.name}*"))


def multiply(database: Path, rounds: int) -> None:
    """Copy the committed rounds under a job of the past until there are so many."""
    with sqlite3.connect(database) as connection:
        missing = rounds - count(database, "rounds")
        if missing > 0:
            past = copied(connection, "jobs", "SELECT max(id) FROM jobs", {"reference": "'past'"})
            change = "state = 'completed', ended_at = created_at"
            connection.execute(f"UPDATE jobs SET {change} WHERE id = ?", (past,))
            for number in range(missing):
                copy_round(connection, past, number)


def copy_round(connection: sqlite3.Connection, job: int, number: int) -> None:
    """One more committed round of the past with all its rows."""
    (source,) = connection.execute(
        "SELECT id FROM rounds WHERE state = 'committed' AND number = ?", (1 + number % 10,)
    ).fetchone()
    own = {"job_id": str(job), "number": str(number + 1)}
    made = copied(connection, "rounds", f"SELECT {source}", own)
    version = f"SELECT id FROM model_versions WHERE round_id = {source}"
    copied(connection, "model_versions", version, {**own, "round_id": str(made)})
    for table in ("assignments", "metrics", "events"):
        found = connection.execute(f"SELECT id FROM {table} WHERE round_id = {source}").fetchall()
        for (row,) in found:
            of_job = {} if table == "assignments" else {"job_id": str(job)}
            copied(connection, table, f"SELECT {row}", {"round_id": str(made), **of_job})


def copied(connection: sqlite3.Connection, table: str, which: str, changed: dict[str, str]) -> int:
    """A copy of the row whose id `which` selects, with some columns changed; its id."""
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    kept = [name for name in names if name != "id"]
    values = ", ".join(changed.get(name, name) for name in kept)
    statement = f"INSERT INTO {table} ({', '.join(kept)}) SELECT {values} FROM {table}"
    made = connection.execute(f"{statement} WHERE id = ({which})").lastrowid
    assert made is not None
    return made


if __name__ == "__main__":
    main()
