"""Short ways to put things into a database for the tests."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TypeVar

from sqlalchemy.orm import Session

from storage import blobs, clients, jobs, plans, rounds
from storage.database import Database
from storage.records import (
    ClientRecord,
    JobRecord,
    JobState,
    MetricScope,
    MetricValue,
    NewVersion,
    Offer,
    ReceiptRecord,
    RoundPurpose,
    RoundRecord,
    UpdateFacts,
)

T = TypeVar("T")
START = datetime(2026, 1, 1, tzinfo=UTC)


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


class World:
    """A database and a clock that goes on one second with each call."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.write = database.write_now
        self.read = database.read_now
        self.now = START

    def tick(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    def client(self, name: str, client_id: str | None = None) -> ClientRecord:
        return self.write(
            lambda s: clients.register(
                s,
                client_id=client_id or f"id-{name}",
                name=name,
                tags={"site": "north"},
                profile={"cores": 2, "memory_gib": 4.5},
                hostname=f"host-{name}",
                instance_id="instance-1",
                insecure=True,
                now=self.tick(),
            )
        )

    def plan(self, name: str = "plan") -> str:
        def add(session: Session) -> str:
            member = digest(f"{name} train")
            blobs.register(session, digest=member, size_bytes=10, kind="plan", now=self.now)
            return plans.add(
                session,
                digest=digest(name),
                name=name,
                manifest="{}",
                members={"train.onnx": member},
                now=self.now,
            ).digest

        return self.write(add)

    def job(self, name: str = "digits", *, running: bool = True) -> JobRecord:
        plan_digest = self.plan()
        job = self.write(
            lambda s: jobs.submit(
                s,
                name=name,
                job_file=f'name = "{name}"',
                spec={"rounds": {"count": 3}},
                plan_digest=plan_digest,
                dataset="digits",
                seed=1,
                weights_digest=digest("initial"),
                weights_size_bytes=4,
                now=self.tick(),
            )
        )
        return self.state(job.reference, JobState.RUNNING) if running else job

    def state(self, reference: str, state: JobState, reason: str = "test") -> JobRecord:
        return self.write(
            lambda s: jobs.set_state(
                s, reference=reference, state=state, reason=reason, now=self.tick()
            )
        )

    def open_round(
        self,
        job: JobRecord,
        number: int = 1,
        client_ids: Sequence[str] = ("id-a", "id-b"),
        purpose: RoundPurpose = RoundPurpose.TRAIN,
    ) -> RoundRecord:
        fresh = self.read(lambda s: jobs.by_reference(s, reference=job.reference))
        return self.write(
            lambda s: rounds.open_round(
                s,
                job_id=job.id,
                number=number,
                purpose=purpose,
                base_version_id=fresh.latest_version_id,
                cohort=2,
                quorum=1,
                deadline_at=self.now + timedelta(minutes=1),
                offers=[Offer(client_id, seed=2**63 - 1) for client_id in client_ids],
                not_selected={"busy": 3},
                now=self.tick(),
            )
        )

    def accept(self, assignment_id: int, content: str = "", **facts: float) -> ReceiptRecord:
        update = UpdateFacts(
            digest=digest(content or f"update {assignment_id}"),
            size_bytes=100,
            encoding="fp32",
            examples=32,
            metrics_before={"loss": 2.0},
            metrics_after={"loss": 1.0},
            bytes_up=100,
            bytes_down=50,
            **facts,  # type: ignore[arg-type]
        )
        return self.write(
            lambda s: rounds.accept_update(
                s, assignment_id=assignment_id, update=update, now=self.tick()
            )
        )

    def close(self, step: RoundRecord) -> RoundRecord:
        return self.write(
            lambda s: rounds.close(s, round_id=step.id, reason="cohort reached", now=self.tick())
        )

    def commit(
        self, step: RoundRecord, folded: Sequence[int], accuracy: float = 0.5
    ) -> RoundRecord:
        content = f"weights {step.job_reference} {step.number}"
        return self.write(
            lambda s: rounds.commit(
                s,
                round_id=step.id,
                version=NewVersion(digest(content), 4),
                metrics=[
                    MetricValue(MetricScope.COORDINATOR, "accuracy", accuracy, 10),
                    MetricValue(MetricScope.COORDINATOR, "loss", 1 - accuracy, 10),
                    MetricValue(MetricScope.TRAIN, "loss", 1.5, 64),
                ],
                weights_in_fold=dict.fromkeys(folded, 0.5),
                fates={},
                now=self.tick(),
            )
        )

    def whole_round(self, job: JobRecord, number: int, accuracy: float = 0.5) -> RoundRecord:
        step = self.open_round(job, number)
        ids = [assignment.id for assignment in step.assignments]
        for assignment_id in ids:
            self.accept(assignment_id, f"{job.reference} {number} {assignment_id}")
        self.close(step)
        return self.commit(step, ids, accuracy)
