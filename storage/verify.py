"""The checker: reads the database and the blobs, and tells all that contradicts itself.

It writes nothing, and may run beside a coordinator: the rows are read in one snapshot, and a blob
whose file is not as it should be counts only while a row still needs it. Collection writes that
nothing needs a blob before it removes the file.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from storage.blob_checks import (
    Reference,
    file_fault,
    needed_blobs,
    references,
    row_fault,
    still_needed,
)
from storage.blob_store import BlobStore
from storage.database import Database
from storage.findings import Finding, Place
from storage.job_checks import job_findings
from storage.round_checks import round_findings
from storage.schema import Assignment, Base, Job, Metric, ModelVersion, Round

ROUNDS_AT_ONCE = 100
"""Rounds whose ledgers are in memory at once."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at, and what is wrong with it. `bytes` is the size of all needed blobs."""

    jobs: int
    versions: int
    rounds: int
    assignments: int
    blobs: int
    bytes: int
    findings: list[Finding] = field(default_factory=list)


def verify(database: Database, store: BlobStore, *, quick: bool = False) -> Verification:
    """Check the rows against each other and the needed blobs against their rows; blocking.

    `quick`: look at the blobs' sizes, and do not read their bytes.

    Raises:
        StorageError: the database cannot be read.
    """
    report, needed = database.read_now(_rows)
    for one in needed:
        fault = file_fault(store, one.digest, one.size_bytes or 0, quick=quick)
        if fault and database.read_now(partial(still_needed, digest=one.digest)):
            report.findings.append(one.finding("blob files", fault))
    return report


def _rows(session: Session) -> tuple[Verification, list[Reference]]:
    """Everything that one snapshot tells, and each blob that it needs once."""
    findings = [*_history_findings(session), *_blob_row_findings(session)]
    registered = [one for one in needed_blobs(session).values() if one.size_bytes is not None]
    report = Verification(
        jobs=_count(session, Job),
        versions=_count(session, ModelVersion),
        rounds=_count(session, Round),
        assignments=_count(session, Assignment),
        blobs=len(registered),
        bytes=sum(one.size_bytes or 0 for one in registered),
        findings=findings,
    )
    return report, registered


def _blob_row_findings(session: Session) -> Iterator[Finding]:
    for reference in references(session):
        if fault := row_fault(reference):
            yield reference.finding("blob rows", fault)


def _count(session: Session, table: type[Base]) -> int:
    return session.scalar(select(func.count()).select_from(table)) or 0


def _history_findings(session: Session) -> Iterator[Finding]:
    for job in session.scalars(select(Job).order_by(Job.id)).all():
        versions = select(ModelVersion).where(ModelVersion.job_id == job.id)
        rounds = session.scalars(select(Round).where(Round.job_id == job.id).order_by(Round.id))
        of_job = rounds.all()
        in_order = session.scalars(versions.order_by(ModelVersion.number)).all()
        yield from job_findings(job, in_order, of_job)
        for batch in _batches(of_job):
            yield from _ledger_findings(session, Place(job.reference), batch)


def _ledger_findings(session: Session, job: Place, rounds: Sequence[Round]) -> Iterator[Finding]:
    ids = [one.id for one in rounds]
    ledgers, late, metrics = defaultdict(list), defaultdict(list), defaultdict(list)
    rows = select(Assignment).order_by(Assignment.id)
    for row in session.scalars(rows.where(Assignment.round_id.in_(ids))):
        ledgers[row.round_id].append(row)
    for row in session.scalars(rows.where(Assignment.folded_round_id.in_(ids))):
        late[row.folded_round_id].append(row)
    measured = select(Metric).where(Metric.round_id.in_(ids)).order_by(Metric.id)
    for metric in session.scalars(measured):
        metrics[metric.round_id].append(metric)
    for step in rounds:
        yield from round_findings(job, step, ledgers[step.id], late[step.id], metrics[step.id])


def _batches(rounds: Iterable[Round]) -> Iterator[list[Round]]:
    remaining = iter(rounds)
    while batch := list(islice(remaining, ROUNDS_AT_ONCE)):
        yield batch
