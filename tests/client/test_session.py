"""A client against a coordinator over real gRPC."""

import asyncio
import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.seeds import seed_of_epoch, seed_of_step
from headwater import steps
from headwater.encodings.names import PARTS, encoding_named
from headwater.errors import ConflictError, DiskFullError, NotFoundError
from headwater.manifest import BatchCost
from headwater.updates import StoredUpdate
from headwater.v1 import fleet_pb2 as pb
from tests.client.fake_fleet import FakeFleet, frame_bytes, have_it
from tests.client.fakes import CLIENT_ID, Device, TinyJob

SLOW_SECONDS = 60.0 * 0.5  # the jitter draws 0 here


async def test_a_round_from_hello_to_fate(fleet: FakeFleet, device: Device, tmp_path: Any) -> None:
    job = TinyJob(fleet)
    hello = await fleet.next("hello")
    assert (hello.client_id, hello.name, hello.held_assignment_id) == (CLIENT_ID, "tester", 0)
    assert [(item.name, item.example_count) for item in hello.datasets] == [("ones", -1)]
    assert hello.profile.runtime == "onnxruntime"
    assert hello.profile.memory_bytes > 0
    assert list(hello.encodings) == list(PARTS)

    fleet.push(assignment=job.assignment(1, evaluate_before=True))
    offer = await fleet.next("offer")
    summary = offer.summary
    assert (summary.examples, summary.steps) == (10, 6)
    assert dict(summary.metrics_before) == {"loss": 6.0, "accuracy": pytest.approx(3.6)}
    # The last epoch alone: steps 4, 5, 6 over batches of 4, 4, 2.
    assert dict(summary.metrics_after) == {
        "loss": 1.0,
        "accuracy": pytest.approx((4 * 4 + 5 * 4 + 6 * 2) / 10),
    }
    data = await fleet.next("update")
    assert len(data) == offer.size_bytes
    path = tmp_path / "sent"
    path.write_bytes(data)
    update = StoredUpdate(path, job.layout, encoding_named("fp32"))
    np.testing.assert_array_equal(update.change(0), np.full(4, 6, np.float32))
    np.testing.assert_array_equal(update.integers(1), [13])
    assert device.source.seeds == [None, seed_of_epoch(11, 0), seed_of_epoch(11, 1)]
    assert [seed for _, _, seed in device.trainer.steps] == [seed_of_step(11, i) for i in range(6)]
    assert {rate for _, rate, _ in device.trainer.steps} == {0.5}

    fleet.push(fate=pb.Fate(assignment_id=1, state="accepted", folded=True))
    fleet.push(assignment=job.assignment(2))
    await fleet.next("update")
    assert len(fleet.fetches) == 4, "manifest, two graphs, weights: once each"
    assert len(device.trainer.opened) == 1


