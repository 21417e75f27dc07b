"""What it costs to make an update durable before its receipt: one upload of 100 MB at a time.

A device driven by hand sends one update after another to a real coordinator, in rounds of one
client; seconds from its first byte to the receipt. The same is done with the coordinator's data in
memory (a tmpfs, which syncs nothing), and beside both stands what the disk and the processor alone
need: a write of the same bytes, its sync, and their SHA-256. The aim is at most 1.25 times the
slower of the two.
"""

import hashlib
import time
from pathlib import Path

import click

from benchmarks.deployment import Deployment
from benchmarks.exchange import message_of, write_seconds
from benchmarks.random_plan import DATASET, random_plan, write_job
from benchmarks.report import Report, median
from headwater.v1.fleet_pb2 import Dataset, SubmitHeader, SubmitRequest
from tests.system.device import Device, frames_of

MEMORY = Path("/dev/shm")
WARM_UP = 1
COLUMNS = {
    "size_mb": "MB",
    "uploads": "uploads",
    "durable_seconds": "durable, s",
    "memory_seconds": "in memory, s",
    "disk_seconds": "write + fsync + SHA-256, s",
    "ratio": "× the slower",
}


@click.command(help=__doc__)
@click.option("--parameters", default=25_000_000, show_default=True, help="Float32 values.")
@click.option("--uploads", default=9, show_default=True, help="Uploads that count.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def main(parameters: int, uploads: int, as_json: bool) -> None:
    report = Report("durable_upload", COLUMNS, as_json=as_json)
    durable = median(upload_seconds(None, parameters, uploads))
    memory = median(upload_seconds(MEMORY, parameters, uploads))
    alone = median(disk_seconds(4 * parameters, uploads))
    report.add(
        {
            "size_mb": 4 * parameters / 1e6,
            "uploads": uploads,
            "durable_seconds": durable,
            "memory_seconds": memory,
            "disk_seconds": alone,
            "ratio": durable / max(memory, alone),
        }
    )


def upload_seconds(folder: Path | None, parameters: int, uploads: int) -> list[float]:
    """Seconds of each upload to a coordinator with its data in a folder."""
    plan = random_plan(parameters)
    with Deployment(folder=folder) as deployment:
        dataset = Dataset(name=DATASET, example_count=10)
        device = Device(deployment.address, "device", plan, datasets=[dataset])
        try:
            stream = device.attend()
            job_file = write_job(deployment.folder, clients=1, rounds=uploads + WARM_UP)
            deployment.control.submit(job_file, plan)
            seconds = []
            for number in range(uploads + WARM_UP):
                update = device.update(0.001 * (number + 1))
                digest, frames = update.digest, [SubmitRequest(frame=f) for f in frames_of(update)]
                assignment = stream.next("assignment", seconds=120).assignment_id
                device.offer(assignment, update)
                header = SubmitHeader(
                    assignment_id=assignment, client_id=device.hello.client_id, digest=digest
                )
                began = time.perf_counter()
                device.send([SubmitRequest(header=header), *frames])
                seconds.append(time.perf_counter() - began)
        finally:
            device.close()
    return seconds[WARM_UP:]


def disk_seconds(size_bytes: int, repeats: int) -> list[float]:
    """Seconds of writing, syncing and hashing as many bytes, one after another."""
    chunks = message_of(size_bytes)
    seconds = []
    for written in write_seconds(size_bytes, repeats):
        began = time.perf_counter()
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
        seconds.append(written + time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
