"""Updates that are wrong, from a device driven by hand: each is refused with its reason in the
ledger, and the round goes on with the other device's."""

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headwater.errors import ConflictError, HeadwaterError, NotFoundError, UpdateError, UsageError
from headwater.updates import FRAME_HEADER
from headwater.v1 import fleet_pb2 as pb
from tests.system.device import Device, Update, frames_of
from tests.system.fleet import Fleet
from tests.system.processes import run


class Pair:
    """A job of one round for two devices: what `bad` does must not stop `good`."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.good, self.bad = fleet.device("good"), fleet.device("bad")
        self.good_stream, self.bad_stream = self.good.attend(), self.bad.attend()
        fleet.attending("good", "bad")
        self.job = fleet.submit(count=1, quorum=1, evaluate={"on": ["coordinator"]})
        self.good_id = self.good_stream.next("assignment").assignment_id
        self.bad_id = self.bad_stream.next("assignment").assignment_id

    def commit(self, bad_state: str, reason: str = "") -> None:
        """The good device delivers, the round commits, and the ledger tells of the bad one."""
        receipt = self.good.deliver(self.good_id)
        assert receipt.state == "accepted"
        (one,) = self.fleet.finish(self.job)
        assert (one.state, one.version) == ("committed", 1)
        rows = self.fleet.ledger(self.job)
        assert (rows["bad"].state, rows["good"].state) == (bad_state, "accepted")
        assert reason in rows["bad"].reason
        assert rows["bad"].fold_weight == (0.5 if bad_state == "accepted" else 0.0)

    def close(self) -> None:
        if self.fleet.job(self.job).state != "completed":
            self.fleet.control.change(self.job, "cancel")
        self.good.close()
        self.bad.close()
        self.fleet.attending()


@pytest.fixture
def pair(shared_fleet: Fleet) -> Iterator[Pair]:
    # Names are free again for the next test, as the devices of the last are gone.
    pair = Pair(shared_fleet)
    yield pair
    pair.close()


REFUSED_OFFERS: dict[str, tuple[dict[str, Any], str]] = {
    "no examples": ({"examples": 0}, "it claims 0 examples"),
    "negative examples": ({"examples": -3}, "it claims -3 examples"),
    "absurd examples": ({"examples": 2**62}, f"it claims {2**62} examples"),
    "NaN metric": ({"metrics_after": {"loss": math.nan}}, "its metric 'loss' is nan"),
    "infinite metric": ({"metrics_before": {"loss": math.inf}}, "its metric 'loss' is inf"),
    "metric that overflows a mean": ({"metrics_after": {"loss": 1e308}}, "its metric 'loss' is 1e"),
    "too many metrics": (
        {"metrics_after": {f"m{n}": 0.0 for n in range(100)}},
        "it has 100 metrics; at most 64 are kept",
    ),
    "long metric name": ({"metrics_after": {"x" * 5000: 0.0}}, "name is too long"),
    "NaN seconds": ({"train_seconds": math.nan}, "train_seconds"),
    "negative seconds": ({"fetch_seconds": -1.0}, "fetch_seconds"),
    "unknown encoding": ({"encoding": "magic"}, "it is encoded as 'magic'; fp32 was asked for"),
    "empty": ({"size_bytes": 0}, "it has 0 bytes"),
    "too large": (
        {"size_bytes": 2**40},
        f"it has {2**40} bytes; an update of this plan has at most",
    ),
    "digest that is a path": ({"digest": "../../etc/passwd"}, "not 64 hexadecimal digits"),
}


@pytest.mark.parametrize("case", REFUSED_OFFERS)
def test_a_wrong_offer_is_rejected_and_the_round_goes_on(pair: Pair, case: str) -> None:
    """Bad updates: absurd counts, NaN metrics, unknown encodings, impossible sizes."""
    changed, reason = REFUSED_OFFERS[case]
    answer = pair.bad.offer(pair.bad_id, pair.bad.update(), **changed)
    assert answer.verdict == pb.OFFER_VERDICT_NOT_NEEDED
    assert reason in answer.reason
    pair.commit("rejected", reason)


def corrupt(frame: pb.Frame) -> pb.Frame:
    return pb.Frame(checksum=frame.checksum ^ 1, payload=frame.payload)


Sending = Callable[[Device], tuple[Update, list[pb.Frame]]]


def _sent(update: Update, frames: list[pb.Frame] | None = None) -> tuple[Update, list[pb.Frame]]:
    return update, frames_of(update) if frames is None else frames


def _header_of(frame: pb.Frame) -> tuple[int, int]:
    return len(frame.payload), frame.checksum


def _longer(update: Update) -> Update:
    return Update((update.payloads[0] + bytes(4), *update.payloads[1:]))


REFUSED_UPLOADS: dict[str, tuple[Sending, str]] = {
    "NaN": (lambda d: _sent(d.update(values={3: math.nan})), "value 3 of the update is not finite"),
    "infinity": (lambda d: _sent(d.update(values={0: math.inf})), "value 0 of the update is not"),
    "NaN in a buffer": (
        lambda d: _sent(d.update(values={d.layout.trainable_count: math.nan})),
        "is not finite",
    ),
    "too many blocks": (
        lambda d: _sent(d.update(), [*frames_of(d.update()), frames_of(d.update())[-1]]),
        "more than its 3 blocks",
    ),
    "a block with a value too many": (
        lambda d: _sent(d.update(), frames_of(_longer(d.update()))),
        "bytes, which is too many",
    ),
    "a block with a value too few": (
        lambda d: _sent(d.update(), [pb.Frame(checksum=0, payload=b"")]),
        "a block has 0 bytes",
    ),
    "wrong checksum": (
        lambda d: _sent(d.update(), [corrupt(one) for one in frames_of(d.update())]),
        "block 0 does not match its checksum",
    ),
    "wrong digest": (
        lambda d: _sent(d.update(0.02), frames_of(d.update(0.01))),
        "was announced",
    ),
}


@pytest.mark.parametrize("case", REFUSED_UPLOADS)
def test_a_damaged_upload_is_rejected_and_the_round_goes_on(pair: Pair, case: str) -> None:
    """Bad updates: values that are not finite, wrong sizes, digests and checksums."""
    make, reason = REFUSED_UPLOADS[case]
    update, frames = make(pair.bad)
    assert pair.bad.offer(pair.bad_id, update).verdict == pb.OFFER_VERDICT_SEND
    with pytest.raises(UpdateError, match=reason):
        pair.bad.submit(pair.bad_id, update, frames)
    pair.commit("rejected", reason)
    kept = pair.fleet.data / "quarantine" / f"{pair.bad_id}.update"
    assert kept.read_bytes().startswith(FRAME_HEADER.pack(*_header_of(frames[0])))
    note = json.loads(kept.with_suffix(".json").read_text())
    assert (note["client"], note["assignment_id"]) == ("bad", pair.bad_id)
    assert reason in note["reason"]


def test_a_payload_beyond_any_block_is_refused_by_the_transport(pair: Pair) -> None:
    """Bad updates: an oversized payload costs the coordinator no memory; the device may retry."""
    update = pair.bad.update()
    pair.bad.offer(pair.bad_id, update)
    with pytest.raises(HeadwaterError, match="larger than max"):
        pair.bad.submit(pair.bad_id, update, [pb.Frame(checksum=0, payload=bytes(9 * 2**20))])
    assert pair.bad.deliver(pair.bad_id, update).state == "accepted"
    pair.commit("accepted")


def test_an_upload_that_breaks_off_goes_on_where_it_was(pair: Pair) -> None:
    """Bad updates: too few blocks are no end; what was verified is not sent again."""
    update = pair.bad.update()
    pair.bad.offer(pair.bad_id, update)
    with pytest.raises(ConflictError, match="broke off at byte"):
        pair.bad.submit(pair.bad_id, update, frames_of(update)[:2])
    answer = pair.bad.offer(pair.bad_id, update)
    held = len(update.payloads[0]) + len(update.payloads[1]) + 2 * 8
    assert (answer.verdict, answer.from_byte) == (pb.OFFER_VERDICT_SEND, held)
    receipt = pair.bad.submit(pair.bad_id, update, frames_of(update)[2:], from_byte=held)
    assert receipt.state == "accepted"
    pair.commit("accepted")


def test_anothers_assignment_is_refused(pair: Pair) -> None:
    """Bad updates: another's assignment id, in offers, uploads and words on the stream."""
    update = pair.bad.update()
    with pytest.raises(NotFoundError, match=f"assignment {pair.good_id} is not this client's"):
        pair.bad.offer(pair.good_id, update)
    pair.good.offer(pair.good_id, update)
    with pytest.raises(NotFoundError, match="is not this client's"):
        pair.bad.submit(pair.good_id, update)
    pair.bad_stream.send(failure=pb.Failure(assignment_id=pair.good_id, reason="sabotage"))
    error = pair.bad_stream.end()
    assert isinstance(error, NotFoundError)
    assert "is not this client's" in str(error)
    pair.bad.attend(held=pair.bad_id)
    pair.bad.deliver(pair.bad_id, pair.bad.update(0.02))
    pair.commit("accepted")


