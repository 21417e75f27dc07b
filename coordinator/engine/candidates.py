"""What the engine knows of the attending clients, as selection wants it."""

from collections.abc import Iterable, Mapping
from typing import Any

from coordinator.engine.attendance import Attendee
from coordinator.engine.live import JobRun
from coordinator.engine.selection import Candidate
from headwater.v1 import fleet_pb2


def attributes_of(hello: fleet_pb2.Hello) -> dict[str, Any]:
    """The names that a job's `where` can use: the device profile, then the owner's tags."""
    profile = hello.profile
    return {
        "name": hello.name,
        "hostname": hello.hostname,
        "runtime": profile.runtime,
        "device": profile.device,
        "cores": profile.cores,
        "memory_gib": profile.memory_bytes / 2**30,
        "disk_free_gib": profile.disk_free_bytes / 2**30,
        "platform": profile.platform,
        **dict(hello.tags),
    }


def profile_of(hello: fleet_pb2.Hello) -> dict[str, Any]:
    """The device profile as the database keeps it, with the number of examples by data set."""
    profile = hello.profile
    return {
        "runtime": profile.runtime,
        "device": profile.device,
        "cores": profile.cores,
        "memory_bytes": profile.memory_bytes,
        "disk_free_bytes": profile.disk_free_bytes,
        "platform": profile.platform,
        "program_version": hello.program_version,
        **{f"examples.{one.name}": one.example_count for one in hello.datasets},
    }


def candidates(
    attendees: Iterable[Attendee], run: JobRun, busy: Mapping[str, str], now: float
) -> list[Candidate]:
    """The attending clients as candidates for a round of this job."""
    barred = {instance: reason for instance, (reason, until) in run.barred.items() if until > now}
    return [
        Candidate(
            client_id=one.client_id,
            name=one.name,
            attributes=attributes_of(one.hello),
            example_counts={data.name: data.example_count for data in one.hello.datasets},
            encodings=frozenset(one.hello.encodings),
            busy_with=busy.get(one.client_id, ""),
            barred=barred.get(one.instance_id, ""),
        )
        for one in attendees
    ]
