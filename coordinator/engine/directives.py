"""What the engine says to clients: assignments, cancellations and fates as messages."""

from datetime import datetime

from coordinator.engine.live import JobRun, LiveAssignment
from coordinator.engine.schedule import RoundRate, round_rate
from headwater.v1 import fleet_pb2
from storage.records import AssignmentState, RoundPurpose, RoundRecord


def assignment_message(
    run: JobRun, round_: RoundRecord, live: LiveAssignment, lease_seconds: float, now: datetime
) -> fleet_pb2.AttendResponse:
    """An assignment as its client gets it; the deadline as seconds left, since clocks differ."""
    train, rounds = run.spec.train, run.spec.rounds
    left = (round_.deadline_at - now).total_seconds() if round_.deadline_at else 0.0
    evaluates = round_.purpose is RoundPurpose.EVALUATE
    due = "clients" in rounds.evaluate.on and (round_.number - 1) % rounds.evaluate.every == 0
    encoding = live.record.update_encoding or "fp32"
    message = fleet_pb2.Assignment(
        assignment_id=live.record.id,
        job=run.record.reference,
        round_number=round_.number,
        purpose=fleet_pb2.PURPOSE_EVALUATE if evaluates else fleet_pb2.PURPOSE_TRAIN,
        plan_digest=run.plan.digest,
        weights_digest=round_.base_weights_digest,
        weights_size_bytes=run.record.latest_weights_size_bytes,
        dataset=run.spec.dataset,
        local_epochs=train.local_epochs or 0,
        local_steps=train.local_steps or 0,
        batch_size=train.batch_size,
        hyperparameters=hyperparameters(run),
        seed=live.record.seed,
        evaluate_before=evaluates or due,
        keep_optimizer_state=train.optimizer_state == "keep",
        encoding=encoding,
        error_feedback=run.spec.updates.feeds_back(encoding) and not evaluates,
        deadline_seconds=max(left, 0.001) if round_.deadline_at else 0.0,
        lease_seconds=lease_seconds,
    )
    return fleet_pb2.AttendResponse(assignment=message)


def hyperparameters(run: JobRun) -> dict[str, float]:
    """What this round's steps take from the job rather than from the plan."""
    rate = learning_rate(run).learning_rate
    proximal = run.spec.train.proximal
    return {"learning_rate": rate} | ({} if proximal is None else {"proximal": proximal})


def learning_rate(run: JobRun) -> RoundRate:
    """The learning rate of the round that makes the job's next version."""
    train, version = run.spec.train, run.record.rounds_committed + 1
    return round_rate(train.schedule, train.optimizer.learning_rate, version, run.spec.rounds.count)


def cancel_message(assignment_id: int, reason: str) -> fleet_pb2.AttendResponse:
    """Work to drop."""
    return fleet_pb2.AttendResponse(
        cancel=fleet_pb2.Cancel(assignment_id=assignment_id, reason=reason)
    )


def fate_message(
    assignment_id: int, state: AssignmentState, reason: str, *, folded: bool
) -> fleet_pb2.AttendResponse:
    """How an assignment ended."""
    fate = fleet_pb2.Fate(assignment_id=assignment_id, state=state, folded=folded, reason=reason)
    return fleet_pb2.AttendResponse(fate=fate)
