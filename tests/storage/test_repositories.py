"""Clients, plans, jobs and rounds: what is written, and what is refused. Over both databases."""

import math
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from headwater.errors import ConflictError, NotFoundError
from storage import blobs, clients, history, jobs, plans, rounds
from storage.names import slug
from storage.records import (
    AssignmentState,
    Fate,
    JobState,
    MetricScope,
    MetricValue,
    NewVersion,
    RoundPurpose,
    RoundRecord,
    RoundState,
    UpdateFacts,
)
from tests.storage.world import START, World, digest

A = AssignmentState


@pytest.fixture
def fleet(world: World) -> World:
    world.client("b")
    world.client("a")
    return world


class TestClients:
    def test_a_client_is_written_as_it_says_and_keeps_its_first_time(self, world: World) -> None:
        first = world.client("north")
        again = world.client("north")
        assert first.tags == {"site": "north"} and first.profile["memory_gib"] == 4.5
        assert first.first_seen_at == START + timedelta(seconds=1)
        assert again.first_seen_at == first.first_seen_at < again.last_seen_at
        assert [event.kind for event in world.read(history.events)] == ["client.registered"]

    def test_a_name_that_is_taken_gets_a_number_and_keeps_it(self, world: World) -> None:
        names = [world.client("n", f"id-{number}").name for number in range(3)]
        assert names == ["n", "n-2", "n-3"]
        world.client("other", "id-0")
        assert world.client("n", "id-1").name == "n-2"

    def test_seen_writes_the_time(self, fleet: World) -> None:
        later = fleet.now + timedelta(minutes=1)
        fleet.write(lambda s: clients.seen(s, client_ids={"id-a": later, "id-unknown": later}))
        assert fleet.read(lambda s: history.client(s, "a")).last_seen_at == later

    def test_ineligibility_is_written_when_it_changes(self, fleet: World) -> None:
        def set_reason(reason: str | None) -> list[str]:
            now = fleet.tick()
            return fleet.write(
                lambda s: clients.set_ineligible(s, reasons={"id-a": reason, "id-b": None}, now=now)
            )

        assert set_reason("no data set 'digits'") == ["id-a"]
        since = fleet.now
        assert set_reason("no data set 'digits'") == []
        client = fleet.read(lambda s: history.client(s, "id-a"))
        assert (client.ineligible_reason, client.ineligible_since) == (
            "no data set 'digits'",
            since,
        )
        assert set_reason(None) == ["id-a"]
        assert fleet.read(lambda s: history.client(s, "a")).ineligible_since is None

    def test_a_shared_identity_is_counted_and_told(self, fleet: World) -> None:
        def share(client_id: str) -> Callable[[Session], object]:
            return lambda s: clients.record_shared_identity(
                s, client_id=client_id, instance_id="2", hostname="copy", now=fleet.now
            )

        fleet.write(share("id-a"))
        assert fleet.read(lambda s: history.client(s, "a")).displaced_count == 1
        event = fleet.read(history.events)[0]
        assert event.kind == "client.shared_identity" and event.client_name == "a"
        assert "two devices share the identity of client a: host-a and copy" in event.message
        with pytest.raises(NotFoundError, match="there is no client 'id-z'"):
            fleet.write(share("id-z"))


class TestPlans:
    def test_a_plan_is_written_once(self, world: World) -> None:
        first, again = world.plan(), world.plan()
        plan = world.read(lambda s: plans.get(s, digest=first))
        assert first == again == plan.digest
        assert plan.members == {"train.onnx": digest("plan train")} and plan.size_bytes == 10

    def test_a_plan_without_its_members_is_refused(self, world: World) -> None:
        with pytest.raises(ConflictError, match=r"as train\.onnx, which was not sent"):
            world.write(
                lambda s: plans.add(
                    s,
                    digest=digest("p"),
                    name="p",
                    manifest="{}",
                    members={"train.onnx": digest("nothing")},
                    now=START,
                )
            )
        with pytest.raises(NotFoundError, match="there is no plan"):
            world.read(lambda s: plans.get(s, digest=digest("p")))