async def test_only_the_members_of_the_trainer_are_fetched(
    fleet: FakeFleet, device: Device
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    fleet.push(assignment=job.assignment())
    await fleet.next("update")
    fetched = {digest for digest, _ in fleet.fetches}
    wanted = {job.manifest.members[name].digest for name in ("train.onnx", "evaluate.onnx")}
    assert fetched == {job.plan_digest, job.weights_digest, *wanted}


async def test_local_steps_cycle_and_count_what_they_saw(fleet: FakeFleet, device: Device) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    fleet.push(assignment=job.assignment(1, local_epochs=0, local_steps=2))
    summary = (await fleet.next("offer")).summary
    assert (summary.examples, summary.steps) == (8, 2)
    fleet.push(assignment=job.assignment(2, local_epochs=0, local_steps=4))
    summary = (await fleet.next("offer")).summary
    assert (summary.examples, summary.steps) == (10, 4)
    assert summary.metrics_after["loss"] == 1.0


async def test_an_evaluation_sends_metrics_and_no_update(fleet: FakeFleet, device: Device) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    fleet.push(assignment=job.assignment(3, purpose=pb.PURPOSE_EVALUATE, local_epochs=0))
    offer = await fleet.next("offer")
    assert (offer.digest, offer.size_bytes, offer.summary.examples) == ("", 0, 10)
    assert offer.summary.metrics_before["loss"] == 6.0
    fleet.push(assignment=job.assignment(4))
    await fleet.next("update")
    assert "submit" not in fleet.unread()
    assert list(fleet.updates) == [4]


async def test_optimizer_state_is_kept_only_where_the_job_says_so(
    fleet: FakeFleet, device: Device
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    for number, keep, expected in ((1, True, 6), (2, True, 12), (3, False, 6), (4, True, 18)):
        fleet.push(assignment=job.assignment(number, keep_optimizer_state=keep))
        await fleet.next("update")
        assert device.trainer.slot == expected


async def test_an_upload_resumes_where_the_coordinator_says(
    fleet: FakeFleet, device: Device
) -> None:
    job = TinyJob(fleet, elements=2**18 + 5)
    await fleet.next("welcomed")
    whole = b""

    async def break_off(header: Any, requests: Any) -> None:
        nonlocal whole
        request = await anext(aiter(requests))
        whole = frame_bytes(request.frame)
        fleet.updates[1] = whole
        fleet.submit_hook = None
        raise DiskFullError("no space")

    fleet.submit_hook = break_off
    fleet.push(assignment=job.assignment(1))
    assert (await fleet.next("submit")).from_byte == 0
    assert (await fleet.next("submit")).from_byte == len(whole) == 4 * 2**18 + 8
    data = await fleet.next("update")
    assert data.startswith(whole)


async def test_an_early_answer_ends_the_upload(fleet: FakeFleet, device: Device) -> None:
    job = TinyJob(fleet, elements=2**21)
    await fleet.next("welcomed")

    async def answer_early(header: Any, requests: Any) -> pb.SubmitResponse:
        fleet.submit_hook = None
        receipt = pb.Receipt(assignment_id=1, state="rejected", reason="wrong size")
        return pb.SubmitResponse(receipt=receipt)

    fleet.submit_hook = answer_early
    fleet.push(assignment=job.assignment(1))
    await fleet.next("submit")
    fleet.push(assignment=job.assignment(2))
    assert (await fleet.next("submit")).assignment_id == 2
    await fleet.next("update")
    assert recent(device)[0]["outcome"] == "rejected"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (have_it(1, "late"), "late"),
        (pb.OfferResponse(verdict=pb.OFFER_VERDICT_NOT_NEEDED, reason="it closed"), "not needed"),
    ],
)
async def test_a_final_answer_ends_the_delivery(
    fleet: FakeFleet, device: Device, answer: pb.OfferResponse, outcome: str
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    fleet.offer_answers.append(answer)
    fleet.push(assignment=job.assignment(1))
    await fleet.next("offer")
    fleet.push(assignment=job.assignment(2))
    await fleet.next("update")
    assert list(fleet.updates) == [2]
    assert recent(device)[0]["outcome"] == outcome


@pytest.mark.parametrize(
    "reason", ["offer the update first", "send the update from byte 7", "a newer stream sends it"]
)
async def test_a_stream_out_of_step_offers_again(
    fleet: FakeFleet, device: Device, reason: str
) -> None:
    """What the coordinator does not expect now it tells at the next offer: nothing is lost."""
    job = TinyJob(fleet)
    await fleet.next("welcomed")

    async def refuse(*_: Any) -> pb.SubmitResponse:
        fleet.submit_hook = None
        raise ConflictError(reason)

    fleet.submit_hook = refuse
    fleet.push(assignment=job.assignment(1))
    await fleet.next("submit")
    await fleet.next("update")
    fleet.push(assignment=job.assignment(2))
    await fleet.next("update")
    assert recent(device)[0]["outcome"] == "accepted"
    assert "failure" not in fleet.unread()


async def test_come_at_waits_and_offers_again(fleet: FakeFleet, device: Device) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    fleet.offer_answers.append(
        pb.OfferResponse(verdict=pb.OFFER_VERDICT_COME_AT, wait_seconds=40, reason="busy")
    )
    fleet.push(assignment=job.assignment(1))
    await fleet.next("offer")
    await device.clock.sleeping_for(40)
    assert "offer" not in fleet.unread()
    device.clock.advance(40)
    await fleet.next("offer")
    await fleet.next("update")


async def test_a_coordinator_that_restarts_during_training(
    fleet: FakeFleet, device: Device
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    device.trainer.gate.clear()
    fleet.push(assignment=job.assignment(5))
    await device.training()
    await fleet.stop()
    await fleet.start()
    hello = await fleet.next("hello")
    assert hello.held_assignment_id == 5
    assert [(item.name, item.example_count) for item in hello.datasets] == [("ones", 10)]
    device.trainer.gate.set()
    assert (await fleet.next("offer")).assignment_id == 5
    await fleet.next("update")


async def test_a_stream_that_broke_leaves_no_task(fleet: FakeFleet, device: Device) -> None:
    await fleet.next("welcomed")
    await fleet.stop()
    await fleet.start()
    await fleet.next("welcomed")
    senders = [one for one in asyncio.all_tasks() if "_consume_request_iterator" in repr(one)]
    assert len(senders) == 1, "the first stream's messages are still awaited"


async def test_a_coordinator_that_restarts_during_the_upload(
    fleet: FakeFleet, device: Device
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    reached = asyncio.Event()

    async def hang(header: Any, requests: Any) -> None:
        reached.set()
        fleet.submit_hook = None
        await asyncio.Event().wait()

    fleet.submit_hook = hang
    fleet.push(assignment=job.assignment(6))
    await asyncio.wait_for(reached.wait(), 20)
    assert device.journaled == ["6.update", "held.json"]
    await fleet.stop()
    await fleet.start()
    assert (await fleet.next("hello")).held_assignment_id == 6
    await fleet.next("update")
    fleet.push(assignment=job.assignment(7))
    await fleet.next("update")


async def test_a_fetch_resumes_after_a_restart(fleet: FakeFleet, device: Device) -> None:
    job = TinyJob(fleet)
    weights = fleet.blobs[job.weights_digest]
    cut = len(weights) // 2

    def half(digest: str, offset: int) -> bytes | None:
        if digest == job.weights_digest and offset == 0:
            return weights[:cut]
        return None

    fleet.fetch_hook = half
    await fleet.next("welcomed")
    fleet.push(assignment=job.assignment(1))
    await fleet.next("update")
    assert fleet.fetches[-2:] == [(job.weights_digest, 0), (job.weights_digest, cut)]


async def test_cancel_stops_between_two_steps(fleet: FakeFleet, device: Device) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    device.trainer.gate.clear()
    fleet.push(assignment=job.assignment(1))
    await device.training()
    fleet.push(cancel=pb.Cancel(assignment_id=1, reason="the round closed"))
    fleet.push(assignment=job.assignment(2))
    await caught_up(fleet)
    device.trainer.gate.set()
    assert (await fleet.next("offer")).assignment_id == 2
    await fleet.next("update")
    assert len(device.trainer.steps) == 1 + 6
    assert recent(device)[0]["outcome"] == "dropped"
    assert recent(device)[0]["reason"] == "the round closed"


async def test_a_newer_assignment_replaces_an_older_one(fleet: FakeFleet, device: Device) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    fleet.offer_answers.append(
        pb.OfferResponse(verdict=pb.OFFER_VERDICT_COME_AT, wait_seconds=1000)
    )
    fleet.push(assignment=job.assignment(1))
    await device.clock.sleeping_for(1000)
    fleet.push(assignment=job.assignment(2))
    failure = await fleet.next("failure")
    assert (failure.assignment_id, failure.reason) == (1, "a newer assignment came to this device")
    await fleet.next("update")
    assert list(fleet.updates) == [2]
    assert recent(device)[0]["outcome"] == "dropped"


async def test_an_upload_under_way_ends_although_the_next_assignment_came(
    fleet: FakeFleet, device: Device
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")

    async def overtaken(header: Any, requests: Any) -> None:
        fleet.submit_hook = None
        fleet.push(fate=pb.Fate(assignment_id=1, state="accepted", folded=True))
        fleet.push(assignment=job.assignment(2))
        await caught_up(fleet)

    fleet.submit_hook = overtaken
    fleet.push(assignment=job.assignment(1))
    await fleet.next("update")
    await fleet.next("update")
    assert list(fleet.updates) == [1, 2]
    assert recent(device)[0]["outcome"] == "accepted"
    assert recent(device)[0]["fate"]["folded"] is True


async def test_a_fate_ends_a_delivery(fleet: FakeFleet, device: Device) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    fleet.offer_answers.append(
        pb.OfferResponse(verdict=pb.OFFER_VERDICT_COME_AT, wait_seconds=1000)
    )
    fleet.push(assignment=job.assignment(1))
    await device.clock.sleeping_for(1000)
    fleet.push(fate=pb.Fate(assignment_id=1, state="released", reason="enough"))
    fleet.push(assignment=job.assignment(2))
    await fleet.next("update")
    assert recent(device)[0]["fate"]["state"] == "released"


async def test_the_assignment_under_way_is_not_begun_again(
    fleet: FakeFleet, device: Device
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    device.trainer.gate.clear()
    fleet.push(assignment=job.assignment(1))
    await device.training()
    fleet.push(assignment=job.assignment(1))
    await caught_up(fleet)
    device.trainer.gate.set()
    await fleet.next("update")
    assert len(device.trainer.steps) == 6


async def test_displaced_is_an_error_and_the_client_comes_back_slowly(
    fleet: FakeFleet, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    await fleet.next("welcomed")
    fleet.push(displaced=pb.Displaced(reason="host b took over."))
    await device.clock.sleeping_for(SLOW_SECONDS)
    assert "two devices share one identity" in caplog.text
    assert "host b took over." in caplog.text
    device.clock.advance(SLOW_SECONDS)
    await fleet.next("welcomed")


async def test_come_back_disconnects_and_returns_in_the_window(
    fleet: FakeFleet, device: Device
) -> None:
    await fleet.next("welcomed")
    fleet.push(come_back=pb.ComeBack(after_seconds=100, before_seconds=200, reason="night"))
    await device.clock.sleeping_for(100)
    device.clock.advance(100)
    await fleet.next("welcomed")


async def test_heartbeats_break_the_silence(fleet: FakeFleet, device: Device) -> None:
    await fleet.next("welcomed")
    await device.clock.sleeping_for(60)
    device.clock.advance(60)
    await fleet.next("heartbeat")


async def test_progress_renews_the_lease_while_a_step_is_slow(
    fleet: FakeFleet, device: Device
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    device.trainer.gate.clear()
    fleet.push(assignment=job.assignment(1, lease_seconds=30))
    await device.training()
    while (message := await fleet.next("progress")).phase != pb.PHASE_TRAINING:
        pass
    assert (message.assignment_id, message.fraction) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset": "twos"}, "this device has no data set 'twos' (it has: ones): bind it with "
         "--data twos=PATH"),
        ({"encoding": "zip"}, "unknown update encoding 'zip'; known: fp32"),
        ({"purpose": 9}, "this client does not know the purpose 9: upgrade headwater"),
        ({"batch_size": 0}, "the assignment has the batch size 0"),
        ({"local_epochs": 0}, "the assignment must name either local epochs or local steps"),
        ({"weights_digest": "../identity.json"}, "'../identity.json' is not a digest"),
        ({"weights_digest": "0" * 64}, "no blob 000000000000"),
    ],
)  # fmt: skip
async def test_what_cannot_begin_is_declined_and_the_client_goes_on(
    fleet: FakeFleet, device: Device, changes: dict[str, Any], sentence: str
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    fleet.push(assignment=job.assignment(1, **changes))
    decline = await fleet.next("decline")
    assert decline.assignment_id == 1
    assert sentence in decline.reason
    fleet.push(assignment=job.assignment(2))
    await fleet.next("update")


async def test_a_bad_plan_is_declined(fleet: FakeFleet, device: Device) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    newer = json.loads(job.manifest.to_bytes()) | {"schema": 99}
    fleet.push(assignment=job.assignment(1, plan_digest=fleet.add_blob(json.dumps(newer).encode())))
    assert "the plan has schema 99" in (await fleet.next("decline")).reason
    digest = TinyJob(fleet, members={}).plan_digest
    fleet.push(assignment=job.assignment(2, plan_digest=digest))
    assert "has no evaluate.onnx or train.onnx" in (await fleet.next("decline")).reason
    fleet.push(assignment=job.assignment(3))
    await fleet.next("update")


async def test_a_plan_too_big_for_the_memory_is_declined_before_its_graphs_are_fetched(
    fleet: FakeFleet, device: Device
) -> None:
    job = TinyJob(fleet, peak_memory_bytes=BatchCost(2**60, 0))
    await fleet.next("welcomed")
    fleet.push(assignment=job.assignment(1))
    reason = (await fleet.next("decline")).reason
    assert "plan 'tiny' with batch size 4 needs about 1,099,511,627,776 MiB of memory" in reason
    assert [digest for digest, _ in fleet.fetches] == [job.plan_digest]


async def test_weights_of_another_plan_are_declined(fleet: FakeFleet, device: Device) -> None:
    job, other = TinyJob(fleet), TinyJob(fleet, elements=9)
    await fleet.next("welcomed")
    fleet.push(assignment=job.assignment(1, weights_digest=other.weights_digest))
    assert "has shape (9,); the plan says (4,)" in (await fleet.next("decline")).reason


async def test_empty_data_is_declined(fleet: FakeFleet, device: Device) -> None:
    job = TinyJob(fleet)
    device.source.count = 0
    await fleet.next("welcomed")
    fleet.push(assignment=job.assignment(1))
    assert (await fleet.next("decline")).reason == "the data set 'ones' (ones:) has no examples"


async def test_a_loss_that_is_not_finite_is_a_failure(fleet: FakeFleet, device: Device) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    device.trainer.loss = float("nan")
    fleet.push(assignment=job.assignment(1))
    failure = await fleet.next("failure")
    assert failure.reason == (
        "the loss became nan at step 1 of 6 (learning_rate 0.5): lower the learning rate, or look "
        "for bad values in this device's data"
    )
    device.trainer.loss = 1.0
    fleet.push(assignment=job.assignment(2))
    await fleet.next("update")
    assert device.journaled in ([], ["2.update", "held.json"])


async def test_a_defect_in_training_is_a_failure_and_is_told_again_until_its_fate(
    fleet: FakeFleet, device: Device
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    device.trainer.failure = ZeroDivisionError("division by zero")
    fleet.push(assignment=job.assignment(1))
    reason = "unexpected ZeroDivisionError: division by zero"
    assert (await fleet.next("failure")).reason == reason
    fleet.end_stream()
    assert (await fleet.next("hello")).held_assignment_id == 1
    assert (await fleet.next("failure")).reason == reason
    fleet.push(fate=pb.Fate(assignment_id=1, state="failed"))
    fleet.end_stream()
    assert (await fleet.next("hello")).held_assignment_id == 0


async def test_an_update_that_the_coordinator_refuses_for_good_is_dropped(
    fleet: FakeFleet, device: Device
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    fleet.offer_answers.append(NotFoundError("no assignment 1"))
    fleet.push(assignment=job.assignment(1))
    assert (await fleet.next("failure")).reason == "no assignment 1"
    fleet.end_stream()
    assert (await fleet.next("hello")).held_assignment_id == 0


async def test_damaged_cache_files_are_fetched_again(fleet: FakeFleet, tmp_path: Any) -> None:
    job = TinyJob(fleet)
    for number in (1, 2):
        async with Device(fleet, tmp_path / "state") as device:
            await fleet.next("welcomed")
            fleet.push(assignment=job.assignment(number))
            await fleet.next("update")
        damaged = device.state.cache / job.manifest.members["train.onnx"].digest
        if number == 1:
            damaged.write_bytes(b"rot")
            fleet.fetches.clear()
    assert fleet.fetches == [(damaged.name, 0)]


async def test_wrong_bytes_twice_are_declined(fleet: FakeFleet, device: Device) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    size = len(fleet.blobs[job.weights_digest])
    fleet.fetch_hook = lambda digest, offset: bytes(size) if digest == job.weights_digest else None
    fleet.push(assignment=job.assignment(1))
    assert "do not have that digest, again" in (await fleet.next("decline")).reason


async def test_a_full_disk_declines_or_fails_and_the_client_goes_on(
    fleet: FakeFleet, device: Device
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    partial = device.state.cache / f"{job.weights_digest}.partial"
    partial.symlink_to("/dev/full")
    fleet.push(assignment=job.assignment(1))
    assert "no space is left to write" in (await fleet.next("decline")).reason
    partial.unlink()

    def full(step: str, path: Path) -> None:
        if step == "write" and path.name == ".2.update.tmp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with steps.observed(full):
        fleet.push(assignment=job.assignment(2))
        assert "no space is left to write" in (await fleet.next("failure")).reason
    fleet.push(assignment=job.assignment(3))
    await fleet.next("update")


async def test_a_broken_state_directory_fails_the_assignment_and_not_the_client(
    fleet: FakeFleet, device: Device
) -> None:
    job = TinyJob(fleet)
    await fleet.next("welcomed")
    device.state.updates.rmdir()
    device.state.updates.write_text("in the way")
    fleet.push(assignment=job.assignment(1))
    assert "updates/held.json: Not a directory" in (await fleet.next("failure")).reason
    device.state.updates.unlink()
    device.state.updates.mkdir()
    fleet.push(assignment=job.assignment(2))
    await fleet.next("update")


async def test_a_blob_beyond_the_budget_is_declined(fleet: FakeFleet, tmp_path: Any) -> None:
    job = TinyJob(fleet)
    async with Device(fleet, tmp_path / "state", cache_bytes=1000):
        await fleet.next("welcomed")
        fleet.push(assignment=job.assignment(1))
        reason = (await fleet.next("decline")).reason
    assert "does not fit the cache budget of 1000 B" in reason


async def test_a_finished_update_survives_the_process(fleet: FakeFleet, tmp_path: Any) -> None:
    job = TinyJob(fleet)
    fleet.offer_answers.append(
        pb.OfferResponse(verdict=pb.OFFER_VERDICT_COME_AT, wait_seconds=1000)
    )
    async with Device(fleet, tmp_path / "state") as device:
        await fleet.next("welcomed")
        fleet.push(assignment=job.assignment(8))
        await device.clock.sleeping_for(1000)
    first = (await fleet.next("offer")).digest
    async with Device(fleet, tmp_path / "state"):
        assert (await fleet.next("hello")).held_assignment_id == 8
        assert (await fleet.next("offer")).digest == first
        await fleet.next("update")


async def test_an_update_for_another_coordinator_is_dropped(
    fleet: FakeFleet, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = TinyJob(fleet)
    fleet.offer_answers.append(
        pb.OfferResponse(verdict=pb.OFFER_VERDICT_COME_AT, wait_seconds=1000)
    )
    async with Device(fleet, tmp_path / "state") as device:
        await fleet.next("welcomed")
        fleet.push(assignment=job.assignment(8))
        await device.clock.sleeping_for(1000)
    other = await FakeFleet().start()
    async with Device(other, tmp_path / "state"):
        assert (await other.next("hello")).held_assignment_id == 0
    await other.stop()
    assert "a finished update is dropped" in caplog.text


def recent(device: Device) -> list[dict[str, Any]]:
    return list(json.loads(device.state.status.read_text())["recent"])


async def caught_up(fleet: FakeFleet) -> None:
    """Return once the client handled all that was pushed: it logs each Fate in its turn."""
    handled = asyncio.Event()
    log = logging.getLogger("headwater.client")

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "a marker" in record.getMessage():
                handled.set()

    handler, level = Handler(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        fleet.push(fate=pb.Fate(assignment_id=10**9, state="a marker"))
        await asyncio.wait_for(handled.wait(), 20)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
