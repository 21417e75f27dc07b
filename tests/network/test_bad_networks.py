"""Jobs over slow, lossy links that part in the middle of a transfer: each goes on where it was.

`HEADWATER_CHAOS=1 pytest -s tests/network` also runs the cases that take minutes, and prints time
and bytes beside the ideal.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from headwater.layout import BLOCK_ELEMENTS
from headwater.v1 import control_pb2
from tests.network.conftest import CLIENT, JOB
from tests.network.distant_fleet import DistantFleet
from tests.network.link import Conditions
from tests.system.processes import eventually

pytestmark = pytest.mark.slow

BLOCK_BYTES = 4 * BLOCK_ELEMENTS
PATIENCE_SECONDS = 600.0
"""How long a transfer over a slow link may take to its middle; never how long it takes."""

OVERHEAD = 1.25
"""What may lie on a link for each byte of a transfer: its headers are 4%, the acknowledgements of
the other way 4%, and the rest is what TCP sends again. Beside it one block may be sent twice, of
five: a transfer that began anew in its middle would take more."""

takes_minutes = [
    pytest.mark.skipif(
        os.environ.get("HEADWATER_CHAOS") != "1", reason="takes minutes: HEADWATER_CHAOS=1 runs it"
    ),
    pytest.mark.timeout(3 * PATIENCE_SECONDS),
]


@dataclass(frozen=True)
class Weather:
    """A link, its partitions, and the silence that the coordinator bears."""

    link: Conditions
    partition_seconds: float = 0.0
    lease_seconds: float = 30.0


QUICK = Weather(Conditions(20e6, 0.02), partition_seconds=2)
LONG = Weather(Conditions(2e6, 0.1, loss=0.01), partition_seconds=60, lease_seconds=180)
SLOW = Weather(Conditions(256e3, 0.05))


@pytest.mark.parametrize(
    "weather",
    [
        pytest.param(QUICK, id="20 Mbit 20 ms, 2 s"),
        pytest.param(LONG, id="2 Mbit 100 ms 1%, 60 s", marks=takes_minutes),
    ],
)
def test_transfers_go_on_after_partitions(
    distant_fleet: DistantFleet, calm_digests: list[str], weather: Weather
) -> None:
    """One partition while the weights come down and one while the update goes up: the job
    completes with the weights of an undisturbed one, and neither transfer begins anew."""
    fleet = distant_fleet
    job = begin(fleet, weather)
    half_way("download", lambda: fleet.fetched_bytes(CLIENT))
    fleet.link.part(weather.partition_seconds)
    half_way("upload", fleet.received_bytes)
    fleet.link.part(weather.partition_seconds)
    check(fleet, weather, job, calm_digests)


@pytest.mark.parametrize("weather", [pytest.param(SLOW, id="256 kbit", marks=takes_minutes)])
def test_a_slow_link_is_not_taken_for_a_dead_one(
    distant_fleet: DistantFleet, calm_digests: list[str], weather: Weather
) -> None:
    """A block takes half a minute, and the answer to a ping waits for it: nothing is cut."""
    job = begin(distant_fleet, weather)
    check(distant_fleet, weather, job, calm_digests)
    assert "again in" not in distant_fleet.clients[CLIENT].text


def test_a_client_attends_over_a_satellite(distant_fleet: DistantFleet) -> None:
    """A connection takes two round trips, of 0.6 seconds each."""
    distant_fleet.link.set(Conditions(2e6, 0.3))
    distant_fleet.serve("--insecure")
    distant_fleet.client(CLIENT)
    assert "again in" not in distant_fleet.clients[CLIENT].text


def begin(fleet: DistantFleet, weather: Weather) -> str:
    """Start both programs and a job; its reference."""
    fleet.link.set(weather.link)
    fleet.serve("--insecure", "--lease-seconds", str(weather.lease_seconds))
    fleet.client(CLIENT)
    return fleet.submit(**JOB)


def half_way(what: str, moved_bytes: Callable[[], int]) -> None:
    """Wait until a transfer has moved two of its five blocks."""
    eventually(lambda: moved_bytes() >= 2 * BLOCK_BYTES, f"half of the {what}", PATIENCE_SECONDS)


def check(fleet: DistantFleet, weather: Weather, job: str, digests: list[str]) -> None:
    """Follow the job to its end: one round, one assignment, accepted, and no byte too many."""
    assert [one.state for one in fleet.finish(job)] == ["committed"]
    assert fleet.digests(job) == digests
    (row,) = fleet.control.show_round(job, 1).assignments
    assert (row.client, row.state) == (CLIENT, "accepted"), row.reason
    blobs = (fleet.state(CLIENT) / "cache").iterdir()
    size_bytes = sum(path.stat().st_size for path in blobs)
    down, up = (fleet.link.sent_bytes(host) for host in (fleet.link.hub, fleet.link.leaf))
    compare("download", weather, size_bytes, down, row.fetch_seconds)
    compare("upload", weather, row.bytes_up, up, upload_seconds(row))


def upload_seconds(row: control_pb2.LedgerRow) -> float:
    """From the end of training to the receipt; the row's own figure is of the last stream."""
    whole = (row.ended_at.ToNanoseconds() - row.offered_at.ToNanoseconds()) / 1e9
    return whole - row.fetch_seconds - row.train_seconds


def compare(what: str, weather: Weather, size_bytes: int, sent_bytes: int, seconds: float) -> None:
    """Print what a transfer took beside the ideal; the bytes must not be those of two."""
    ideal = weather.link.ideal_seconds(size_bytes) + weather.partition_seconds
    print(
        f"\n{what}: {sent_bytes:,} bytes on the link for {size_bytes:,} "
        f"({sent_bytes / size_bytes:.2f} times); {seconds:.1f} s, ideal with a partition of "
        f"{weather.partition_seconds:g} s: {ideal:.1f} s"
    )
    assert sent_bytes <= OVERHEAD * size_bytes + BLOCK_BYTES