def test_unknown_assignments_are_refused(pair: Pair) -> None:
    """Bad updates: an assignment that does not exist; one that was never offered."""
    update = pair.bad.update()
    for unknown in (0, -1, 10**9, 2**62):
        with pytest.raises(NotFoundError, match=f"no assignment of id {unknown}"):
            pair.bad.offer(unknown, update)
        with pytest.raises(NotFoundError, match=f"no assignment of id {unknown}"):
            pair.bad.submit(unknown, update)
    with pytest.raises(ConflictError, match="first"):
        pair.bad.submit(pair.bad_id, update)
    pair.bad_stream.send(decline=pb.Decline(assignment_id=pair.bad_id, reason="no\x1b[31m time"))
    pair.fleet.wait_row(pair.job, "bad", "declined")
    pair.commit("declined", "no")


def test_the_same_update_again_brings_the_same_receipt(pair: Pair) -> None:
    """An update submitted twice: while the round is open, and after it; another is refused."""
    update = pair.bad.update(0.02)
    receipt = pair.bad.deliver(pair.bad_id, update)
    for _ in range(2):
        again = pair.bad.offer(pair.bad_id, update)
        assert (again.verdict, again.receipt) == (pb.OFFER_VERDICT_HAVE_IT, receipt)
    other = pair.bad.offer(pair.bad_id, pair.bad.update(0.03))
    assert other.verdict == pb.OFFER_VERDICT_NOT_NEEDED
    pair.commit("accepted")
    again = pair.bad.offer(pair.bad_id, update)
    assert (again.verdict, again.receipt) == (pb.OFFER_VERDICT_HAVE_IT, receipt)
    fate = pair.bad_stream.next("fate")
    assert (fate.assignment_id, fate.state, fate.folded) == (pair.bad_id, "accepted", True)