class TestJobs:
    def test_a_job_begins_queued_with_version_0(self, world: World) -> None:
        job = world.job("My Digits!", running=False)
        assert (job.reference, job.state, job.latest_version) == ("my-digits", "queued", 0)
        assert job.latest_weights_digest == digest("initial") and job.spec["rounds"]["count"] == 3
        assert world.read(lambda s: history.model(s, "my-digits@0")).parent is None

    def test_references_are_unique(self, world: World) -> None:
        references = [world.job(name).reference for name in ("a b", "A-B", "a-b-2", "a b")]
        assert references == ["a-b", "a-b-2", "a-b-2-2", "a-b-3"]

    @pytest.mark.parametrize(
        ("name", "expected"), [("Für Elise", "f-r-elise"), ("---", "job"), ("a.b_c", "a.b_c")]
    )
    def test_a_reference_can_be_typed(self, name: str, expected: str) -> None:
        assert slug(name) == expected

    def test_a_job_can_begin_from_another_ones_version(self, world: World) -> None:
        first = world.job("first")
        second = world.write(
            lambda s: jobs.submit(
                s,
                name="second",
                job_file="",
                spec={},
                plan_digest=first.plan_digest,
                dataset="digits",
                seed=1,
                weights_digest=first.latest_weights_digest,
                weights_size_bytes=4,
                parent_version_id=first.latest_version_id,
                now=START,
            )
        )
        assert world.read(lambda s: history.model(s, second.reference)).parent == "first@0"

    def test_times_follow_the_state(self, world: World) -> None:
        job = world.job(running=False)
        started = world.state(job.reference, JobState.RUNNING)
        world.state(job.reference, JobState.PAUSED, "operator")
        world.state(job.reference, JobState.RUNNING)
        ended = world.state(job.reference, JobState.COMPLETED, "3 rounds")
        assert ended.started_at == started.started_at and ended.ended_at == world.now
        assert ended.state_reason == "3 rounds"
        with pytest.raises(ConflictError, match=r"job digits has ended .completed. and cannot"):
            world.state(job.reference, JobState.RUNNING)

    def test_unfinished_jobs_are_listed_for_a_restart(self, world: World) -> None:
        for name in ("one", "two", "three"):
            world.job(name)
        world.state("two", JobState.CANCELLED)
        world.state("three", JobState.PAUSED)
        assert [job.reference for job in world.read(jobs.unfinished)] == ["one", "three"]

    def test_unknown_things_are_refused(self, world: World) -> None:
        job = world.job()

        def submit(plan_digest: str, parent: int | None) -> None:
            world.write(
                lambda s: jobs.submit(
                    s,
                    name="x",
                    job_file="",
                    spec={},
                    plan_digest=plan_digest,
                    dataset="d",
                    seed=1,
                    weights_digest=digest("w"),
                    weights_size_bytes=1,
                    parent_version_id=parent,
                    now=START,
                )
            )

        with pytest.raises(ConflictError, match="names plan none, which was not sent"):
            submit("none", None)
        with pytest.raises(ConflictError, match="starts from version 99: unknown"):
            submit(job.plan_digest, 99)
        with pytest.raises(NotFoundError, match="there is no job 'digit'; there is digits"):
            world.state("digit", JobState.PAUSED)


