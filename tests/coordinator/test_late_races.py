"""What is said of an assignment while its round's end is being written, and what waits too long."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.services.fleet import FleetService
from headwater.v1 import fleet_pb2 as pb
from storage import rounds as round_repository
from storage.records import AssignmentState as A
from storage.records import JobState, RoundState
from storage.retention import release_updates
from storage.verify import verify
from tests.coordinator.rig import DEADLINE, Rig, stream
from tests.coordinator.test_late import change, folding, past_the_deadline, row_of, stay
from tests.plans import batch_norm_plan


@pytest.fixture(scope="module")
def plan() -> CompiledPlan:
    return batch_norm_plan()


def held_up_fold(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """From now on a fold waits: set once it has begun, and to be set for it to go on."""
    folds, goes_on = asyncio.Event(), asyncio.Event()
    compute = type(rig.world).compute

    async def waits(self: Any, *arguments: Any, **options: Any) -> Any:
        folds.set()
        await goes_on.wait()
        return await compute(self, *arguments, **options)

    monkeypatch.setattr(type(rig.world), "compute", waits)
    return folds, goes_on


def while_it_closes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, do: Callable[[], Awaitable[Any]]
) -> asyncio.Future[Any]:
    """Begin `do` once the next closing of a round waits for the database; what comes of it."""
    real, found = rig.world.database.write, asyncio.get_running_loop().create_future()

    async def write(work: Callable[..., Any]) -> Any:
        if getattr(work, "func", None) is not round_repository.close or found.done():
            return await real(work)
        found.set_result(asyncio.ensure_future(do()))  # begins once this one waits
        return await real(work)

    monkeypatch.setattr(rig.world.database, "write", write)
    return found


async def test_an_offer_while_its_round_closes_is_answered(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await rig.attend("a", "b")
    job = await folding(rig)
    first, second = await a.assigned(), await b.assigned()
    await a.deliver(first)
    stay(rig, second)
    begun = while_it_closes(rig, monkeypatch, lambda: b.offered(second, change(rig, 0.5)))
    await rig.clock.jump(DEADLINE)
    answer = await asyncio.wait_for(await begun, 10)
    assert answer.verdict == pb.OFFER_VERDICT_SEND
    await rig.ended(job, 1)
    assert (await b.deliver(second, change(rig, 0.5))).state == A.LATE


async def test_progress_while_its_round_closes_ends_no_stream(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await rig.attend("a", "b")
    await folding(rig)
    first, second = await a.assigned(), await b.assigned()
    await a.deliver(first)
    stay(rig, second)
    fleet = FleetService(rig.engine, rig.uploads, insecure=True)
    progress = pb.Progress(assignment_id=second.assignment_id, phase=pb.PHASE_TRAINING)
    say = partial(fleet._hear, b.attendee, pb.AttendRequest(progress=progress))
    begun = while_it_closes(rig, monkeypatch, say)
    await rig.clock.jump(DEADLINE)
    await asyncio.wait_for(await begun, 10)
    (run,) = rig.engine.runs.values()
    assert second.assignment_id in run.late


async def test_an_update_that_became_durable_while_its_round_closed_is_not_sent_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await rig.attend("a", "b")
    await folding(rig)
    first, second = await a.assigned(), await b.assigned()
    await a.deliver(first)
    stay(rig, second)
    answer = await b.offered(second, change(rig, 0.5))
    assert answer.verdict == pb.OFFER_VERDICT_SEND
    accept, calls = rig.uploads._accept, list[tuple[Any, ...]]()

    async def late_by_a_moment(*arguments: Any) -> Any:
        if calls:
            return await accept(*arguments)
        calls.append(arguments)
        stay(rig, second)
        begun = while_it_closes(rig, monkeypatch, lambda: accept(*arguments))
        await rig.clock.jump(DEADLINE)
        return await (await begun)

    monkeypatch.setattr(rig.uploads, "_accept", late_by_a_moment)
    receipt = await rig.uploads.received(
        b.header(second, change(rig, 0.5)), stream(change(rig, 0.5))
    )
    assert receipt.state == A.LATE


async def test_a_base_that_became_too_old_is_awaited_no_more(rig: Rig) -> None:
    """Its client trains on while versions are made, in every one of which it could say so."""
    a, b = await rig.attend("a", "b")
    job = await folding(rig, "largest_staleness = 1", count="5")
    late = await past_the_deadline(rig, 1, a, b, job)
    await a.deliver(await a.assigned())
    await rig.ended(job, 2)
    assert (await b.next("cancel")).cancel.assignment_id == late.assignment_id
    answer = await b.offered(late, change(rig, 0.5))
    assert answer.verdict == pb.OFFER_VERDICT_NOT_NEEDED
    row = row_of(await rig.round(job, 1), "b")
    assert (row.state, row.update_size_bytes) == (A.LATE, None)


async def test_what_was_sent_is_counted_when_a_late_update_is_rejected(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    job = await folding(rig, "largest_norm = 0.001")
    first, second = await a.assigned(), await b.assigned()
    (run,) = rig.engine.runs.values()
    assert run.round is not None
    run.round.assignments[second.assignment_id].bytes_down = 1000
    await a.deliver(first, change(rig, 0.0))
    stay(rig, second)
    await rig.clock.jump(DEADLINE)
    assert (await rig.ended(job, 1)).bytes_down == 1000
    run.late[second.assignment_id].bytes_down = 1500  # it goes on to fetch
    with pytest.raises(Exception, match="norm"):
        await b.deliver(second, change(rig, 0.5))
    assert (await rig.round(job, 1)).bytes_down == 1500
    assert not verify(rig.world.database, rig.world.blobs).findings


async def test_what_was_sent_before_a_late_client_was_forgotten_stays_counted(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    job = await folding(rig)
    first, second = await a.assigned(), await b.assigned()
    (run,) = rig.engine.runs.values()
    assert run.round is not None
    run.round.assignments[second.assignment_id].bytes_down = 1000
    await a.deliver(first)
    stay(rig, second)
    await rig.clock.jump(DEADLINE)
    await rig.ended(job, 1)
    run.late.clear()
    await b.deliver(second, change(rig, 0.5))
    assert (await rig.round(job, 1)).bytes_down == 1000


async def test_a_late_receipt_is_given_again_while_its_own_round_still_closes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await rig.attend("a", "b")
    job = await folding(rig)
    first, second = await a.assigned(), await b.assigned()
    await a.deliver(first)
    stay(rig, second)
    folds, goes_on = held_up_fold(rig, monkeypatch)
    await rig.clock.jump(DEADLINE)
    await asyncio.wait_for(folds.wait(), 10)
    receipt = await b.deliver(second, change(rig, 0.5))
    assert receipt.state == A.LATE
    again = await b.offered(second, change(rig, 0.5))
    goes_on.set()
    assert (again.verdict, again.receipt) == (pb.OFFER_VERDICT_HAVE_IT, receipt)
    assert (await rig.ended(job, 1)).state is RoundState.COMMITTED


async def test_no_late_update_is_taken_while_the_last_round_closes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later round folds it, whatever its receipt would say."""
    a, b = await rig.attend("a", "b")
    job = await folding(rig)
    late = await past_the_deadline(rig, 1, a, b, job)
    work = await a.assigned()
    folds, goes_on = held_up_fold(rig, monkeypatch)
    await a.deliver(work)
    await asyncio.wait_for(folds.wait(), 10)
    answer = await b.offered(late, change(rig, 0.5))
    goes_on.set()
    assert answer.verdict == pb.OFFER_VERDICT_NOT_NEEDED
    assert (await rig.ended(job, 2)).state is RoundState.COMMITTED


