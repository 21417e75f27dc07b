"""The coordinator ends in the middle of a round, and goes on where it was."""

import signal
from pathlib import Path

import pytest

from headwater.v1 import fleet_pb2 as pb
from storage import history
from storage.database import open_database
from tests.system.device import Device, Stream
from tests.system.fleet import Fleet, FleetFactory
from tests.system.processes import eventually


def updates_of(devices: list[Device]) -> dict[str, float]:
    return {device.name: 0.01 * (n + 1) for n, device in enumerate(devices)}


def devices_of(fleet: Fleet) -> tuple[list[Device], list[Stream]]:
    devices = [fleet.device(name) for name in ("ann", "ben")]
    return devices, [device.attend() for device in devices]


def undisturbed(fleet: Fleet) -> list[str]:
    """The digests of the job when nothing happens to the coordinator."""
    fleet.serve("--lease-seconds", "20")
    devices, streams = devices_of(fleet)
    job = fleet.submit(count=2, evaluate={"on": ["coordinator"]})
    for _ in range(2):
        for device, stream, change in zip(
            devices, streams, updates_of(devices).values(), strict=True
        ):
            device.deliver(stream.next("assignment").assignment_id, device.update(change))
    fleet.finish(job)
    return fleet.digests(job)


def returned(device: Device, held: int) -> Stream:
    """Attend again, as a client does that waits for its coordinator."""

    def look() -> Stream | None:
        try:
            return device.attend(held=held)
        except Exception:
            return None

    stream = eventually(look, f"return of {device.name}")
    assert stream is not None
    return stream


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_a_round_goes_on_after_a_restart(new_fleet: FleetFactory, how: str) -> None:
    """Restart: after SIGTERM (exit code 0) and kill -9 in the middle of a round, the same round
    goes on; the update that was accepted is not asked for again; the final weights are those of a
    run that nothing disturbed."""
    fleet = new_fleet()
    fleet.serve("--lease-seconds", "20")
    (ann, ben), (ann_stream, ben_stream) = devices_of(fleet)
    job = fleet.submit(count=2, evaluate={"on": ["coordinator"]})
    ann_id = ann_stream.next("assignment").assignment_id
    ben_id = ben_stream.next("assignment").assignment_id
    receipt = ann.deliver(ann_id, ann.update(0.01))
    half = ben.update(0.02)
    ben.offer(ben_id, half)
    with pytest.raises(Exception, match="broke off"):
        ben.submit(ben_id, half, ben.frames(half)[:1])
    if how == "SIGTERM":
        assert fleet.serving.stop() == 0
        assert "stopped" in fleet.serving.text
    else:
        fleet.serving.kill()
    fleet.serve()
    assert "1 updates held, 1 awaited" in fleet.serving.text
    ann_stream, ben_stream = returned(ann, 0), returned(ben, ben_id)
    again = ann.offer(ann_id, ann.update(0.01))
    assert (again.verdict, again.receipt) == (pb.OFFER_VERDICT_HAVE_IT, receipt)
    answer = ben.offer(ben_id, half)
    assert answer.verdict == pb.OFFER_VERDICT_SEND
    if how == "SIGTERM":
        assert answer.from_byte == 8 + len(half.payloads[0])
    sent = 1 if answer.from_byte else 0
    ben.submit(ben_id, half, ben.frames(half)[sent:], from_byte=answer.from_byte)
    # The next assignment of ann is that of round 2: nothing of round 1 came twice.
    second = ann_stream.next("assignment")
    assert (second.assignment_id, second.round_number) == (max(ann_id, ben_id) + 1, 2)
    ann.deliver(second.assignment_id, ann.update(0.01))
    ben.deliver(ben_stream.next("assignment").assignment_id, ben.update(0.02))
    fleet.finish(job)
    with open_database(fleet.database) as database:
        events = database.read_now(lambda session: history.events(session, job))
    opened = [one.round_number for one in events if one.kind == "round.opened"]
    assert sorted(opened) == [1, 2]
    digests = fleet.digests(job)
    fleet.serving.stop()
    assert digests == undisturbed(new_fleet())


def test_clients_come_back_by_themselves(new_fleet: FleetFactory, tmp_path: Path) -> None:
    """Restart: real clients, one in training when the coordinator is killed; both reconnect, the
    job completes, and the weights are those of an undisturbed run."""
    fleet, gate = new_fleet(), tmp_path / "gate"
    fleet.serve("--lease-seconds", "20")
    gate.touch()
    fleet.client("fast")
    fleet.gated_client("gated", gate, "train")
    job = fleet.submit(count=2)
    accepted = fleet.wait_row(job, "fast", "accepted")
    fleet.serving.kill()
    gate.unlink()  # it finishes while no coordinator is there
    fleet.serve()
    fleet.finish(job)
    row = fleet.ledger(job)["fast"]
    assert (row.update_digest, row.ended_at) == (accepted.update_digest, accepted.ended_at)
    assert row.assignment_id == accepted.assignment_id
    assert [len(fleet.ledger(job, n)) for n in (1, 2)] == [2, 2]
    fast = fleet.clients["fast"].text
    assert fast.count("attending") == 2
    digests = fleet.digests(job)
    assert fleet.serving.stop() == 0
    calm = new_fleet()
    calm.serve("--lease-seconds", "20")
    calm.client("fast")
    calm.client("gated")
    again = calm.submit(count=2)
    calm.finish(again)
    assert calm.digests(again) == digests


def test_a_coordinator_stops_within_seconds_while_it_is_followed(fleet: Fleet) -> None:
    """SIGTERM and Ctrl-C: exit code 0 within seconds, with clients attending and a job followed."""
    stream = fleet.device("ann").attend()
    job = fleet.submit()
    following = fleet.control.follow(job)
    next(following)
    assert fleet.serving.stop(signal.SIGINT, seconds=8) == 0
    stream.end()
    with pytest.raises(Exception, match="no coordinator answers"):
        list(following)
    fleet.serve()
    assert fleet.job(job).state == "queued"
