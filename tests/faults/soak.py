"""The soak: `python -m tests.faults.soak [--minutes 30] [--clients 20]`.

Small rounds over real client processes without end, while clients are killed at random and started
again. Every so often it prints what the coordinator holds: memory, file descriptors, threads, and
what its database grew by for each round. The exit code is 1 if the job did not go on or ledger and
blobs do not agree at the end.
"""

import os
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

from coordinator.author import compile_job
from storage.blob_directory import BlobDirectory
from storage.database import open_database
from storage.verify import verify
from tests.system.fleet import Fleet
from tests.system.training import write_job

SAMPLES = 12
KILL_SECONDS = 3.0


@dataclass(frozen=True)
class Sample:
    """What the coordinator's process holds, as the operating system counts it."""

    minutes: float
    rounds: int
    memory_mib: float
    descriptors: int
    threads: int
    database_mib: float
    kills: int


@click.command()
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--clients", default=20, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(minutes: float, clients: int, seed: int) -> None:
    """Run small rounds with random kills of clients."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-soak-")))
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        fleet = Fleet(folder, compile_job(write_job(folder / "job")))
        stack.callback(fleet.end)
        samples = soaked(fleet, minutes, clients, seed)
        with open_database(fleet.database) as database:
            findings = verify(database, BlobDirectory(fleet.data / "blobs")).findings
    for one in findings:
        print(one)
    sys.exit(1 if findings or samples[-1].rounds <= samples[0].rounds else 0)


def soaked(fleet: Fleet, minutes: float, clients: int, seed: int) -> list[Sample]:
    """Run, and sample at even times; the job is cancelled at the end."""
    draw, names = random.Random(seed), [f"client-{number}" for number in range(clients)]
    fleet.serve("--lease-seconds", "5")
    for name in names:
        fleet.start_client(name)
    job = fleet.submit(
        count=10_000_000, cohort=clients // 2, quorum=2, over_selection=1.5, deadline_seconds=20
    )
    began = time.monotonic()
    samples: list[Sample] = []
    kills = 0
    while len(samples) < SAMPLES:
        time.sleep(KILL_SECONDS)
        name = draw.choice(names)
        fleet.clients[name].kill()
        fleet.start_client(name)
        kills += 1
        elapsed = (time.monotonic() - began) / 60
        if elapsed >= minutes * (len(samples) + 1) / SAMPLES:
            samples.append(sampled(fleet, job, elapsed, kills))
            print(samples[-1], flush=True)
    fleet.control.change(job, "cancel")
    fleet.serving.stop()
    return samples


def sampled(fleet: Fleet, job: str, minutes: float, kills: int) -> Sample:
    """What the coordinator holds now."""
    place = Path(f"/proc/{fleet.serving.popen.pid}")
    status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    size_bytes = sum(path.stat().st_size for path in fleet.data.glob("headwater.db*"))
    return Sample(
        minutes=round(minutes, 2),
        rounds=fleet.job(job).rounds_done,
        memory_mib=round(float(status["VmRSS"].split()[0]) / 1024, 1),
        descriptors=len(list((place / "fd").iterdir())),
        threads=int(status["Threads"]),
        database_mib=round(size_bytes / 2**20, 2),
        kills=kills,
    )


if __name__ == "__main__":
    main()