async def test_an_update_that_may_still_come_late_stays_referred_to(rig: Rig) -> None:
    """A collection between its becoming a blob and its acceptance would take the blob."""
    a, b = await rig.attend("a", "b")
    job = await folding(rig, count="5")
    late = await past_the_deadline(rig, 1, a, b, job)
    assert (await b.offered(late, change(rig, 0.5))).verdict == pb.OFFER_VERDICT_SEND
    await a.deliver(await a.assigned())
    await rig.ended(job, 2)
    await rig.world.database.write(lambda s: release_updates(s, 0))
    assert not row_of(await rig.round(job, 1), "b").update_collected
    await rig.engine.change(job, JobState.CANCELLED, "enough")
    await rig.world.database.write(lambda s: release_updates(s, 0))
    assert row_of(await rig.round(job, 1), "b").update_collected


async def test_a_client_that_returns_with_late_work_is_not_drawn_before_that_is_known(
    rig: Rig,
) -> None:
    a, b = await rig.attend("a", "b")
    job = await folding(rig)
    late = await past_the_deadline(rig, 1, a, b, job)
    rig.engine.runs[job].late.clear()
    rig.world.attendance.leave(b.attendee)
    b.attendee.hello.held_assignment_id = late.assignment_id
    fleet = FleetService(rig.engine, rig.uploads, insecure=True)
    stream_ends = asyncio.Event()

    async def requests() -> AsyncIterator[pb.AttendRequest]:
        yield pb.AttendRequest(hello=b.attendee.hello)
        await stream_ends.wait()

    messages = fleet.Attend(requests(), None)
    assert (await anext(messages)).WhichOneof("message") == "welcome"
    assert rig.world.attendance.get(b.attendee.client_id) is not None
    assert late.assignment_id in rig.engine.runs[job].late
    stream_ends.set()
    assert [one async for one in messages] == []


async def test_a_late_update_of_other_weights_asks_for_no_training(rig: Rig) -> None:
    """Its device trained for another database: this one has no such work to give any more."""
    a, b = await rig.attend("a", "b")
    job = await folding(rig)
    late = await past_the_deadline(rig, 1, a, b, job)
    await a.assigned()
    request = b.offer(late, change(rig, 0.5))
    request.base_weights_digest = "0" * 64
    found = rig.engine.find(late.assignment_id, b.attendee.client_id)
    assert found is not None
    answer = await rig.uploads.offered(*found, request)
    assert answer.verdict == pb.OFFER_VERDICT_NOT_NEEDED
    assert b.attendee.outbox.empty()
    assert late.assignment_id not in rig.engine.runs[job].late
