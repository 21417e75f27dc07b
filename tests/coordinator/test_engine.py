"""Rounds under a clock that jumps: deadlines, leases, recovery and what must not stop a job."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.engine import closing
from coordinator.engine.job_loop import RETRY_SECONDS, JobLoop
from coordinator.engine.live import JobRun
from coordinator.engine.policy import ABANDONED_IN_A_ROW
from coordinator.services.fleet import FleetService
from coordinator.services.pace import pace_seconds
from coordinator.services.upload import Upload
from headwater import steps
from headwater.errors import UnavailableError, UpdateError
from headwater.v1 import fleet_pb2 as pb
from storage import history, jobs
from storage import rounds as round_repository
from storage.database import Database, open_database
from storage.records import AssignmentState as A
from storage.records import JobState, RoundRecord, RoundState
from tests.coordinator.rig import DEADLINE, LEASE, Device, Rig, rigged, stream
from tests.plans import compile_case
from tests.system.device import frames_of, make_update
from tests.zoo import ZOO, batch


@pytest.fixture(scope="session")
def plan() -> CompiledPlan:
    optimizer = {"name": "sgd", "learning_rate": 0.1}
    return compile_case(ZOO["mlp"], "job", optimizer=optimizer, metrics=["accuracy"])


async def test_a_round_closes_at_its_deadline_with_its_quorum(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    job = await rig.submit()
    first, second = await a.assigned(), await b.assigned()
    assert (first.round_number, first.deadline_seconds) == (1, DEADLINE)
    await a.deliver(first)
    _keep_alive(rig, second)
    await rig.clock.jump(DEADLINE)
    ended = await rig.ended(job, 1)
    assert (ended.state, ended.reason) == (RoundState.COMMITTED, "1 accepted at the deadline")
    rows = {one.client_name: one for one in ended.assignments}
    assert rows["b"].state is A.EXPIRED
    assert rows["a"].weight == 1.0
    cancel = (await b.next("cancel")).cancel
    assert cancel.assignment_id == second.assignment_id


async def test_an_upload_under_way_has_its_grace_and_no_more(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    job = await rig.submit(deadline_seconds="100\ngrace_seconds = 10")
    await a.deliver(await a.assigned())
    second = await b.assigned()
    _keep_alive(rig, second, A.UPLOADING)
    await rig.clock.jump(DEADLINE + 9)
    assert (await rig.round(job, 1)).state is RoundState.OPEN
    await b.deliver(second)
    assert (await rig.ended(job, 1)).accepted == 2
    _keep_alive(rig, await a.assigned(), A.UPLOADING)
    _keep_alive(rig, await b.assigned(), A.UPLOADING)
    await rig.clock.jump(DEADLINE + 10)
    assert (await rig.ended(job, 2)).reason == (
        "0 accepted at the deadline, fewer than the quorum of 1"
    )


async def test_a_round_without_its_quorum_is_extended_as_often_as_the_policy_says(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    policy = '2\nwithout_quorum = "extend"\nextensions = 2'
    job = await rig.submit(quorum=policy, count="1")
    await a.deliver(await a.assigned())
    second = await b.assigned()
    for number in (1, 2):
        _keep_alive(rig, second)
        await rig.clock.jump(DEADLINE)
        await rig.told(job, f"extension {number} of 2")
    await b.deliver(second)
    ended = await rig.ended(job, 1)
    assert (ended.state, ended.accepted) == (RoundState.COMMITTED, 2)


async def test_an_extension_is_as_long_again_after_its_grace(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    policy = '2\nwithout_quorum = "extend"\nextensions = 2\ngrace_seconds = 250'
    job = await rig.submit(quorum=policy, count="1")
    await a.deliver(await a.assigned())
    second = await b.assigned()
    _keep_alive(rig, second, A.UPLOADING)
    await rig.clock.jump(DEADLINE + 250)
    await rig.told(job, "extension 1 of 2")
    record = await rig.round(job, 1)
    assert record.deadline_at == rig.clock.now() + timedelta(seconds=DEADLINE)


async def test_an_extension_after_a_restart_is_as_long_again(
    tmp_path: Path, database: Database, plan: CompiledPlan
) -> None:
    async with rigged(tmp_path, database, plan) as rig:
        a, b = await rig.attend("a", "b")
        policy = '2\nwithout_quorum = "extend"\nextensions = 2'
        job = await rig.submit(quorum=policy, count="1")
        await a.deliver(await a.assigned())
        second = await b.assigned()
        _keep_alive(rig, second)
        await rig.clock.jump(DEADLINE)
        await rig.told(job, "extension 1 of 2")
    later = Rig(tmp_path, database, plan)
    later.clock.seconds = 10 * DEADLINE
    await later.engine.start()
    b.rig = later
    await later.told(job, "extension 2 of 2")
    await b.deliver(second)
    ended = await later.ended(job, 1)
    assert (ended.state, ended.accepted) == (RoundState.COMMITTED, 2)
    await later.stop()


async def test_a_stored_part_that_takes_long_to_read_is_no_slow_stream(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, read = threading.Event(), threading.Event()

    def slowly(*arguments: object) -> Upload:
        reading.set()
        assert read.wait(20)
        return Upload(*arguments)  # type: ignore[arg-type]

    (device,) = await rig.attend("a")
    await rig.submit(cohort="1", deadline_seconds="100000")
    assignment, update = await device.assigned(), make_update(rig.plan.manifest.layout)
    found = rig.engine.find(assignment.assignment_id, device.attendee.client_id)
    assert found is not None
    await rig.uploads.offered(*found, device.offer(assignment, update))
    _keep_alive(rig, assignment, A.UPLOADING)
    monkeypatch.setattr("coordinator.services.uploads.Upload", slowly)
    header = device.header(assignment, update)
    receiving = asyncio.create_task(rig.uploads.received(header, stream(update)))
    assert await asyncio.to_thread(reading.wait, 20)
    await rig.clock.jump(2 * pace_seconds(rig.world.minimum_bytes_per_second))
    for _ in range(100):  # a watch that had begun would cut the stream now
        await asyncio.sleep(0)
    read.set()
    assert (await receiving).state == A.ACCEPTED


async def test_a_model_without_a_finite_loss_is_not_committed_and_the_job_pauses(
    rig: Rig, tmp_path: Path
) -> None:
    rig.held_out["data"] = str(_held_out(tmp_path))
    (a,) = await rig.attend("a")
    job = await rig.submit(cohort="1", evaluate='{ on = ["coordinator"] }')
    await a.deliver(await a.assigned(), make_update(rig.plan.manifest.layout, 1e30))
    ended = await rig.ended(job, 1)
    assert ended.state is RoundState.ABANDONED
    assert ended.reason.startswith("the held-out loss of its model is ")
    await rig.news(job, JobState.PAUSED)
    record = await rig.world.database.read(lambda s: history.job(s, job))
    assert record.latest_version == 0
    assert "version 0 stays" in record.state_reason
    assert not list((rig.folder / "blobs" / "temporary").iterdir())
    await rig.engine.change(job, JobState.RUNNING, "resumed")
    await a.deliver(await a.assigned())
    assert (await rig.ended(job, 2)).state is RoundState.COMMITTED


async def test_a_pause_that_the_database_refused_is_written_when_it_is_back(rig: Rig) -> None:
    refused: list[object] = []

    def refuse_once(step: str, subject: object) -> None:
        if step == "commit" and subject == "storage.jobs.set_state" and not refused:
            refused.append(subject)
            raise UnavailableError("the database is away")

    (a,) = await rig.attend("a")
    job = await rig.submit(cohort="1")
    await _abandon(rig, a, job, range(1, ABANDONED_IN_A_ROW))
    with steps.observed(refuse_once):
        await _abandon(rig, a, job, [ABANDONED_IN_A_ROW])
        await rig.news(job, "waits for the coordinator's storage")
        await rig.clock.jump(RETRY_SECONDS)
        await asyncio.wait_for(_idle(rig, job), 20)
    record = await rig.world.database.read(lambda s: history.job(s, job))
    assert refused and record.state is JobState.PAUSED
    assert record.state_reason == "5 rounds in a row were abandoned"
    assert record.last_round_number == ABANDONED_IN_A_ROW


async def test_a_commit_whose_answer_was_lost_is_told_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clients attend all the time: nothing but the fate says what their residuals become."""
    real, lost = rig.world.database.write, list[object]()

    async def write(work: Callable[..., Any]) -> Any:
        done = await real(work)
        if getattr(work, "func", None) is closing._write_commit and not lost:
            lost.append(work)
            raise UnavailableError("the database went away")
        return done

    monkeypatch.setattr(rig.world.database, "write", write)
    (a,) = await rig.attend("a")
    job = await rig.submit(cohort="1")
    assignment = await a.assigned()
    await a.deliver(assignment)
    await rig.news(job, "waits for the coordinator's storage")
    await rig.clock.jump(RETRY_SECONDS)
    fate = (await a.next("fate")).fate
    assert (fate.assignment_id, fate.state, fate.folded) == (
        assignment.assignment_id,
        A.ACCEPTED,
        True,
    )
    assert (await a.assigned()).round_number == 2


