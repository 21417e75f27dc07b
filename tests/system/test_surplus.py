"""Over-selection: the updates that a complete cohort no longer needs are no one's failure."""

import pytest

from headwater.v1 import fleet_pb2 as pb
from tests.system.device import Device, Stream
from tests.system.fleet import Fleet


@pytest.mark.parametrize("at", ["before its offer", "between its offer and its upload"])
def test_a_surplus_update_is_released_and_its_client_is_asked_again(fleet: Fleet, at: str) -> None:
    """A client that comes second is turned away without blame, and takes part in the next round.

    It was reported as failed once, and kept out of the job for a minute: with real clients, all
    rounds after the first few had the same cohort.
    """
    first, second = fleet.device("first"), fleet.device("second")
    streams = {one.name: one.attend() for one in (first, second)}
    fleet.attending("first", "second")
    job = fleet.submit(count=2, cohort=1, quorum=1, over_selection=2.0, evaluate={"on": []})
    offered = {name: stream.next("assignment").assignment_id for name, stream in streams.items()}
    update = second.update()
    if at == "between its offer and its upload":
        answer = second.offer(offered["second"], update)
        assert answer.verdict == pb.OFFER_VERDICT_SEND
    first.deliver(offered["first"])
    fleet.wait_row(job, "second", "released")
    if at == "before its offer":
        answer = second.offer(offered["second"], update)
        assert answer.verdict == pb.OFFER_VERDICT_NOT_NEEDED
    else:
        receipt = second.submit(offered["second"], update)
        assert receipt.state == "released"
        assert "its round has what it needs" in receipt.reason
    deliver_next(streams["second"], second)
    assert len(fleet.finish(job)) == 2
    rows = fleet.ledger(job, 2)
    assert (rows["second"].state, rows["first"].state) == ("accepted", "released")


def deliver_next(stream: Stream, device: Device) -> None:
    """Do the next assignment, which must come."""
    assignment = stream.next("assignment")
    assert assignment.round_number == 2
    device.deliver(assignment.assignment_id)