def test_an_update_after_its_round_is_recorded_as_late(shared_fleet: Fleet) -> None:
    """An update after the round closed: late, recorded; the device is told to drop it."""
    good, slow = shared_fleet.device("good"), shared_fleet.device("slow")
    first, second = good.attend(), slow.attend()
    job = shared_fleet.submit(
        count=1, quorum=1, deadline_seconds=1.0, evaluate={"on": ["coordinator"]}
    )
    good.deliver(first.next("assignment").assignment_id)
    late = second.next("assignment").assignment_id
    shared_fleet.finish(job)
    assert second.next("cancel").assignment_id == late
    assert shared_fleet.ledger(job)["slow"].state == "expired"
    answer = slow.offer(late, slow.update())
    assert answer.verdict == pb.OFFER_VERDICT_NOT_NEEDED
    assert "late" in answer.reason
    row = shared_fleet.ledger(job)["slow"]
    assert (row.state, row.staleness) == ("late", 1)
    assert row.reason == "its update came after the round had ended, 1 version later"
    assert shared_fleet.ledger(job)["good"].fold_weight == 1.0
    good.close()
    slow.close()
    shared_fleet.attending()


def test_a_late_update_is_folded_by_the_next_round_where_the_job_says_so(
    shared_fleet: Fleet,
) -> None:
    """The straggler is left at work; what it brings after its round counts in the next one."""
    good, slow = shared_fleet.device("good"), shared_fleet.device("slow")
    first, second = good.attend(), slow.attend()
    job = shared_fleet.submit(
        count=2, quorum=1, deadline_seconds=3.0, late="fold", evaluate={"on": ["coordinator"]}
    )
    good.deliver(first.next("assignment").assignment_id)
    late = second.next("assignment").assignment_id
    work = first.next("assignment").assignment_id  # round 2 opened without the straggler
    receipt = slow.deliver(late)
    assert (receipt.state, receipt.reason) == ("late", "it is late, and a later round folds it")
    good.deliver(work)
    shared_fleet.finish(job)
    row = shared_fleet.ledger(job)["slow"]
    assert (row.state, row.staleness, row.folded_round_number) == ("late", 1, 2)
    assert row.fold_weight == pytest.approx(1 / (1 + 2**0.5))
    shown = run("rounds", "show", job, "2", "--coordinator", shared_fleet.address).out
    assert re.search(r"slow +late +0\.414 .*1 version later; round 2 took it", shown), shown
    good.close()
    slow.close()
    shared_fleet.attending()


