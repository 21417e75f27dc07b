"""A history whose blobs are really in a store: all states of rounds, two jobs, nothing wrong."""

from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256

from sqlalchemy.orm import Session

from storage import blobs, history, jobs, plans, rounds
from storage.blob_directory import BlobDirectory
from storage.records import (
    AssignmentState,
    Fate,
    JobRecord,
    JobState,
    MetricScope,
    MetricValue,
    NewVersion,
    Offer,
    RoundPurpose,
    RoundRecord,
    UpdateFacts,
)
from tests.storage.world import World


@dataclass(frozen=True)
class StoredHistory:
    """The digests of what `make_history` made that tests damage."""

    update: str
    weights: str
    optimizer_state: str
    plan_member: str


class Author:
    """Makes jobs and rounds whose updates, weights and plans are files."""

    def __init__(self, world: World, store: BlobDirectory) -> None:
        self.world = world
        self.store = store

    def job(self, name: str, spec: dict[str, object] | None = None, parent: int = 0) -> JobRecord:
        train, manifest = b"train graph", b'{"name": "tiny"}'
        weights = f"weights {name} 0".encode()
        digests = {one: self.store.write(one) for one in (train, manifest, weights)}

        def submit(session: Session) -> JobRecord:
            for one in (train, manifest):
                blobs.register(
                    session,
                    digest=digests[one],
                    size_bytes=len(one),
                    kind="plan",
                    now=self.world.now,
                )
            plan = plans.add(
                session,
                digest=digests[manifest],
                name="tiny",
                manifest=manifest.decode(),
                members={"manifest.json": digests[manifest], "train.onnx": digests[train]},
                now=self.world.now,
            )
            return jobs.submit(
                session,
                name=name,
                job_file="",
                spec=spec or {},
                plan_digest=plan.digest,
                dataset="digits",
                seed=1,
                weights_digest=digests[weights],
                weights_size_bytes=len(weights),
                parent_version_id=parent or None,
                now=self.world.tick(),
            )

        job = self.world.write(submit)
        return self.world.state(job.reference, JobState.RUNNING)

    def open(
        self, job: JobRecord, number: int, purpose: RoundPurpose = RoundPurpose.TRAIN
    ) -> RoundRecord:
        fresh = self.world.read(lambda s: history.job(s, job.reference))
        return self.world.write(
            lambda s: rounds.open_round(
                s,
                job_id=job.id,
                number=number,
                purpose=purpose,
                base_version_id=fresh.latest_version_id,
                cohort=2,
                quorum=1,
                deadline_at=self.world.now + timedelta(minutes=1),
                offers=[Offer("id-a", seed=1), Offer("id-b", seed=2)],
                not_selected={},
                now=self.world.tick(),
            )
        )

    def accept(self, step: RoundRecord, at: int) -> int:
        """The update of one of the round's assignments, or its metrics; the assignment's id."""
        assignment = step.assignments[at].id
        content = f"update {step.job_reference} {step.number} {at}".encode()
        is_training = step.purpose is RoundPurpose.TRAIN
        update = UpdateFacts(
            digest=self.store.write(content) if is_training else "",
            size_bytes=len(content) if is_training else 0,
            encoding="fp32",
            examples=10 + at,
            metrics_before={"loss": 2.0},
            metrics_after={"loss": 1.0} if is_training else {},
            bytes_up=len(content) if is_training else 0,
            bytes_down=50,
        )
        self.world.write(
            lambda s: rounds.accept_update(
                s, assignment_id=assignment, update=update, now=self.world.tick()
            )
        )
        return assignment

    def invite(self, step: RoundRecord, at: int) -> None:
        """An update on its way: the ledger has its digest, the store nothing."""
        self.world.write(
            lambda s: rounds.advance_assignment(
                s,
                assignment_id=step.assignments[at].id,
                state=AssignmentState.UPLOADING,
                update_digest=sha256(b"on its way").hexdigest(),
                now=self.world.tick(),
            )
        )

    def commit(self, step: RoundRecord, folded: list[int], rejected: tuple[int, ...] = ()) -> None:
        content = f"weights {step.job_reference} {step.number}".encode()
        is_training = step.purpose is RoundPurpose.TRAIN
        version = NewVersion(self.store.write(content), len(content)) if is_training else None
        if version is not None and step.job_reference == "letters":
            state = f"state {step.job_reference} {step.number}".encode()
            version = replace(
                version,
                optimizer_state_digest=self.store.write(state),
                optimizer_state_size_bytes=len(state),
            )
        self.world.close(step)
        self.world.write(
            lambda s: rounds.commit(
                s,
                round_id=step.id,
                version=version,
                metrics=[MetricValue(MetricScope.CLIENTS, "loss", 2.0, 21)],
                weights_in_fold={one: 1 / len(folded) for one in folded} if is_training else {},
                fates={one: Fate(AssignmentState.REJECTED, "unsound") for one in rejected},
                now=self.world.tick(),
            )
        )

    def train(self, job: JobRecord, number: int) -> None:
        """A whole round of two updates."""
        step = self.open(job, number)
        self.commit(step, [self.accept(step, 0), self.accept(step, 1)])


def make_history(world: World, store: BlobDirectory) -> StoredHistory:
    """Job digits: rounds 1 and 2 committed, 3 abandoned, 4 open; evaluation round 3 committed.

    An update of round 2 was rejected by the fold, one of round 4 is accepted and one on its way.
    Job letters has a server optimizer, began from digits@1 and is completed after a round.
    """
    author = Author(world, store)
    for name in ("a", "b"):
        world.client(name)
    digits = author.job("digits")
    author.train(digits, 1)
    step = author.open(digits, 2)
    kept, unsound = author.accept(step, 0), author.accept(step, 1)
    author.commit(step, [kept], rejected=(unsound,))
    step = author.open(digits, 3)
    author.accept(step, 0)
    world.write(
        lambda s: rounds.abandon(s, round_id=step.id, reason="test", fates={}, now=world.tick())
    )
    step = author.open(digits, 3, RoundPurpose.EVALUATE)
    author.accept(step, 0)
    author.commit(step, [])
    step = author.open(digits, 4)
    author.accept(step, 0)
    author.invite(step, 1)
    spec = {"aggregation": {"server_optimizer": {"name": "momentum"}}}
    letters = author.job("letters", spec, parent=digits.latest_version_id)
    author.train(letters, 1)
    world.state("letters", JobState.COMPLETED)
    return StoredHistory(
        update=sha256(b"update digits 1 0").hexdigest(),
        weights=sha256(b"weights digits 1").hexdigest(),
        optimizer_state=sha256(b"state letters 1").hexdigest(),
        plan_member=sha256(b"train graph").hexdigest(),
    )
