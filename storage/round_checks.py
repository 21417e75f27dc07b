"""What must hold of a round and its ledger: pure checks of their rows."""

from collections.abc import Iterator, Sequence
from itertools import chain
from math import fsum, isfinite

from storage.findings import Finding, Place
from storage.records import AssignmentState, RoundPurpose, RoundState
from storage.schema import Assignment, Metric, Round
from storage.transitions import UNFINISHED_ASSIGNMENTS, UNFINISHED_ROUNDS

WEIGHT_TOLERANCE = 1e-9
"""How far the weights of a fold may be from a sum of 1."""

_TAKEN = (AssignmentState.LATE, AssignmentState.REJECTED)


def round_findings(
    job: Place,
    step: Round,
    ledger: Sequence[Assignment],
    late: Sequence[Assignment],
    metrics: Sequence[Metric],
) -> Iterator[Finding]:
    """What is wrong with a round, given its whole ledger, what it took late, and its metrics."""
    place = job.of_round(step)
    yield from _names(place, step)
    if step.state in set(RoundState):
        yield from _times(place, step)
    if step.state not in UNFINISHED_ROUNDS:
        yield from _totals(place, step, ledger, late)
    yield from _weights(job, step, ledger, late)
    for metric in metrics:
        if not isfinite(metric.value):
            yield place.finding("metrics", f"its {metric.scope} {metric.name} is {metric.value}")
    for row in ledger:
        yield from _assignment(job.of_round(step, row.id), step, row)


def _names(place: Place, step: Round) -> Iterator[Finding]:
    if step.state not in set(RoundState):
        yield place.finding("round state", f"its state is {step.state!r}, which no round has")
    if step.purpose not in set(RoundPurpose):
        yield place.finding("round state", f"its purpose is {step.purpose!r}, which no round has")


def _times(place: Place, step: Round) -> Iterator[Finding]:
    """A round has the time of its closing unless it is open, and of its end once it has one."""
    is_closed = step.state != RoundState.OPEN
    has_ended = step.state not in UNFINISHED_ROUNDS
    for name, time, expected in (
        ("closed_at", step.closed_at, is_closed),
        ("ended_at", step.ended_at, has_ended),
    ):
        if (time is not None) != expected:
            words = "no" if expected else "a"
            yield place.finding("round state", f"it is {step.state} and has {words} {name}")


def _totals(
    place: Place, step: Round, ledger: Sequence[Assignment], late: Sequence[Assignment]
) -> Iterator[Finding]:
    folded = [row for row in _held(ledger, late) if row.weight is not None]
    totals = (
        ("offered", step.offered, len(ledger)),
        ("accepted", step.accepted, len(_accepted(ledger))),
        ("examples", step.examples, sum(row.examples or 0 for row in folded)),
        ("bytes_down", step.bytes_down, sum(row.bytes_down for row in ledger)),
        ("bytes_up", step.bytes_up, sum(row.bytes_up for row in ledger)),
    )
    for name, said, counted in totals:
        if said != counted:
            yield place.finding("round totals", f"its {name} is {said}; its ledger says {counted}")


def _weights(
    job: Place, step: Round, ledger: Sequence[Assignment], late: Sequence[Assignment]
) -> Iterator[Finding]:
    """The updates that a committed training round holds have shares of its mean, no others do."""
    is_mean = step.state == RoundState.COMMITTED and step.purpose == RoundPurpose.TRAIN
    folded = {row.id: row for row in _held(ledger, late)} if is_mean else {}
    elsewhere = {row.id for row in ledger if row.folded_round_id not in (None, step.id)}
    for row in {row.id: row for row in (*ledger, *late)}.values():
        here = job.of_round(step, row.id)
        if row.weight is None and row.id in folded:
            yield here.finding("fold weights", "it was accepted and has no weight in the fold")
        if row.weight is not None and row.id not in folded and row.id not in elsewhere:
            yield here.finding("fold weights", "it has a weight in a fold and no part in one")
    total = fsum(row.weight or 0.0 for row in folded.values())
    if is_mean and not abs(total - 1) <= WEIGHT_TOLERANCE:  # NaN too
        yield job.of_round(step).finding("fold weights", f"its fold weights add up to {total!r}")


def _assignment(place: Place, step: Round, row: Assignment) -> Iterator[Finding]:
    if row.state not in set(AssignmentState):
        yield place.finding(
            "assignment state", f"its state is {row.state!r}, which no assignment has"
        )
        return
    is_pending = row.state in UNFINISHED_ASSIGNMENTS
    if is_pending and step.state not in UNFINISHED_ROUNDS:
        yield place.finding("assignment state", f"it is {row.state} in a round that has ended")
    if is_pending == (row.finished_at is not None):
        words = "a" if is_pending else "no"
        yield place.finding("assignment state", f"it is {row.state} and has {words} finished_at")
    if row.state == AssignmentState.ACCEPTED or row.folded_round_id is not None:
        yield from _acceptance(place, step, row)
    if row.folded_round_id is not None and row.state not in _TAKEN:
        yield place.finding("assignment state", f"it is {row.state} and a later round took it")


def _acceptance(place: Place, step: Round, row: Assignment) -> Iterator[Finding]:
    facts: list[tuple[str, object]] = [("examples", row.examples)]
    if step.purpose == RoundPurpose.TRAIN:  # an evaluation brings metrics and no update
        facts += [("digest", row.update_digest), ("size", row.update_size_bytes)]
    for name, value in facts:
        if value is None:
            yield place.finding("acceptance", f"it was accepted without {name}")
    for name, value in chain(row.metrics_before.items(), row.metrics_after.items()):
        if not isfinite(value):
            yield place.finding("metrics", f"its metric {name} is {value}")


def _held(ledger: Sequence[Assignment], late: Sequence[Assignment]) -> list[Assignment]:
    """The updates that a round folds."""
    return [*_accepted(ledger), *(row for row in late if row.state == AssignmentState.LATE)]


def _accepted(ledger: Sequence[Assignment]) -> list[Assignment]:
    return [row for row in ledger if row.state == AssignmentState.ACCEPTED]