def variance_place(device: Device) -> int:
    spec_places = [place for spec, place in device.layout.float_slices() if spec.positive]
    return int(spec_places[0].start)


def test_a_poisoned_update_is_quarantined_and_the_round_commits(pair: Pair) -> None:
    """Values that are finite and make a variance negative: the fold goes on without them."""
    update = pair.bad.update(values={variance_place(pair.bad): -100.0})
    receipt = pair.bad.deliver(pair.bad_id, update, examples=1000)
    assert receipt.state == "accepted"
    pair.good.deliver(pair.good_id)
    (one,) = pair.fleet.finish(pair.job)
    rows = pair.fleet.ledger(pair.job)
    assert (one.state, one.accepted, one.examples) == ("committed", 1, 10)
    assert (rows["good"].state, rows["good"].fold_weight) == ("accepted", 1.0)
    assert (rows["bad"].state, rows["bad"].fold_weight) == ("rejected", 0.0)
    assert "its update is unsound: the new variance '1.running_var' is not" in rows["bad"].reason
    fate = pair.bad_stream.next("fate")
    assert (fate.state, fate.folded) == ("rejected", False)


def test_a_round_whose_accepted_updates_are_all_unsound_is_abandoned(shared_fleet: Fleet) -> None:
    """Fewer sound updates than the quorum: no version, and the ledger has the reasons."""
    bad = shared_fleet.device("bad")
    stream = bad.attend()
    job = shared_fleet.submit(count=1, cohort=1, quorum=1)
    bad.deliver(
        stream.next("assignment").assignment_id,
        bad.update(values={variance_place(bad): -100.0}),
    )
    assert shared_fleet.wait_row(job, "bad", "rejected").fold_weight == 0.0
    (one, *_) = shared_fleet.rounds(job)
    assert (one.state, one.version) == ("abandoned", -1)
    assert "0 updates are sound, fewer than the quorum of 1" in one.reason
    shared_fleet.control.change(job, "cancel")
    bad.close()
    shared_fleet.attending()


def test_huge_finite_values_make_no_version(pair: Pair) -> None:
    """A model that overflows when it is measured: its round is abandoned with the reason, the
    version before stays, and the job pauses."""
    pair.bad.deliver(pair.bad_id, pair.bad.update(3e38), examples=1000)
    pair.good.deliver(pair.good_id)
    pair.fleet.finish(pair.job, "paused")
    job = pair.fleet.job(pair.job)
    assert "the held-out loss of its model is nan; version 0 stays" in job.state_reason
    assert len(pair.fleet.digests(pair.job)) == 1
    for listing in (("rounds", "show", pair.job, "1"), ("models", "list", pair.job)):
        text = pair.fleet.cli(*listing, "--json").out
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_uploads_that_do_not_begin_with_a_header(pair: Pair) -> None:
    """Garbage as an upload: refused, whatever comes first; the rightful upload goes on."""
    update = pair.bad.update()
    pair.bad.offer(pair.bad_id, update)
    frames = [pb.SubmitRequest(frame=one) for one in frames_of(update)]
    for messages in ([], frames, [pb.SubmitRequest()]):
        with pytest.raises(UsageError, match="an upload begins with its header"):
            pair.bad.send(messages)
    pair.bad.submit(pair.bad_id, update)
    pair.commit("accepted")


def test_blobs_by_wrong_names(shared_fleet: Fleet) -> None:
    """Fetch: paths, unknown digests and wild offsets are refused."""
    device = shared_fleet.device("fetching")
    for digest in ("", "../headwater.db", "A" * 64, "0" * 63):
        with pytest.raises(UsageError, match="is not a digest"):
            device.fetch(digest)
    with pytest.raises(NotFoundError, match="there is no blob"):
        device.fetch("0" * 64)
    shared_fleet.submit()
    digest = shared_fleet.plan.digest
    whole = device.fetch(digest)
    assert device.fetch(digest, 10) == whole[10:]
    assert device.fetch(digest, len(whole)) == b""
    for offset in (-1, len(whole) + 1, 2**62):
        with pytest.raises(UsageError, match="lies outside"):
            device.fetch(digest, offset)