async def test_an_update_whose_round_has_not_ended_has_no_fate_yet(rig: Rig) -> None:
    """Neither where its job could not be taken up, and memory knows nothing of it."""
    a, b = await rig.attend("a", "b")
    job = await rig.submit()
    assignment = await a.assigned()
    await b.assigned()
    await a.deliver(assignment)
    run = rig.engine.runs.pop(job)
    fleet = FleetService(rig.engine, rig.uploads, insecure=True)
    hello = a.attendee.hello
    hello.awaited_assignment_ids[:] = [assignment.assignment_id]
    await fleet._send_awaited(a.attendee)
    hello.held_assignment_id = assignment.assignment_id
    await fleet._send_owed(a.attendee)
    assert a.attendee.outbox.empty()
    rig.engine.runs[job] = run


async def _abandon(rig: Rig, device: Device, job: str, numbers: Iterable[int]) -> None:
    """Let rounds pass without their update."""
    for number in numbers:
        _keep_alive(rig, await device.assigned())
        await rig.clock.jump(DEADLINE)
        assert (await rig.ended(job, number)).state is RoundState.ABANDONED


async def _idle(rig: Rig, job: str) -> None:
    """Return once the job waits for nothing of its own: it paused, or a round is open."""
    run = rig.engine.runs[job]
    while run.record.state is not JobState.PAUSED and run.round is None:
        await asyncio.sleep(0.01)