class TestRounds:
    def test_indices_follow_names_and_are_never_reused(self, fleet: World) -> None:
        job = fleet.job()
        fleet.client("0-late")
        first = fleet.open_round(job, 1, ["id-b", "id-a"])
        assert [(a.client_name, a.client_index) for a in first.assignments] == [("a", 0), ("b", 1)]
        indices = fleet.write(
            lambda s: rounds.participant_indices(
                s, job_id=job.id, client_ids=["id-b", "id-0-late"], now=fleet.now
            )
        )
        assert indices == {"id-0-late": 2, "id-b": 1}
        with pytest.raises(NotFoundError, match="not registered: id-x, id-y"):
            fleet.write(
                lambda s: rounds.participant_indices(
                    s, job_id=job.id, client_ids=["id-y", "id-x"], now=fleet.now
                )
            )

    def test_a_round_from_opening_to_commit(self, fleet: World) -> None:
        job = fleet.job()
        step = fleet.open_round(job)
        assert step.state is RoundState.OPEN and step.not_selected == {"busy": 3}
        assert step.base_weights_digest == digest("initial") and step.offered == 2
        first, second = step.assignments
        assert first.seed == 2**63 - 1 and first.state is A.OFFERED
        fleet.write(
            lambda s: rounds.advance_assignment(
                s, assignment_id=first.id, state=A.TRAINING, now=fleet.tick(), fetch_seconds=0.5
            )
        )
        fleet.accept(first.id, update_norm=0.25, train_seconds=2.0)
        fleet.close(step)
        done = fleet.commit(step, [first.id])
        one, two = done.assignments
        assert (done.state, done.version, done.base_version) == (RoundState.COMMITTED, 1, 0)
        assert (done.accepted, done.examples, done.bytes_up, done.bytes_down) == (1, 32, 100, 50)
        assert done.seconds and done.ended_at == fleet.now
        assert done.coordinator_metrics == {"accuracy": 0.5, "loss": 0.5}
        assert done.train_metrics == {"loss": 1.5} and done.client_metrics == {}
        assert (one.state, one.weight, one.update_norm) == (A.ACCEPTED, 0.5, 0.25)
        assert one.training_at and one.metrics_before == {"loss": 2.0}
        assert (two.id, two.state, two.weight) == (second.id, A.EXPIRED, None)
        assert two.reason == "no answer before the round ended"
        job = fleet.read(lambda s: jobs.by_reference(s, reference=job.reference))
        assert (job.latest_version, job.rounds_committed, job.last_round_number) == (1, 1, 1)
        assert job.latest_weights_digest == digest("weights digits 1")

    def test_acceptance_is_idempotent_for_the_same_update_only(self, fleet: World) -> None:
        step = fleet.open_round(fleet.job())
        assignment = step.assignments[0].id
        receipt = fleet.accept(assignment, "mine")
        again = fleet.accept(assignment, "mine")
        assert not receipt.repeated and again.repeated
        assert (again.digest, again.size_bytes) == (receipt.digest, receipt.size_bytes)
        assert again.accepted_at == receipt.accepted_at
        with pytest.raises(ConflictError, match="is another and is refused"):
            fleet.accept(assignment, "another")
        fleet.close(step)
        fleet.commit(step, [assignment])
        assert fleet.accept(assignment, "mine").accepted_at == receipt.accepted_at

    def test_an_update_after_the_close_is_refused_as_late(self, fleet: World) -> None:
        step = fleet.open_round(fleet.job())
        fleet.accept(step.assignments[0].id)
        fleet.close(step)
        with pytest.raises(ConflictError, match="round 1 is closing: the update of assignment"):
            fleet.accept(step.assignments[1].id)

    def test_a_rejected_update_keeps_its_evidence(self, fleet: World) -> None:
        step = fleet.open_round(fleet.job())
        row = fleet.write(
            lambda s: rounds.advance_assignment(
                s,
                assignment_id=step.assignments[0].id,
                state=A.REJECTED,
                reason="values that are not finite",
                now=fleet.tick(),
                evidence="block 3 has 7 NaN",
                metrics_after={"loss": math.nan},
                update_norm=math.inf,
            )
        )
        assert (row.state, row.reason, row.evidence) == (
            A.REJECTED,
            "values that are not finite",
            "block 3 has 7 NaN",
        )
        assert math.isnan(row.metrics_after["loss"]) and row.update_norm == math.inf
        assert row.finished_at == fleet.now
        event = fleet.read(history.events)[0]
        assert event.kind == "update.rejected" and "not finite" in event.message
        assert event.data["evidence"] == "block 3 has 7 NaN" and event.round_number == 1

    def test_facts_can_be_written_without_a_change_of_state(self, fleet: World) -> None:
        step = fleet.open_round(fleet.job())

        def advance(state: AssignmentState, **facts: int) -> None:
            fleet.write(
                lambda s: rounds.advance_assignment(
                    s,
                    assignment_id=step.assignments[0].id,
                    state=state,
                    now=fleet.tick(),
                    **facts,  # type: ignore[arg-type]
                )
            )

        advance(A.TRAINING)
        advance(A.TRAINING, bytes_down=70)
        row = fleet.read(lambda s: rounds.get(s, round_id=step.id)).assignments[0]
        assert row.bytes_down == 70 and row.training_at == fleet.now - timedelta(seconds=1)
        with pytest.raises(ConflictError, match="training and cannot become offered"):
            advance(A.OFFERED)
        with pytest.raises(ConflictError, match="only with its update"):
            advance(A.ACCEPTED)

    def test_the_fold_can_still_reject_what_was_accepted(self, fleet: World) -> None:
        step = fleet.open_round(fleet.job())
        first, second = [assignment.id for assignment in step.assignments]
        fleet.accept(first)
        fleet.accept(second)
        fleet.close(step)
        done = fleet.write(
            lambda s: rounds.commit(
                s,
                round_id=step.id,
                version=NewVersion(digest("w"), 4),
                metrics=[MetricValue(MetricScope.TRAIN, "loss", math.nan)],
                weights_in_fold={first: 1.0},
                fates={second: Fate(A.REJECTED, "damaged", "block 0")},
                now=fleet.tick(),
            )
        )
        assert [a.state for a in done.assignments] == [A.ACCEPTED, A.REJECTED]
        assert done.accepted == 1 and math.isnan(done.train_metrics["loss"])

    def test_an_abandoned_round_changes_no_weights(self, fleet: World) -> None:
        job = fleet.job()
        step = fleet.open_round(job)
        fleet.accept(step.assignments[0].id)
        released = step.assignments[1].id
        done = fleet.write(
            lambda s: rounds.abandon(
                s,
                round_id=step.id,
                reason="quorum of 2 not reached",
                fates={released: Fate(A.RELEASED, "the round was abandoned")},
                now=fleet.tick(),
            )
        )
        assert (done.state, done.version, done.accepted) == (RoundState.ABANDONED, None, 1)
        assert [a.state for a in done.assignments] == [A.ACCEPTED, A.RELEASED]
        job = fleet.read(lambda s: jobs.by_reference(s, reference=job.reference))
        assert (job.latest_version, job.rounds_committed, job.last_round_number) == (0, 0, 1)
        assert fleet.read(lambda s: rounds.unfinished(s, job_id=job.id)) is None

    def test_the_first_end_of_an_assignment_counts(self, fleet: World) -> None:
        step = fleet.open_round(fleet.job())
        first, second = [assignment.id for assignment in step.assignments]
        fleet.write(
            lambda s: rounds.advance_assignment(
                s, assignment_id=first, state=A.DECLINED, reason="busy", now=fleet.tick()
            )
        )
        fates = {number: Fate(A.RELEASED, "not needed") for number in (first, second)}

        def abandon(fates: dict[int, Fate]) -> RoundRecord:
            return fleet.write(
                lambda s: rounds.abandon(
                    s, round_id=step.id, reason="cancelled", fates=fates, now=fleet.tick()
                )
            )

        with pytest.raises(NotFoundError, match=r"round 1 has no assignments \[999\]"):
            abandon({999: fates[first]})
        done = abandon(fates)
        assert [(a.state, a.reason) for a in done.assignments] == [
            (A.DECLINED, "busy"),
            (A.RELEASED, "not needed"),
        ]

    def test_an_evaluation_round_makes_no_version(self, fleet: World) -> None:
        job = fleet.job()
        fleet.whole_round(job, 1)
        step = fleet.open_round(job, 1, purpose=RoundPurpose.EVALUATE)
        fleet.close(step)
        done = fleet.write(
            lambda s: rounds.commit(
                s,
                round_id=step.id,
                version=None,
                metrics=[MetricValue(MetricScope.CLIENTS, "accuracy", 0.75, 64)],
                weights_in_fold={},
                fates={},
                now=fleet.tick(),
            )
        )
        assert done.version is None and done.client_metrics == {"accuracy": 0.75}
        model = fleet.read(lambda s: history.model(s, "digits@1"))
        assert model.metrics["clients.accuracy"] == 0.75

    def test_a_restart_finds_the_round_with_its_ledger(self, fleet: World) -> None:
        job = fleet.job()
        step = fleet.open_round(job)
        fleet.accept(step.assignments[1].id)
        found = fleet.read(lambda s: rounds.unfinished(s, job_id=job.id))
        assert found and found.id == step.id
        assert [a.state for a in found.assignments] == [A.OFFERED, A.ACCEPTED]

    def test_a_round_ends_once(self, fleet: World) -> None:
        job = fleet.job()
        step = fleet.open_round(job)
        with pytest.raises(ConflictError, match="round 1 is open and cannot become committed"):
            fleet.commit(step, [])
        with pytest.raises(ConflictError, match="round 1 of job digits has not ended"):
            fleet.open_round(job, 2)
        fleet.close(step)
        fleet.commit(step, [])
        with pytest.raises(ConflictError, match="round 1 is committed already"):
            fleet.commit(step, [])
        with pytest.raises(ConflictError, match="job digits had its train round 1 already"):
            fleet.open_round(job, 1)

    def test_a_failed_commit_leaves_the_round_as_it_was(self, fleet: World) -> None:
        step = fleet.open_round(fleet.job())
        fleet.accept(step.assignments[0].id)
        closed = fleet.close(step)
        with pytest.raises(ConflictError, match="is expired: it has no weight"):
            fleet.commit(step, [step.assignments[1].id])
        with pytest.raises(NotFoundError, match="round 1 has no assignment 999"):
            fleet.commit(step, [999])
        assert fleet.read(lambda s: rounds.get(s, round_id=step.id)) == closed

    def test_a_round_from_an_old_version_is_not_committed(self, fleet: World) -> None:
        job = fleet.job()
        fleet.whole_round(job, 1)
        step = fleet.open_round(job, 2)
        fleet.close(step)
        fleet.write(
            lambda s: s.execute(
                text("UPDATE rounds SET base_version_id = :base WHERE id = :id"),
                {"base": job.latest_version_id, "id": step.id},
            ).close()
        )
        with pytest.raises(
            ConflictError, match="began from version 0, and version 1 is the newest"
        ):
            fleet.commit(step, [])

    @pytest.mark.parametrize(
        "work",
        [
            lambda s: rounds.get(s, round_id=99),
            lambda s: rounds.close(s, round_id=99, reason="", now=START),
            lambda s: rounds.accept_update(
                s, assignment_id=99, update=UpdateFacts("d", 1, "fp32", 1), now=START
            ),
        ],
    )
    def test_unknown_ids_are_told(
        self, world: World, work: Callable[[Session], RoundRecord]
    ) -> None:
        with pytest.raises(NotFoundError, match="of id 99"):
            world.write(work)


class TestBlobs:
    def test_a_blob_has_one_size(self, world: World) -> None:
        def register(size: int) -> None:
            world.write(
                lambda s: blobs.register(s, digest="d", size_bytes=size, kind="k", now=START)
            )

        register(1)
        register(1)
        with pytest.raises(ConflictError, match="blob d has 1 bytes and was given again with 2"):
            register(2)

    def test_pins_are_each_holders_own(self, world: World) -> None:
        def pinned() -> bool:
            return world.read(lambda s: blobs.is_referenced(s, digest="d"))

        for holder in ("one", "one", "two"):
            world.write(lambda s, h=holder: blobs.pin(s, digest="d", holder=h, now=START))  # type: ignore[misc]
        world.write(lambda s: blobs.unpin(s, digest="d", holder="one"))
        world.write(lambda s: blobs.unpin(s, digest="d", holder="one"))
        assert pinned()
        world.write(lambda s: blobs.unpin_all(s, holder="two"))
        assert not pinned()
