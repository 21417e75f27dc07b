"""What it costs to make an update durable before its receipt: one upload of 100 MB at a time.

A device driven by hand sends one update after another to a real coordinator, in rounds of one
client; seconds from its first byte to the receipt. Taking turns with that, so that whatever else
the machine does meets them all: the same with the coordinator's data in memory (a tmpfs, which
syncs nothing), and what the disk and the processor alone need, which is a write of as many bytes,
its sync, and their SHA-256. The aim is at most 1.25 times the slower of the two.
"""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks.deployment import Deployment
from benchmarks.exchange import message_of, write_seconds
from benchmarks.random_plan import DATASET, random_plan, write_job
from benchmarks.report import Report, median
from headwater.v1.fleet_pb2 import Dataset, SubmitHeader, SubmitRequest
from tests.system.device import Device, Update, frames_of

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
    turns = zip(
        upload_seconds(None, parameters, uploads),
        upload_seconds(MEMORY, parameters, uploads),
        disk_seconds(4 * parameters, uploads),
        strict=True,
    )
    durable, memory, alone = map(median, zip(*turns, strict=True))
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


def upload_seconds(folder: Path | None, parameters: int, uploads: int) -> Iterator[float]:
    """Seconds of each upload to a coordinator with its data in a folder."""
    plan = random_plan(parameters)
    with Deployment(folder=folder) as deployment:
        dataset = Dataset(name=DATASET, example_count=10)
        device = Device(deployment.address, "device", plan, datasets=[dataset])
        try:
            stream = device.attend()
            job_file = write_job(deployment.folder, clients=1, rounds=WARM_UP + uploads + 1)
            deployment.control.submit(job_file, plan)
            assignment = stream.next("assignment", seconds=120).assignment_id
            for number in range(WARM_UP + uploads):
                seconds = send_seconds(device, assignment, device.update(0.001 * (number + 1)))
                # By then its round is closed, and disturbs nobody's turn.
                assignment = stream.next("assignment", seconds=120).assignment_id
                if number >= WARM_UP:
                    yield seconds
        finally:
            device.close()


def send_seconds(device: Device, assignment: int, update: Update) -> float:
    """Seconds of one upload."""
    device.offer(assignment, update)
    header = SubmitHeader(
        assignment_id=assignment, client_id=device.hello.client_id, digest=update.digest
    )
    frames = [SubmitRequest(frame=frame) for frame in frames_of(update)]
    began = time.perf_counter()
    device.send([SubmitRequest(header=header), *frames])
    return time.perf_counter() - began


def disk_seconds(size_bytes: int, repeats: int) -> Iterator[float]:
    """Seconds of writing, syncing and hashing as many bytes, one after another."""
    chunks = message_of(size_bytes)
    for _ in range(repeats):
        (written,) = write_seconds(size_bytes, 1)
        began = time.perf_counter()
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
        yield written + time.perf_counter() - began


if __name__ == "__main__":
    main()
