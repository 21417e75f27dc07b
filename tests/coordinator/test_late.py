"""Updates that come after their round: folded into the next, once, with what they are worth."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.replay.committed_round import WhatIf, committed_round
from coordinator.replay.refold import replayed
from coordinator.services.fleet import FleetService
from coordinator.services.spool import clear_spool
from headwater.encodings.names import PARTS
from headwater.errors import ConflictError
from headwater.safetensors import read_weights
from headwater.v1 import fleet_pb2 as pb
from storage import history
from storage import rounds as round_repository
from storage.blob_directory import BlobDirectory
from storage.collect import collect
from storage.database import Database, open_database
from storage.records import AssignmentRecord, JobState, RoundRecord, RoundState
from storage.records import AssignmentState as A
from storage.verify import verify
from tests.coordinator.rig import DEADLINE, LEASE, Device, Rig, rigged
from tests.plans import batch_norm_plan, opened
from tests.system.device import Update, frames_of, make_update


@pytest.fixture(scope="module")
def plan() -> CompiledPlan:
    return batch_norm_plan()


async def folding(rig: Rig, more: str = "", **changes: str) -> str:
    return await rig.submit(quorum=f'1\nlate = "fold"\n{more}', **changes)


async def past_the_deadline(rig: Rig, number: int, a: Device, b: Device, job: str) -> pb.Assignment:
    """Round `number` commits with the update of `a` at its deadline; what `b` still works on."""
    first, second = await a.assigned(), await b.assigned()
    await a.deliver(first, change(rig, 0.25))
    stay(rig, second)
    await rig.clock.jump(DEADLINE)
    assert (await rig.ended(job, number)).state is RoundState.COMMITTED
    stay(rig, second)
    return second


def stay(rig: Rig, assignment: pb.Assignment) -> None:
    """Its client says Progress all the time."""
    for run in rig.engine.runs.values():
        at_work = [run.late, run.round.assignments if run.round else {}]
        for live in (one[assignment.assignment_id] for one in at_work
                     if assignment.assignment_id in one):  # fmt: skip
            live.lease_ends = np.inf


def change(rig: Rig, size: float) -> Update:
    return make_update(rig.plan.manifest.layout, size)


def row_of(record: RoundRecord, name: str) -> AssignmentRecord:
    return next(one for one in (*record.late, *record.assignments) if one.client_name == name)


def damage(rig: Rig, update: Update) -> None:
    path = rig.world.blobs.path(update.digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


async def weights(rig: Rig, job: str, number: int) -> np.ndarray:
    found = await rig.world.database.read(lambda s: history.model(s, f"{job}@{number}"))
    path = rig.world.blobs.path(found.weights_digest)
    return read_weights(path, rig.plan.manifest.layout).floats.astype(np.float64)


async def test_a_straggler_finishes_and_the_next_round_folds_it_by_its_staleness(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    job = await folding(rig)
    late = await past_the_deadline(rig, 1, a, b, job)
    assert b.attendee.outbox.empty(), "it is left at work, and gets no other"
    receipt = await b.deliver(late, change(rig, -0.5))
    assert (receipt.state, receipt.reason) == (A.LATE, "it is late, and a later round folds it")
    again = await b.offered(late, change(rig, -0.5))
    assert (again.verdict, again.receipt) == (pb.OFFER_VERDICT_HAVE_IT, receipt)
    await a.deliver(await a.assigned(), change(rig, 0.125))
    ended = await rig.ended(job, 2)
    total = 8 + 8 / sqrt(2)
    row = row_of(ended, "b")
    assert (row.state, row.round_number, row.folded_round_number) == (A.LATE, 1, 2)
    assert (row.staleness, row.weight) == (1, 8 / sqrt(2) / total)
    assert row.reason == "its update came 1 version later; round 2 took it"
    assert row_of(ended, "a").weight == 8 / total
    assert (ended.accepted, ended.examples) == (1, 16)
    mean = (8 * 0.125 - 8 / sqrt(2) * 0.5) / total
    assert await weights(rig, job, 2) - await weights(rig, job, 1) == pytest.approx(mean, abs=1e-6)
    assert not verify(rig.world.database, rig.world.blobs).findings


async def test_a_round_with_late_updates_is_replayed_to_the_same_bits(rig: Rig) -> None:
    """Also where one client's late update and its own of the round are folded together."""
    a, b = await rig.attend("a", "b")
    job = await folding(rig, count="3")
    late = await past_the_deadline(rig, 1, a, b, job)
    rig.engine.forget_late(b.attendee.client_id, 0)
    await a.deliver(await a.assigned())
    await rig.ended(job, 2)
    await b.deliver(late, change(rig, -0.5))
    await b.deliver(await b.assigned(), change(rig, 0.75))
    await a.deliver(await a.assigned())
    await rig.ended(job, 3)
    step = await rig.world.database.read(lambda s: committed_round(s, job, 3))
    again = partial(replayed, rig.world.blobs, step, opened(rig.plan), source=None, threads=1)
    assert again(WhatIf()).digest == step.version.weights_digest
    late_weight = 8 / sqrt(3)
    expected = {"a": 8 / (16 + late_weight), "b": (8 + late_weight) / (16 + late_weight)}
    assert again(WhatIf()).shares == pytest.approx(expected)
    assert again(WhatIf(without=("b",))).shares == {"a": 1.0}
    assert again(WhatIf(rule="median")).shares == pytest.approx({"a": 1 / 3, "b": 2 / 3})


