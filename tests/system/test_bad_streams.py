"""Streams that are wrong: each ends with a reason, and the other devices are not disturbed."""

import secrets
from typing import Any

import pytest

from headwater.errors import DisplacedError, UsageError
from headwater.v1 import fleet_pb2 as pb
from tests.system.fleet import Fleet

HELLO_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no client id": ({"client_id": ""}, "client_id must be 32 hexadecimal digits"),
    "short client id": ({"client_id": "abc"}, "client_id must be 32 hexadecimal digits"),
    "path as client id": ({"client_id": "../" * 10 + "ab"}, "client_id must be 32 hexadecimal"),
    "upper-case instance id": ({"instance_id": "A" * 32}, "instance_id must be 32 hexadecimal"),
    "no name": ({"name": ""}, "name must not be empty"),
    "terminal codes in the name": ({"name": "a\x1b[2J"}, "name must be printable"),
    "long host name": ({"hostname": "h" * 1000}, "hostname must be printable and at most 100"),
    "oversized tag": ({"tags": {"site": "x" * 10_000}}, "tag site must be printable and at most"),
    "oversized tag name": ({"tags": {"x" * 10_000: "1"}}, "a tag must be printable and at most"),
    "too many tags": ({"tags": {f"t{n}": "" for n in range(1000)}}, "tags has 1000 entries"),
    "too many data sets": (
        {"datasets": [pb.Dataset(name=f"d{n}", example_count=1) for n in range(100)]},
        "datasets has 100 entries; at most 64",
    ),
    "too many encodings": ({"encodings": ["x"] * 100}, "encodings has 100 entries"),
    "oversized encoding": ({"encodings": ["x" * 10_000]}, "an encoding must be printable"),
}


@pytest.mark.parametrize("case", HELLO_FAULTS)
def test_a_malformed_hello_is_refused(shared_fleet: Fleet, case: str) -> None:
    """Bad streams: malformed ids, oversized tags."""
    changed, reason = HELLO_FAULTS[case]
    device = shared_fleet.device("malformed", **changed)
    error = device.open(pb.AttendRequest(hello=device.hello)).end()
    assert isinstance(error, UsageError)
    assert reason in str(error)
    shared_fleet.attending()
    device.close()


@pytest.mark.parametrize(
    "first",
    [
        pb.AttendRequest(),
        pb.AttendRequest(heartbeat=pb.Heartbeat()),
        pb.AttendRequest(progress=pb.Progress(assignment_id=1)),
    ],
)
def test_a_stream_begins_with_hello(shared_fleet: Fleet, first: pb.AttendRequest) -> None:
    """Bad streams: no Hello first."""
    device = shared_fleet.device("rude")
    error = device.open(first).end()
    assert isinstance(error, UsageError)
    assert "a stream begins with Hello" in str(error)
    device.close()


@pytest.mark.parametrize("again", ["hello", "nothing"])
def test_garbage_on_an_open_stream_ends_it(shared_fleet: Fleet, again: str) -> None:
    """Bad streams: Hello twice, empty messages."""
    device = shared_fleet.device("garbled")
    stream = device.attend()
    if again == "hello":
        stream.send(hello=device.hello)
    else:
        stream.send()
    error = stream.end()
    assert isinstance(error, UsageError)
    assert "does not belong here" in str(error)
    shared_fleet.attending()
    device.close()


def test_bytes_that_are_no_message_end_the_stream(shared_fleet: Fleet) -> None:
    """Bad streams: garbage bytes; the coordinator goes on, without a defect in its log."""
    device = shared_fleet.device("noise")
    with pytest.raises(Exception, match=r"deserializ|Internal|INTERNAL|UNKNOWN"):
        device.raw("/headwater.v1.Fleet/Attend", b"\xff" * 100)
    device.attend()
    shared_fleet.attending("noise")
    device.close()
    shared_fleet.attending()


def test_the_newest_stream_of_an_identity_wins(shared_fleet: Fleet) -> None:
    """Two streams of one identity: the older is told and ends; when it comes back while the newer
    attends, it is refused and `clients list` shows that two devices share the identity."""
    first = shared_fleet.device("twin")
    second = shared_fleet.device("twin", instance_id=secrets.token_hex(16), hostname="other-host")
    bystander = shared_fleet.device("bystander")
    bystander_stream, first_stream = bystander.attend(), first.attend()
    second_stream = second.attend()
    assert "from host other-host" in first_stream.next("displaced").reason
    assert first_stream.end() is None
    error = first.open(pb.AttendRequest(hello=first.hello)).end()
    assert isinstance(error, DisplacedError)
    assert "two devices share the identity of client twin: hosts other-host and test-host" in str(
        error
    )
    shared_fleet.attending("twin", "bystander")
    (shown,) = [one for one in shared_fleet.json("clients", "list") if one["name"] == "twin"]
    assert shown["displaced_count"] == 1
    assert "another device was seen under its identity" in shared_fleet.cli("clients", "list").out
    job = shared_fleet.submit(count=1, quorum=2, evaluate={"on": ["coordinator"]})
    for device, stream in ((second, second_stream), (bystander, bystander_stream)):
        device.deliver(stream.next("assignment").assignment_id)
    shared_fleet.finish(job)
    for device in (first, second, bystander):
        device.close()
    shared_fleet.attending()


def test_a_client_that_never_reads_holds_up_nobody(shared_fleet: Fleet) -> None:
    """Bad streams: a client that never reads costs one lease, then it is left out."""
    reader, deaf = shared_fleet.device("reader"), shared_fleet.device("deaf")
    stream = reader.attend()
    deaf.open(pb.AttendRequest(hello=deaf.hello), reads=False)
    shared_fleet.attending("reader", "deaf")
    job = shared_fleet.submit(count=3, cohort=2, quorum=1, evaluate={"on": ["coordinator"]})
    for _ in range(3):
        reader.deliver(stream.next("assignment").assignment_id)
    rounds = shared_fleet.finish(job)
    assert [one.accepted for one in rounds] == [1, 1, 1]
    row = shared_fleet.ledger(job)["deaf"]
    assert (row.state, row.reason) == ("expired", "no sign of life for 4 s")
    assert [one.offered for one in rounds] == [2, 1, 1]
    assert any("silent" in reason for reason in rounds[1].not_selected)
    reader.close()
    deaf.close()
    shared_fleet.attending()


def test_declining_and_failing_are_recorded_with_their_reasons(shared_fleet: Fleet) -> None:
    """Words of a device that end its assignment: the ledger has them, cut to a sane length."""
    devices = {name: shared_fleet.device(name) for name in ("able", "unwilling", "unlucky")}
    streams = {name: device.attend() for name, device in devices.items()}
    job = shared_fleet.submit(count=1, cohort=3, quorum=1, evaluate={"on": ["coordinator"]})
    tasks = {name: one.next("assignment").assignment_id for name, one in streams.items()}
    streams["unwilling"].send(
        decline=pb.Decline(assignment_id=tasks["unwilling"], reason="on battery")
    )
    streams["unlucky"].send(
        failure=pb.Failure(assignment_id=tasks["unlucky"], reason="x" * 100_000)
    )
    devices["able"].deliver(tasks["able"])
    shared_fleet.finish(job)
    rows = shared_fleet.ledger(job)
    assert (rows["unwilling"].state, rows["unwilling"].reason) == ("declined", "on battery")
    assert rows["unlucky"].state == "failed"
    assert len(rows["unlucky"].reason) == 2000
    assert rows["able"].fold_weight == 1.0
    for device in devices.values():
        device.close()
    shared_fleet.attending()
