"""What an encoding left out is brought by the next update, or not: by the fate of the last one.

The update of a step adds six to each of four weights, and `topk:0.25` sends one of them. So the
next update sends twelve if the last one was folded, and six if it was not.
"""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from edge_client.residuals import Residuals
from headwater.encodings.names import encoding_named
from headwater.layout import Layout, Role, TensorSpec
from headwater.updates import StoredUpdate, blocks_of
from headwater.v1 import fleet_pb2 as pb
from tests.client.fake_fleet import FakeFleet, sha256
from tests.client.fakes import Device, TinyJob

ENCODING = "topk:0.25"


def given(job: TinyJob, number: int, /, **changes: object) -> pb.Assignment:
    return job.assignment(number, **{"encoding": ENCODING, "error_feedback": True, **changes})


def sent(job: TinyJob, data: bytes, folder: Path) -> list[float]:
    path = folder / sha256(data)
    path.write_bytes(data)
    update = StoredUpdate(path, job.layout, encoding_named(ENCODING))
    return sorted(update.change(0).tolist())


async def first_folded(fleet: FakeFleet) -> TinyJob:
    """A job of which one update was made and folded."""
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    fleet.push(assignment=given(job, 1))
    await fleet.next("update")
    fleet.push(fate=pb.Fate(assignment_id=1, state="accepted", folded=True))
    return job


FATES = {
    "folded": ({"state": "accepted", "folded": True}, 12.0),
    "accepted into a round that was abandoned": ({"state": "accepted", "folded": False}, 6.0),
    "rejected by the fold": ({"state": "rejected", "folded": False, "reason": "unsound"}, 6.0),
    "late and noted": ({"state": "late", "folded": False}, 6.0),
}


