"""What a committed round was made of, by its rows, and what of that a replay takes."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy.orm import Session

from coordinator.jobs.aggregation_spec import Aggregation
from coordinator.jobs.job_spec import JobSpec
from headwater.errors import ConflictError, NotFoundError, UsageError
from storage import history, plans
from storage.records import (
    AssignmentRecord,
    JobRecord,
    ModelRecord,
    PlanRecord,
    RoundPurpose,
    RoundRecord,
    RoundState,
)


@dataclass(frozen=True)
class CommittedRound:
    """A training round that made a version."""

    job: JobRecord
    spec: JobSpec
    record: RoundRecord
    plan: PlanRecord
    version: ModelRecord

    @property
    def folded(self) -> tuple[AssignmentRecord, ...]:
        """The ledger's rows whose updates are in the version: its own by index, then late ones."""
        return tuple(one for one in self.record.held if one.weight is not None)

    @property
    def clients(self) -> list[str]:
        """The names of the clients whose updates are in the version."""
        return list(dict.fromkeys(one.client_name for one in self.folded))

    @property
    def name(self) -> str:
        """The round as messages name it."""
        return f"round {self.record.number} of job {self.job.reference}"


def committed_round(session: Session, reference: str, number: int) -> CommittedRound:
    """A round that can be replayed, from one snapshot of the database.

    Raises:
        NotFoundError: there is no such job or round.
        ConflictError: the round made no version: it only evaluated, was abandoned, or goes on.
    """
    job = history.job(session, reference)
    record = _training_round(session, reference, number)
    if record.state is RoundState.ABANDONED:
        raise ConflictError(
            f"round {number} of job {reference} was abandoned and changed no weights, so there is "
            f"nothing to replay: {record.reason}"
        )
    if record.version is None:
        raise ConflictError(
            f"round {number} of job {reference} is {record.state}: replay it once it is committed"
        )
    return CommittedRound(
        job=job,
        spec=JobSpec.from_dict(job.spec),
        record=record,
        plan=plans.get(session, digest=job.plan_digest),
        version=history.model(session, f"{reference}@{record.version}"),
    )


def _training_round(session: Session, reference: str, number: int) -> RoundRecord:
    try:
        return history.round(session, reference, number)
    except NotFoundError:
        evaluations = history.rounds(session, reference, purpose=RoundPurpose.EVALUATE)
        if number in {one.number for one in evaluations}:
            raise ConflictError(
                f"round {number} of job {reference} evaluated a version and changed no weights, so "
                "there is nothing to replay"
            ) from None
        raise


@dataclass(frozen=True)
class WhatIf:
    """What to change: clients to leave out by name, the rule, and its trim. Nothing by default."""

    without: tuple[str, ...] = ()
    rule: str | None = None
    trim: float | None = None

    def __bool__(self) -> bool:
        """Whether anything is changed."""
        return bool(self.without) or self.rule is not None or self.trim is not None


def kept_updates(step: CommittedRound, without: Collection[str]) -> list[AssignmentRecord]:
    """The updates of a round without those of some clients.

    Raises:
        NotFoundError: the round folded no update of such a client, or retention has removed one
            that is needed.
        UsageError: no update is left.
    """
    clients = ", ".join(step.clients)
    for stranger in sorted(set(without) - set(step.clients)):
        raise NotFoundError(
            f"--without {stranger}: no update of this client is in {step.name}, which folded those "
            f"of {clients}"
        )
    kept = [one for one in step.folded if one.client_name not in without]
    if not kept:
        raise UsageError(
            f"--without leaves no update of {step.name}, which folded those of {clients}"
        )
    if any(one.update_collected for one in kept):
        raise NotFoundError(
            f"the updates of {step.name} were collected: only those of a job's last rounds are "
            "kept. To replay older rounds in future, start the coordinator with a larger "
            "`headwater serve --keep-update-rounds`"
        )
    return kept


def aggregation_of(own: Aggregation, what_if: WhatIf, updates: int) -> Aggregation:
    """The job's own aggregation with what is to be changed of it.

    Another rule than the mean goes without the job's server optimizer.

    Raises:
        UsageError: the rule has no trim, or means nothing for so few updates.
    """
    rule = what_if.rule or own.rule
    kept_trim = own.trim if rule == own.rule else None
    made = Aggregation(
        rule=rule,
        trim=kept_trim if what_if.trim is None else what_if.trim,
        server_optimizer=own.server_optimizer if rule == "weighted_mean" else None,
    )
    for fault in made.faults():
        raise UsageError(f"--{fault.path[0]}: {fault.message}")
    if refusal := made.chosen.refusal(updates):
        raise UsageError(f"--trim: {refusal}")
    return made
