"""How long a job's updates are kept: as its job file says, else as the coordinator does.

So long are the server optimizer's states kept that their rounds began from.
"""

from sqlalchemy import ColumnElement, exists, func, select, update
from sqlalchemy.orm import Session

from storage.late import arriving, waiting
from storage.records import RoundPurpose
from storage.schema import Assignment, Job, ModelVersion, Round
from storage.transitions import UNFINISHED_ROUNDS

JOB_POLICY = Job.spec[("retention", "updates")].as_string()
"""SQL for what a job's file says, `all`, `none` or `last N rounds`; NULL where it says nothing."""


def kept_rounds(policy: str | None, default: int | None) -> int | None:
    """Of how many last training rounds the updates are kept; None for all.

    `policy`: what the job file says, None where it says nothing and `default` counts.
    """
    if policy is None:
        return default
    if policy in ("all", "none"):
        return None if policy == "all" else 0
    return int(policy.split()[1])


def release(session: Session, default: int | None) -> int:
    """Let go of old updates, and of the states that no kept one needs; how many updates."""
    updates = release_updates(session, default)
    release_states(session)
    return updates


def release_updates(session: Session, default: int | None) -> int:
    """Let go of the updates of old rounds, by each job's own policy, and return how many.

    Those of a round that has not ended are never let go, whatever the policy, nor late ones that
    the next round folds or that may still come; a late one counts for the round that took it.
    """
    policies = session.scalars(select(JOB_POLICY).distinct()).all()
    kept = {policy: kept_rounds(policy, default) for policy in policies}
    return sum(
        _release(session, JOB_POLICY.is_not_distinct_from(policy), rounds)
        for policy, rounds in kept.items()
        if rounds is not None
    )


def _release(session: Session, of_jobs: ColumnElement[bool], keep: int) -> int:
    old = (
        select(Round.id)
        .join(Job, Job.id == Round.job_id)
        .where(
            of_jobs,
            Round.purpose == RoundPurpose.TRAIN,
            Round.number <= Job.last_round_number - keep,
            Round.state.not_in(UNFINISHED_ROUNDS),
        )
    )
    change = (
        update(Assignment)
        .where(func.coalesce(Assignment.folded_round_id, Assignment.round_id).in_(old))
        .where(~waiting(), ~arriving())
        .where(Assignment.update_digest.is_not(None), Assignment.update_collected.is_(False))
        .values(update_collected=True)
    )
    return session.connection().execute(change).rowcount


def release_states(session: Session) -> int:
    """Let go of the server optimizer's states that nothing needs, and return how many.

    That of a job's newest version stays, since the next round begins from it; an older one as long
    as the updates of a round that began from it, which is replayed from both.
    """
    is_newest = exists().where(
        Job.id == ModelVersion.job_id, Job.latest_version == ModelVersion.number
    )
    is_replayed = exists().where(
        Round.base_version_id == ModelVersion.id,
        func.coalesce(Assignment.folded_round_id, Assignment.round_id) == Round.id,
        Assignment.update_digest.is_not(None),
        Assignment.update_collected.is_(False),
    )
    change = (
        update(ModelVersion)
        .where(ModelVersion.optimizer_state_digest.is_not(None), ~is_newest, ~is_replayed)
        .values(optimizer_state_digest=None)
    )
    return session.connection().execute(change).rowcount