@pytest.mark.parametrize(("fate", "next_change"), FATES.values(), ids=FATES)
async def test_the_fate_of_an_update_decides_what_the_next_one_brings(
    fleet: FakeFleet, device: Device, tmp_path: Path, fate: dict, next_change: float
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    fleet.push(assignment=given(job, 1))
    offer = await fleet.next("offer")
    assert offer.summary.encoding_error == pytest.approx(np.sqrt(3 / 4))
    assert (offer.summary.residual_norm, offer.summary.residual_age_rounds) == (0, 0)
    assert sent(job, await fleet.next("update"), tmp_path) == [0, 0, 0, 6]
    fleet.push(fate=pb.Fate(assignment_id=1, **fate))
    fleet.push(assignment=given(job, 3))
    offer = await fleet.next("offer")
    assert sent(job, await fleet.next("update"), tmp_path) == [0, 0, 0, next_change]
    folded = next_change == 12.0
    assert offer.summary.residual_norm == pytest.approx(np.sqrt(3 * 36) * folded)
    assert offer.summary.residual_age_rounds == 2 * folded


async def test_a_late_update_that_is_held_counts_as_folded_from_its_receipt_on(
    fleet: FakeFleet, device: Device, tmp_path: Path
) -> None:
    job = TinyJob(fleet)

    async def late(header: pb.SubmitHeader, requests: object) -> pb.SubmitResponse:
        async for _ in requests:
            pass
        fleet.submit_hook = None
        receipt = pb.Receipt(assignment_id=1, digest=header.digest, state="late")
        return pb.SubmitResponse(receipt=receipt)

    fleet.submit_hook = late
    await fleet.next("welcomed")
    fleet.push(assignment=given(job, 1))
    await fleet.next("submit")
    fleet.push(assignment=given(job, 2))
    assert sent(job, await fleet.next("update"), tmp_path) == [0, 0, 0, 12]


@pytest.mark.parametrize(("folded", "next_change"), [(True, 12.0), (False, 6.0)])
async def test_a_fate_is_asked_for_after_a_restart(
    fleet: FakeFleet, tmp_path: Path, folded: bool, next_change: float
) -> None:
    """The client died after its receipt, and before the round ended."""
    job = TinyJob(fleet)
    async with Device(fleet, tmp_path / "state"):
        await fleet.next("welcomed")
        fleet.push(assignment=given(job, 1))
        await fleet.next("update")
        while (tmp_path / "state" / "updates" / "held.json").exists():
            await asyncio.sleep(0.01)
    async with Device(fleet, tmp_path / "state"):
        hello = await fleet.next("hello")
        assert (hello.held_assignment_id, list(hello.awaited_assignment_ids)) == (0, [1])
        await fleet.next("welcomed")
        fleet.push(fate=pb.Fate(assignment_id=1, state="accepted", folded=folded))
        fleet.push(assignment=given(job, 2))
        assert sent(job, await fleet.next("update"), tmp_path) == [0, 0, 0, next_change]


async def test_an_update_that_was_dropped_leaves_what_was_before(
    fleet: FakeFleet, device: Device, tmp_path: Path
) -> None:
    """Cancelled while it is offered, and another assignment of the job comes."""
    job = await first_folded(fleet)
    fleet.offer_answers = [
        pb.OfferResponse(verdict=pb.OFFER_VERDICT_NOT_NEEDED, reason="its round is over")
    ]
    fleet.push(assignment=given(job, 2))
    offer = await fleet.next("offer")
    while offer.assignment_id != 2:
        offer = await fleet.next("offer")
    fleet.push(assignment=given(job, 3))
    assert sent(job, await fleet.next("update"), tmp_path) == [0, 0, 0, 12]


async def test_jobs_and_encodings_without_feedback_share_nothing(
    fleet: FakeFleet, device: Device, tmp_path: Path
) -> None:
    job = await first_folded(fleet)
    fleet.push(assignment=given(job, 2, job="another"))
    assert sent(job, await fleet.next("update"), tmp_path) == [0, 0, 0, 6]
    fleet.push(assignment=job.assignment(3, encoding=ENCODING))
    assert sent(job, await fleet.next("update"), tmp_path) == [0, 0, 0, 6]


LAYOUT = Layout((TensorSpec("w", (4,), "float32", Role.TRAINABLE),))


def propose(residuals: Residuals, number: int, values: list[float], job: str = "j") -> None:
    (block,) = blocks_of(LAYOUT)
    with residuals.proposal(
        job, "p", assignment_id=number, round_number=number, count=4
    ) as proposal:
        proposal.keep(block, np.array(values, np.float32))


def brought(residuals: Residuals, job: str = "j", plan: str = "p", count: int = 4):
    found = residuals.load(job, plan, round_number=100, count=count)
    return None if found is None else (found.round_number, found.values.tolist())


def test_residuals_belong_to_one_job_plan_and_layout(tmp_path: Path) -> None:
    residuals = Residuals(tmp_path, "here:1")
    propose(residuals, 1, [1, 2, 3, 4])
    assert brought(residuals) is None and residuals.awaited() == [1]
    residuals.settle(1, folded=True)
    assert brought(Residuals(tmp_path, "here:1")) == (1, [1, 2, 3, 4])
    assert brought(residuals, plan="q") is None
    assert brought(residuals, job="k") is None
    residuals.settle(1, folded=False)  # the word came twice
    assert brought(residuals) == (1, [1, 2, 3, 4])
    assert brought(residuals, count=5) is None, "of another layout: dropped"
    assert brought(residuals) is None


def test_the_word_of_one_coordinator_decides_nothing_of_another(tmp_path: Path) -> None:
    """Both number their assignments from one."""
    here, there = Residuals(tmp_path, "here:1"), Residuals(tmp_path, "there:1")
    propose(here, 1, [1, 2, 3, 4])
    assert there.awaited() == []
    there.settle(1, folded=True)
    assert here.awaited() == [1]
    there.settle(1, folded=False)
    assert here.awaited() == [1] and brought(here) is None


def test_what_is_of_a_round_to_come_is_dropped(tmp_path: Path, caplog) -> None:
    """The coordinator began anew, under the same address and with the same job."""
    residuals = Residuals(tmp_path, "here:1")
    propose(residuals, 5, [1, 2, 3, 4])
    residuals.settle(5, folded=True)
    assert residuals.load("j", "p", round_number=6, count=4) is not None
    assert residuals.load("j", "p", round_number=5, count=4) is None
    assert "it is of round 5" in caplog.text
    assert brought(residuals) is None


def test_what_rotted_on_the_disk_is_not_brought(tmp_path: Path, caplog) -> None:
    residuals = Residuals(tmp_path, "here:1")
    propose(residuals, 1, [1, 2, 3, 4])
    residuals.settle(1, folded=True)
    (path,) = tmp_path.glob("*.residual")
    content = bytearray(path.read_bytes())
    content[24 + 3] ^= 0x7F  # the first value's exponent
    path.write_bytes(content)
    assert brought(residuals) is None
    assert "its checksum does not hold" in caplog.text


def test_a_job_is_forgotten_whole(tmp_path: Path) -> None:
    """An old residual whose update's fate can have no effect any more would be brought twice."""
    residuals = Residuals(tmp_path, "here:1", kept=2)
    propose(residuals, 1, [1, 2, 3, 4], "a")
    residuals.settle(1, folded=True)
    propose(residuals, 2, [5, 6, 7, 8], "a")
    for number, job in enumerate("bcd", 3):
        propose(residuals, number, [number] * 4, job)
    assert residuals.awaited() == [4, 5]
    residuals.settle(2, folded=True)
    assert brought(residuals, "a") is None


@pytest.mark.parametrize("content", [b"", b"residual", bytes(40), b"x" * 60])
def test_a_damaged_residual_is_dropped_with_a_warning(tmp_path, caplog, content: bytes) -> None:
    residuals = Residuals(tmp_path, "here:1")
    propose(residuals, 1, [1, 2, 3, 4])
    residuals.settle(1, folded=True)
    (path,) = tmp_path.glob("*.residual")
    path.write_bytes(content)
    assert brought(residuals) is None
    assert "what earlier updates left out is lost" in caplog.text
    assert not list(tmp_path.glob("*.residual"))


def test_an_update_that_cannot_be_made_proposes_nothing(tmp_path: Path) -> None:
    residuals = Residuals(tmp_path, "here:1")
    proposal = residuals.proposal("j", "p", assignment_id=1, round_number=1, count=4)
    with pytest.raises(ValueError, match="broken"), proposal:
        raise ValueError("broken")
    assert residuals.awaited() == [] and not list(tmp_path.iterdir())


def test_only_the_latest_jobs_are_kept(tmp_path: Path) -> None:
    residuals = Residuals(tmp_path, "here:1", kept=2)
    for number, job in enumerate("abc", 1):
        propose(residuals, number, [number] * 4, job)
        residuals.settle(number, folded=True)
    assert [brought(residuals, job) is None for job in "abc"] == [True, False, False]
    for number, job in enumerate("def", 4):
        propose(residuals, number, [number] * 4, job)
    assert residuals.awaited() == [5, 6]