@pytest.mark.parametrize(
    ("damage_it", "found"),
    [
        ("folded_round_id = NULL", "it has a weight in a fold and no part in one"),
        ("folded_round_id = NULL", "its fold weights add up to 0.58"),
        ("weight = NULL", "it was accepted and has no weight in the fold"),
        ("state = 'expired'", "it is expired and a later round took it"),
        ("examples = NULL", "it was accepted without examples"),
    ],
)
async def test_the_checker_finds_what_contradicts_a_late_update(
    rig: Rig, damage_it: str, found: str
) -> None:
    a, b = await rig.attend("a", "b")
    job = await folding(rig)
    late = await past_the_deadline(rig, 1, a, b, job)
    await b.deliver(late, change(rig, -0.5))
    await a.deliver(await a.assigned())
    await rig.ended(job, 2)
    statement = f"UPDATE assignments SET {damage_it} WHERE folded_round_id IS NOT NULL"
    await rig.world.database.write(lambda s: s.execute(text(statement)) and None)
    report = verify(rig.world.database, rig.world.blobs)
    assert any(found in one.message for one in report.findings), report.findings


async def test_it_is_in_one_round_and_in_no_other(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    job = await folding(rig, count="3")
    late = await past_the_deadline(rig, 1, a, b, job)
    await b.deliver(late, change(rig, -0.5))
    await a.deliver(await a.assigned())
    for one in (a, b):
        await one.deliver(await one.assigned())
    second, third = await rig.ended(job, 2), await rig.ended(job, 3)
    assert [one.round_number for one in second.late] == [1]
    assert third.late == ()
    assert sum(one.weight or 0 for one in (*second.assignments, *second.late)) == pytest.approx(1)


async def test_a_client_given_up_on_in_an_open_round_is_folded_by_that_round(rig: Rig) -> None:
    """Its lease ended, and the round waits for another."""
    a, b, c = await rig.attend("a", "b", "c")
    job = await folding(rig, cohort="3")
    first, second, third = [await one.assigned() for one in (a, b, c)]
    stay(rig, first)
    stay(rig, third)
    found = rig.engine.find(second.assignment_id, b.attendee.client_id)
    await rig.clock.jump(LEASE)
    while found and found[1].state is not A.EXPIRED:
        await asyncio.sleep(0)
    receipt = await b.deliver(second, change(rig, -0.5))
    assert receipt.state == A.LATE
    await a.deliver(first)
    await c.deliver(third)
    ended = await rig.ended(job, 1)
    row = row_of(ended, "b")
    assert (row.staleness, row.weight, row.folded_round_number) == (0, 1 / 3, 1)
    assert ended.accepted == 2
    assert not verify(rig.world.database, rig.world.blobs).findings


async def test_a_client_that_returns_with_what_it_held_goes_on(rig: Rig) -> None:
    """Between its leaving and its return a round ended, and the coordinator forgot it."""
    a, b = await rig.attend("a", "b")
    job = await folding(rig)
    late = await past_the_deadline(rig, 1, a, b, job)
    rig.engine.runs[job].late.clear()
    b.attendee.hello.held_assignment_id = late.assignment_id
    fleet = FleetService(rig.engine, rig.uploads, insecure=True)

    async def requests() -> AsyncIterator[pb.AttendRequest]:
        yield pb.AttendRequest(hello=b.attendee.hello)

    heard = [message.WhichOneof("message") async for message in fleet.Attend(requests(), None)]
    assert heard == ["welcome"], "it is told of no end and of no other work"
    assert late.assignment_id in rig.engine.runs[job].late
    rig.world.attendance.enter(b.attendee)
    assert (await b.deliver(late)).state == A.LATE


async def test_one_that_fell_silent_gets_new_work_and_one_that_forgot_at_once(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    job = await folding(rig, count="3")
    late = await past_the_deadline(rig, 1, a, b, job)
    rig.engine.forget_late(b.attendee.client_id, 0)
    await a.deliver(await a.assigned())
    assert (await rig.ended(job, 2)).offered == 1
    second = await b.assigned()
    assert second.round_number == 3
    assert (await b.deliver(late)).state == A.LATE, "it may bring both"


@pytest.mark.parametrize(
    ("policy", "count", "told"),
    [
        ("", "1", "the assignment is late: its update came after the round had ended, 1 version"),
        ("largest_staleness = 0", "3", "the assignment is late: its update came after the round"),
    ],
)
async def test_what_no_round_can_fold_is_noted_and_not_sent(
    rig: Rig, policy: str, count: str, told: str
) -> None:
    """The job had its last round, or the base is too old."""
    a, b = await rig.attend("a", "b")
    job = await folding(rig, policy, count=count)
    first, second = await a.assigned(), await b.assigned()
    await a.deliver(first)
    stay(rig, second)
    await rig.clock.jump(DEADLINE)
    await rig.ended(job, 1)
    assert (await b.next("cancel")).cancel.assignment_id == second.assignment_id
    answer = await b.offered(second, change(rig, 0.5))
    assert answer.verdict == pb.OFFER_VERDICT_NOT_NEEDED
    assert answer.reason.startswith(told)
    row = row_of(await rig.round(job, 1), "b")
    assert (row.state, row.staleness, row.weight) == (A.LATE, 1, None)
    assert row.update_size_bytes is None


async def test_a_late_update_that_was_damaged_is_rejected_and_the_round_goes_on(
    rig: Rig,
) -> None:
    a, b = await rig.attend("a", "b")
    job = await folding(rig)
    late = await past_the_deadline(rig, 1, a, b, job)
    await b.deliver(late, change(rig, 0.5))
    damage(rig, change(rig, 0.5))
    await a.deliver(await a.assigned())
    ended = await rig.ended(job, 2)
    row = row_of(ended, "b")
    assert ended.state is RoundState.COMMITTED
    assert (row.state, row.weight) == (A.REJECTED, None)
    assert "is damaged on disk" in row.reason
    assert [one.weight for one in ended.assignments] == [1.0]


async def test_an_abandoned_round_ends_what_it_took_and_one_that_took_none_leaves_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await rig.attend("a", "b")
    job = await folding(rig, count="4")
    late = await past_the_deadline(rig, 1, a, b, job)
    await b.deliver(late, change(rig, -0.5))
    stay(rig, await a.assigned())
    await rig.clock.jump(DEADLINE)
    assert (await rig.ended(job, 2)).state is RoundState.ABANDONED
    assert (await rig.round(job, 2)).late == (), "it ended while it was open"
    bad = change(rig, 0.75)

    def adopt(blobs: BlobDirectory, temporary: Path, digest: str) -> None:
        real(blobs, temporary, digest)
        if digest == bad.digest:
            damage(rig, bad)

    real = BlobDirectory.adopt
    monkeypatch.setattr(BlobDirectory, "adopt", adopt)
    await b.deliver(await b.assigned(), bad)
    third = await rig.ended(job, 3)
    assert third.state is RoundState.ABANDONED
    assert [(one.client_name, one.weight) for one in third.late] == [("b", None)]
    assert not verify(rig.world.database, rig.world.blobs).findings


async def test_a_restart_in_every_part_of_it_gives_the_same_weights(
    tmp_path: Path, plan: CompiledPlan
) -> None:
    digests = set()
    for name in ("never", "before it came", "in its upload", "before its fold"):
        folder = tmp_path / name
        folder.mkdir()
        with open_database(f"sqlite:///{folder / 'headwater.db'}", create=True) as database:
            digests.add(await _with_restart(folder, database, plan, name))
    assert len(digests) == 1


async def _with_restart(folder: Path, database: Database, plan: CompiledPlan, when: str) -> str:
    async with rigged(folder, database, plan) as rig:
        a, b = await rig.attend("a", "b")
        job = await folding(rig)
        late = await past_the_deadline(rig, 1, a, b, job)
        work = await a.assigned()
        if when == "in its upload":
            await break_off(b, late, change(rig, -0.5))
        if when in ("never", "before its fold"):
            await b.deliver(late, change(rig, -0.5))
        if when == "never":
            return await _finish(rig, job, a, work)
    async with rigged(folder, database, plan) as rig:
        await clear_spool(rig.world)
        a, b = await rig.attend("a", "b")
        if when != "before its fold":
            answer = await b.offered(late, change(rig, -0.5))
            has_part = when == "in its upload"
            assert (answer.from_byte > 0) is has_part, "what had come is not asked again"
            await b.deliver(late, change(rig, -0.5))
        return await _finish(rig, job, a, work)


async def break_off(device: Device, assignment: pb.Assignment, update: Update) -> None:
    """Send the first block and no more."""
    assert (await device.offered(assignment, update)).verdict == pb.OFFER_VERDICT_SEND

    async def first() -> AsyncIterator[pb.SubmitRequest]:
        yield pb.SubmitRequest(frame=frames_of(update)[0])

    with pytest.raises(ConflictError, match="broke off"):
        await device.rig.uploads.received(device.header(assignment, update), first())


async def _finish(rig: Rig, job: str, a: Device, work: pb.Assignment) -> str:
    await a.deliver(work, change(rig, 0.125))
    assert len((await rig.ended(job, 2)).late) == 1
    found = await rig.world.database.read(lambda s: history.model(s, f"{job}@2"))
    return found.weights_digest


async def test_retention_keeps_what_waits_and_counts_it_for_the_round_that_took_it(
    rig: Rig,
) -> None:
    a, b = await rig.attend("a", "b")
    job = await folding(rig, count="5")
    late = await past_the_deadline(rig, 1, a, b, job)
    await b.deliver(late, change(rig, -0.5))
    digest = change(rig, -0.5).digest

    def collected() -> None:
        collect(rig.world.database, rig.world.blobs, now=rig.clock.now(), keep_update_rounds=2)

    await rig.world.work(collected)
    assert rig.world.blobs.exists(digest), "it waits"
    await a.deliver(await a.assigned())
    await rig.ended(job, 2)
    await rig.world.work(collected)
    assert rig.world.blobs.exists(digest), "the last round folded it"
    for number in (3, 4):
        for one in (a, b):
            await one.deliver(await one.assigned(), change(rig, 0.75))
        await rig.ended(job, number)
    await rig.world.work(collected)
    assert not rig.world.blobs.exists(digest)
    row = (await rig.round(job, 2)).late[0]
    assert (row.update_collected, row.update_digest) == (True, digest)


async def test_an_ended_job_takes_no_late_update(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    job = await folding(rig)
    late = await past_the_deadline(rig, 1, a, b, job)
    await rig.engine.change(job, JobState.CANCELLED, "enough")
    while job in rig.engine.runs:
        await asyncio.sleep(0)
    assert (await b.next("cancel")).cancel.reason == "enough"
    answer = await b.offered(late, change(rig, 0.5))
    assert answer.verdict == pb.OFFER_VERDICT_NOT_NEEDED
    assert await rig.world.database.read(round_repository.pending_assignments) == set()


async def test_a_lease_that_runs_out_in_an_upload_loses_nothing_of_it(rig: Rig) -> None:
    """Its client offers it again, as it does after any conflict, and sends the rest."""
    a, b = await rig.attend("a", "b")
    await folding(rig)
    stay(rig, await a.assigned())
    work, update = await b.assigned(), change(rig, -0.5)
    assert (await b.offered(work, update)).verdict == pb.OFFER_VERDICT_SEND
    first, *rest = frames_of(update)
    found = rig.engine.find(work.assignment_id, b.attendee.client_id)
    assert found is not None

    async def stalled() -> AsyncIterator[pb.SubmitRequest]:
        yield pb.SubmitRequest(frame=first)
        await rig.clock.jump(LEASE)
        while found[1].state is not A.EXPIRED:
            await asyncio.sleep(0)
        yield pb.SubmitRequest(frame=rest[0])

    with pytest.raises(ConflictError, match="expired while its update came: offer it again"):
        await rig.uploads.received(b.header(work, update), stalled())
    answer = await b.offered(work, update)
    assert answer.from_byte == 8 + len(first.payload)
    assert (await b.deliver(work, update)).state == A.LATE


async def test_auto_gets_coarser_where_an_upload_does_not_come_in_time(rig: Rig) -> None:
    (a,) = await rig.attend("a")
    a.attendee.hello.encodings[:] = PARTS
    await rig.submit(cohort="1", count="3", evaluate='{ on = [] }\n[updates]\nencoding = "auto"')
    for encoding in ("int8+zstd", "int4+zstd", "topk:0.01+zstd", "topk:0.01+zstd"):
        work = await a.assigned()
        assert (work.encoding, work.error_feedback) == (encoding, encoding != "int8+zstd")
        found = rig.engine.find(work.assignment_id, a.attendee.client_id)
        assert found is not None
        update = change(rig, 0.5)
        offer = a.offer(work, update)
        offer.encoding, offer.size_bytes = encoding, 10
        await rig.uploads.offered(*found, offer)
        stay(rig, work)
        await rig.clock.jump(DEADLINE)