async def test_a_job_that_is_cancelled_while_it_pauses_ends(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator's word comes between the decision to pause and its writing."""
    (a,) = await rig.attend("a")
    job = await rig.submit(cohort="1")
    pause = JobLoop._pause

    async def cancelled_first(loop: JobLoop, run: JobRun, reason: str) -> bool:
        write = partial(
            jobs.set_state, reference=job, state=JobState.CANCELLED, reason="enough",
            now=rig.clock.now(),
        )  # fmt: skip
        await rig.world.database.write(write)
        return await pause(loop, run, reason)

    monkeypatch.setattr(JobLoop, "_pause", cancelled_first)
    await _abandon(rig, a, job, range(1, ABANDONED_IN_A_ROW + 1))
    while job in rig.engine.runs:
        await asyncio.sleep(0)
    record = await rig.world.database.read(lambda s: history.job(s, job))
    assert (record.state, record.state_reason) == (JobState.CANCELLED, "enough")


async def test_a_model_that_is_much_worse_is_not_committed(rig: Rig, tmp_path: Path) -> None:
    rig.held_out["data"] = str(_held_out(tmp_path))
    (a,) = await rig.attend("a")
    guard = '{ on = ["coordinator"] }\nguard = { metric = "loss", tolerance = 0.5 }'
    job = await rig.submit(cohort="1", evaluate=guard)
    await a.deliver(await a.assigned())
    assert (await rig.ended(job, 1)).state is RoundState.COMMITTED
    await a.deliver(await a.assigned(), make_update(rig.plan.manifest.layout, 3.0))
    ended = await rig.ended(job, 2)
    assert ended.state is RoundState.ABANDONED
    assert "worse than the best so far" in ended.reason
    await rig.news(job, JobState.PAUSED)


async def test_a_round_that_is_abandoned_for_its_model_pauses_the_job_in_the_same_write(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator is killed before it can write anything else."""

    async def killed(loop: JobLoop, run: JobRun, reason: str) -> bool:
        await asyncio.Event().wait()
        return False

    monkeypatch.setattr(JobLoop, "_pause", killed)
    rig.held_out["data"] = str(_held_out(tmp_path))
    (a,) = await rig.attend("a")
    guard = '{ on = ["coordinator"] }\nguard = { metric = "loss", tolerance = 0.5 }'
    job = await rig.submit(cohort="1", evaluate=guard)
    await a.deliver(await a.assigned())
    await a.deliver(await a.assigned(), make_update(rig.plan.manifest.layout, 3.0))
    assert (await rig.ended(job, 2)).state is RoundState.ABANDONED
    record = await rig.world.database.read(lambda s: history.job(s, job))
    assert record.state is JobState.PAUSED
    assert "version 1 stays. Look at the updates of that round" in record.state_reason


async def test_abandoned_rounds_are_counted_across_restarts(
    tmp_path: Path, database: Database, plan: CompiledPlan
) -> None:
    for number in range(1, ABANDONED_IN_A_ROW + 1):
        async with rigged(tmp_path, database, plan) as rig:
            (a,) = await rig.attend("a")
            job = await rig.submit(cohort="1") if number == 1 else "job"
            while not (owed := rig.engine.assignments_of(a.attendee.client_id)):
                await asyncio.sleep(0)
            owed[0][1].lease_ends = np.inf
            await rig.clock.jump(number * DEADLINE)
            assert (await rig.ended(job, number)).state is RoundState.ABANDONED
            if number < ABANDONED_IN_A_ROW:
                continue
            await rig.news(job, JobState.PAUSED)
            record = await rig.world.database.read(lambda s: history.job(s, "job"))
            assert record.state_reason == "5 rounds in a row were abandoned"
            await rig.engine.change(job, JobState.RUNNING, "resumed")
            found = partial(round_repository.abandoned_in_a_row, job_id=record.id)
            assert await rig.world.database.read(found) == 0


async def test_a_quorum_is_lowered_to_what_came(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    job = await rig.submit(quorum='2\nwithout_quorum = "lower"')
    await a.deliver(await a.assigned())
    _keep_alive(rig, await b.assigned())
    await rig.clock.jump(DEADLINE)
    ended = await rig.ended(job, 1)
    assert (ended.state, ended.accepted, ended.quorum) == (RoundState.COMMITTED, 1, 1)
    assert ended.reason.endswith("fewer than the quorum of 2, which is lowered")


async def test_the_learning_rate_follows_the_schedule_by_version(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """An abandoned round does not move it on; the round's record says what it was."""
    caplog.set_level("INFO", "headwater.round")
    (a,) = await rig.attend("a")
    schedule = '"reset"\nschedule = { name = "linear", warmup_rounds = 1, final_scale = 0.5 }'
    job = await rig.submit(cohort="1", count="3", optimizer_state=schedule)
    expected = {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.075}
    for number, rate in expected.items():
        assignment = await a.assigned()
        assert dict(assignment.hyperparameters) == pytest.approx({"learning_rate": rate})
        if number == 2:
            _keep_alive(rig, assignment)
            await rig.clock.jump(DEADLINE)
            assert (await rig.ended(job, number)).state is RoundState.ABANDONED
        else:
            await a.deliver(assignment)
            ended = await rig.ended(job, number)
            assert ended.train_metrics["learning_rate"] == pytest.approx(rate)
    assert "learning rate 0.1 (warmup, round 1 of 1)" in caplog.text
    assert "learning rate 0.075 (linear, round 2 of 2)" in caplog.text


async def test_a_silent_client_costs_one_lease_and_is_left_out_for_a_while(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    job = await rig.submit()
    first, _ = await a.assigned(), await b.assigned()
    await a.deliver(first)
    await rig.clock.jump(LEASE)
    rows = {one.client_name: one for one in (await rig.ended(job, 1)).assignments}
    assert (rows["b"].state, rows["b"].reason) == (A.EXPIRED, "no sign of life for 30 s")
    await a.deliver(await a.assigned())
    second = await rig.ended(job, 2)
    assert [one.client_name for one in second.assignments] == ["a"]
    assert any("it fell silent" in reason for reason in second.not_selected)


async def test_below_the_quorum_a_round_is_abandoned_and_after_five_the_job_pauses(
    rig: Rig,
) -> None:
    (a,) = await rig.attend("a")
    job = await rig.submit(cohort="1")
    base = (await rig.world.database.read(lambda s: history.job(s, job))).latest_weights_digest
    for number in range(1, ABANDONED_IN_A_ROW + 1):
        assignment = await a.assigned()
        assert assignment.weights_digest == base, "an abandoned round changes no weights"
        _keep_alive(rig, assignment)
        await rig.clock.jump(DEADLINE)
        assert (await rig.ended(job, number)).state is RoundState.ABANDONED
    await rig.news(job, JobState.PAUSED)
    record = await rig.world.database.read(lambda s: history.job(s, job))
    assert (record.state, record.state_reason) == (
        JobState.PAUSED, "5 rounds in a row were abandoned"
    )  # fmt: skip
    await rig.engine.change(job, JobState.RUNNING, "resumed")
    await a.deliver(await a.assigned())
    assert (await rig.ended(job, ABANDONED_IN_A_ROW + 1)).state is RoundState.COMMITTED


async def test_an_upload_that_is_too_slow_is_cut_and_goes_on_where_it_was(rig: Rig) -> None:
    (a,) = await rig.attend("a")
    job = await rig.submit(cohort="1", count="1", deadline_seconds="100000")
    assignment = await a.assigned()
    update = make_update(rig.plan.manifest.layout)
    frames = frames_of(update)
    offer, header = a.offer(assignment, update), a.header(assignment, update)
    found = rig.engine.find(assignment.assignment_id, a.attendee.client_id)
    assert found is not None
    await rig.uploads.offered(*found, offer)
    _keep_alive(rig, assignment)

    async def stalled() -> AsyncIterator[pb.SubmitRequest]:
        yield pb.SubmitRequest(frame=frames[0])
        await asyncio.Event().wait()

    receiving = asyncio.create_task(rig.uploads.received(header, stalled()))
    while found[1].lease_ends == np.inf:  # until the first frame has come
        await asyncio.sleep(0)
    _keep_alive(rig, assignment)
    seconds = pace_seconds(rig.world.minimum_bytes_per_second)
    await rig.clock.jump(seconds)
    if not receiving.done():
        await rig.clock.jump(seconds)
    with pytest.raises(UnavailableError, match="fewer than 10000 bytes a second came in 209"):
        await asyncio.wait_for(receiving, 20)
    answer = await rig.uploads.offered(*found, offer)
    assert answer.from_byte == 8 + len(frames[0].payload)
    await a.deliver(assignment, update)
    assert (await rig.ended(job, 1)).state is RoundState.COMMITTED


async def test_a_client_that_returns_before_its_update_is_folded_hears_of_it_once(rig: Rig) -> None:
    """It holds the update while it does not know that it was accepted."""
    a, b = await rig.attend("a", "b")
    job = await rig.submit(count="1")
    first = await a.assigned()
    await a.deliver(first)
    a.attendee.hello.held_assignment_id = first.assignment_id
    fleet = FleetService(rig.engine, rig.uploads, insecure=True)

    async def requests() -> AsyncIterator[pb.AttendRequest]:
        yield pb.AttendRequest(hello=a.attendee.hello)
        await asyncio.Event().wait()

    heard = fleet.Attend(requests(), None)
    assert (await anext(heard)).WhichOneof("message") == "welcome"
    coming = asyncio.create_task(anext(heard))
    await b.deliver(await b.assigned())
    assert (await rig.ended(job, 1)).accepted == 2
    assert (await asyncio.wait_for(coming, 20)).fate.folded
    await heard.aclose()


async def test_a_change_that_is_too_large_is_rejected_with_its_norm(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    job = await rig.submit(quorum="1\nlargest_norm = 50")
    await a.deliver(await a.assigned(), make_update(rig.plan.manifest.layout, 0.5))
    with pytest.raises(
        UpdateError, match=r"its change has the norm .*; rounds.largest_norm allows 50"
    ):
        await b.deliver(await b.assigned(), make_update(rig.plan.manifest.layout, 50.0))
    rows = {one.client_name: one for one in (await rig.ended(job, 1)).assignments}
    assert (rows["a"].state, rows["b"].state) == (A.ACCEPTED, A.REJECTED)
    assert rows["b"].update_norm is not None and rows["b"].update_norm > 50
    assert rows["b"].evidence == str(rig.folder / "quarantine" / f"{rows['b'].id}.update")


async def test_an_update_that_was_damaged_on_disk_is_left_out_and_the_round_goes_on(
    rig: Rig,
) -> None:
    a, b = await rig.attend("a", "b")
    job = await rig.submit()
    bad = make_update(rig.plan.manifest.layout, 0.5)
    await a.deliver(await a.assigned(), bad)
    path = rig.world.blobs.path(bad.digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    await b.deliver(await b.assigned())
    ended = await rig.ended(job, 1)
    assert ended.state is RoundState.COMMITTED
    rows = {one.client_name: one for one in ended.assignments}
    assert rows["a"].state is A.REJECTED
    assert "is damaged on disk" in rows["a"].reason
    assert rows["b"].weight == 1.0


async def test_held_out_data_that_is_not_bound_costs_metrics_and_not_the_round(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    job = await rig.submit(evaluate='{ on = ["coordinator"] }')
    for _ in range(2):
        await a.deliver(await a.assigned())
        await b.deliver(await b.assigned())
    assert (await rig.ended(job, 2)).state is RoundState.COMMITTED
    events = await rig.world.database.read(lambda s: history.events(s, job))
    told = [one.message for one in events if one.kind == "evaluation.failed"]
    assert told == ["no held-out data is bound: headwater serve --data data=PATH"]


async def test_a_cancelled_job_abandons_its_round_and_frees_its_clients(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    first = await rig.submit()
    await a.assigned()
    await rig.engine.change(first, JobState.CANCELLED, "enough")
    assert (await rig.ended(first, 1)).state is RoundState.ABANDONED
    await a.next("cancel")
    second = await rig.submit()
    await a.deliver(await a.assigned())
    await b.next("cancel")
    await b.deliver(await b.assigned())
    assert (await rig.ended(second, 1)).state is RoundState.COMMITTED


async def test_a_restart_goes_on_in_the_same_round_to_the_same_weights(
    tmp_path: Path, plan: CompiledPlan
) -> None:
    updates = [make_update(plan.manifest.layout, change) for change in (0.25, -0.5)]
    digests = []
    for name in ("undisturbed", "interrupted"):
        folder = tmp_path / name
        folder.mkdir()
        with open_database(f"sqlite:///{folder / 'headwater.db'}", create=True) as database:
            async with rigged(folder, database, plan) as rig:
                a, b = await rig.attend("a", "b")
                job = await rig.submit(count="1")
                await a.deliver(await a.assigned(), updates[0])
                waiting = await b.assigned()
                if name == "undisturbed":
                    await b.deliver(waiting, updates[1])
                    digests.append(await _digest(rig, job))
                    continue
            async with rigged(folder, database, plan) as again:
                (b,) = await again.attend("b")
                found = again.engine.assignments_of(b.attendee.client_id)
                assert [live.record.id for _, live in found] == [waiting.assignment_id]
                await b.deliver(waiting, updates[1])
                digests.append(await _digest(again, job))
    assert digests[0] == digests[1]


async def test_a_round_that_was_closing_is_folded_again_after_a_restart(
    tmp_path: Path, database: Database, plan: CompiledPlan
) -> None:
    async with rigged(tmp_path, database, plan) as rig:
        a, b = await rig.attend("a", "b")
        job = await rig.submit(count="1")
        await a.deliver(await a.assigned())
        await b.assigned()
    record = await _unfinished(database, job)
    await database.write(
        lambda s: round_repository.close(
            s, round_id=record.id, reason="it was closing", now=rig.clock.now()
        )
    )
    async with rigged(tmp_path, database, plan) as again:
        ended = await again.ended(job, 1)
    assert (ended.state, ended.reason) == (RoundState.COMMITTED, "it was closing")
    rows = {one.client_name: one for one in ended.assignments}
    assert (rows["a"].weight, rows["b"].state) == (1.0, A.EXPIRED)


async def test_a_job_stops_early_by_the_clients_measurements(rig: Rig) -> None:
    a, b = await rig.attend("a", "b")
    stop = '{ every = 1, on = ["clients"] }\nstop = { metric = "accuracy", patience = 1 }'
    job = await rig.submit(count="50", evaluate=stop)
    run = rig.engine.runs[job]
    for accuracy in (0.5, 0.5, 0.5, 0.5):
        for device in (a, b):
            assignment = await device.assigned()
            if assignment.purpose == pb.PURPOSE_EVALUATE:
                await _evaluate(rig, device, assignment, accuracy)
                continue
            await _deliver_measured(rig, device, assignment, accuracy)
        if run.record.rounds_committed == 2:
            break
    await rig.news(job, JobState.COMPLETED)
    record = await rig.world.database.read(lambda s: history.job(s, job))
    assert record.rounds_committed < 50


async def _deliver_measured(
    rig: Rig, device: Device, assignment: pb.Assignment, accuracy: float
) -> None:
    assert assignment.evaluate_before
    update = make_update(rig.plan.manifest.layout)
    found = rig.engine.find(assignment.assignment_id, device.attendee.client_id)
    assert found is not None
    metrics = {"loss": 1.0, "accuracy": accuracy}
    offer = pb.OfferRequest(
        assignment_id=assignment.assignment_id, client_id=device.attendee.client_id,
        digest=update.digest, size_bytes=len(update.encoded), encoding="fp32",
        summary=pb.UpdateSummary(examples=8, metrics_before=metrics, metrics_after=metrics),
    )  # fmt: skip
    answer = await rig.uploads.offered(*found, offer)
    header = pb.SubmitHeader(
        assignment_id=assignment.assignment_id, client_id=device.attendee.client_id,
        digest=update.digest, from_byte=answer.from_byte,
    )  # fmt: skip
    await rig.uploads.received(header, stream(update))


async def _evaluate(rig: Rig, device: Device, assignment: pb.Assignment, accuracy: float) -> None:
    found = rig.engine.find(assignment.assignment_id, device.attendee.client_id)
    assert found is not None
    metrics = {"loss": 1.0, "accuracy": accuracy}
    offer = pb.OfferRequest(
        assignment_id=assignment.assignment_id, client_id=device.attendee.client_id,
        encoding="fp32", summary=pb.UpdateSummary(examples=8, metrics_before=metrics),
    )  # fmt: skip
    answer = await rig.uploads.offered(*found, offer)
    assert answer.verdict == pb.OFFER_VERDICT_HAVE_IT


async def _digest(rig: Rig, job: str) -> str:
    await rig.ended(job, 1)
    return (await rig.world.database.read(lambda s: history.model(s, f"{job}@1"))).weights_digest


async def _unfinished(database: Database, job: str) -> RoundRecord:
    record = await database.read(lambda s: history.job(s, job))
    found = await database.read(lambda s: round_repository.unfinished(s, job_id=record.id))
    assert found is not None
    return found


def _keep_alive(rig: Rig, assignment: pb.Assignment, state: A | None = None) -> None:
    """Its client says Progress all the time: only the deadline ends its part."""
    for run in rig.engine.runs.values():
        if run.round and assignment.assignment_id in run.round.assignments:
            live = run.round.assignments[assignment.assignment_id]
            live.lease_ends = np.inf
            live.state = state or live.state


def _held_out(folder: Path) -> Path:
    path, examples = folder / "held-out.npz", batch(ZOO["mlp"], 16, 3)
    np.savez(path, features=examples.inputs[0], label=examples.targets[0])
    return path
