"""What a device says of its assignment, in whatever order its messages come."""

from headwater.v1 import fleet_pb2 as pb
from tests.system.fleet import Fleet


def test_a_device_that_reported_progress_may_still_decline(fleet: Fleet) -> None:
    """Fetching can take long enough for a progress message before the fetched plan is refused."""
    first, second = fleet.device("a"), fleet.device("b")
    streams = [first.attend(), second.attend()]
    reference = fleet.submit(cohort=2, quorum=1)
    assignment = streams[0].next("assignment").assignment_id
    streams[0].send(progress=pb.Progress(assignment_id=assignment, phase=pb.PHASE_FETCHING))
    fleet.wait_row(reference, "a", "training")
    streams[0].send(decline=pb.Decline(assignment_id=assignment, reason="it does not\0fit"))
    assert (
        fleet.wait_row(reference, "a", "declined").reason
        == "it does not\N{REPLACEMENT CHARACTER}fit"
    )


def test_a_device_that_returns_is_told_how_its_assignment_ended(fleet: Fleet) -> None:
    """It stops its work at once, and does not find out when it offers an update."""
    first, second = fleet.device("a"), fleet.device("b")
    streams = [first.attend(), second.attend()]
    fleet.attending("a", "b")
    reference = fleet.submit(count=1, cohort=2, quorum=1, evaluate={"on": []})
    gone, present = (stream.next("assignment").assignment_id for stream in streams)
    streams[0].close()
    fleet.attending("b")
    second.deliver(present)
    fleet.finish(reference)
    cancel = first.attend(held=gone).next("cancel")
    assert cancel.assignment_id == gone and "expired" in cancel.reason
    fate = second.attend(held=present).next("fate")
    assert (fate.assignment_id, fate.state, fate.folded) == (present, "accepted", True)
    unknown = second.attend(held=10**9).next("cancel")
    assert unknown.assignment_id == 10**9 and "no such assignment" in unknown.reason
    assert second.attend(held=gone).next("cancel").assignment_id == gone


def test_what_is_declined_while_it_is_uploaded_has_failed(fleet: Fleet) -> None:
    """The round goes on at once, and does not wait for the lease."""
    device = fleet.device("a")
    stream = device.attend()
    reference = fleet.submit(cohort=1, quorum=1)
    assignment = stream.next("assignment").assignment_id
    stream.send(progress=pb.Progress(assignment_id=assignment, phase=pb.PHASE_UPLOADING))
    fleet.wait_row(reference, "a", "uploading")
    stream.send(decline=pb.Decline(assignment_id=assignment, reason="no"))
    assert fleet.wait_row(reference, "a", "failed").reason == "no"
