"""When a round opens and closes, and when a job ends: pure decisions, each with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, isfinite

from coordinator.jobs.job_spec import Guard, Rounds, Stop

ABANDONED_IN_A_ROW = 5
"""After so many abandoned rounds in a row a job pauses: its operator must look, not its clock."""


@dataclass(frozen=True)
class Opening:
    """Whether to open a round, and with how many offers."""

    offers: int
    reason: str


def opening(policy: Rounds, eligible: int, attending: int) -> Opening:
    """A round opens when a quorum of eligible clients attends; 0 offers mean to wait."""
    if eligible < policy.quorum:
        return Opening(
            0,
            f"waits for {policy.quorum - eligible} more eligible client"
            f"{'s' if policy.quorum - eligible > 1 else ''}: {eligible} of {attending} attending "
            f"can take part, the quorum is {policy.quorum}",
        )
    offers = min(eligible, ceil(round(policy.cohort * policy.over_selection, 9)))
    return Opening(offers, f"{eligible} eligible clients, {offers} offers")


class Action(StrEnum):
    """What to do with an open round."""

    WAIT = "wait"
    CLOSE = "close"
    EXTEND = "extend"
    ABANDON = "abandon"


@dataclass(frozen=True)
class Progress:
    """How far an open round is.

    `pending` assignments may still bring an update, and `uploading` of them do so now. `past`
    counts the seconds since the deadline, below 0 before it; `extensions` how often that was moved.
    """

    accepted: int
    pending: int
    uploading: int
    past: float
    extensions: int = 0


@dataclass(frozen=True)
class Closing:
    """What to do with an open round, and why."""

    action: Action
    reason: str


def closing(policy: Rounds, progress: Progress) -> Closing:
    """A round closes with its cohort, when nothing more can come, or at its deadline.

    Uploads under way at the deadline have `grace_seconds` more. With fewer than `quorum` updates
    the policy decides: the round is abandoned, which changes no weights, extended while something
    may still come, or closed with the updates that it has, if there is one.
    """
    accepted, pending = progress.accepted, progress.pending
    if accepted >= policy.cohort:
        return Closing(Action.CLOSE, f"the cohort of {policy.cohort} is complete")
    if pending and progress.past < 0:
        return Closing(Action.WAIT, f"{accepted} accepted, {pending} pending")
    if progress.uploading and progress.past < policy.grace_seconds:
        return Closing(Action.WAIT, f"{progress.uploading} uploads are under way at the deadline")
    ended = "at the deadline" if pending else "and no more can come"
    if accepted >= policy.quorum:
        return Closing(Action.CLOSE, f"{accepted} accepted {ended}")
    short = f"{accepted} accepted {ended}, fewer than the quorum of {policy.quorum}"
    if policy.without_quorum == "extend" and pending and progress.extensions < policy.extensions:
        number = f"extension {progress.extensions + 1} of {policy.extensions}"
        return Closing(Action.EXTEND, f"{short}: {number}")
    if policy.without_quorum == "lower" and accepted:
        return Closing(Action.CLOSE, f"{short}, which is lowered")
    return Closing(Action.ABANDON, short)


def lateness(policy: Rounds, staleness: int, rounds_committed: int) -> str:
    """Why an update whose round has ended is of no use any more; empty where the next one folds it.

    `staleness` counts the versions since its base.
    """
    if policy.late == "discard":
        return "its job folds no late updates"
    if rounds_committed >= policy.count:
        return "its job has no further round"
    if staleness > policy.largest_staleness:
        return f"its base is {staleness} versions old, more than {policy.largest_staleness}"
    return ""


def guarding(guard: Guard | None, measured: Mapping[str, float], best: float | None) -> str:
    """Why a new version must not be committed, from its held-out metrics; empty when it may.

    A loss that is not finite never may. `best` is the best value so far of the guard's metric,
    None before the first.
    """
    loss = measured.get("loss", 0.0)
    if not isfinite(loss):
        return f"the held-out loss of its model is {loss}"
    if guard is None or guard.metric not in measured:
        return ""
    value = measured[guard.metric]
    if not isfinite(value):
        return f"the held-out {guard.metric} of its model is {value}"
    worse_by = 0.0 if best is None else (value - best if guard.mode == "min" else best - value)
    if worse_by <= guard.tolerance:
        return ""
    return (
        f"the held-out {guard.metric} of its model is {value:.6g}, worse than the best so far, "
        f"{best:.6g}, by more than {guard.tolerance:g}"
    )


def stopping(stop: Stop | None, values: Sequence[float]) -> str:
    """Why a job should end before its last round, from its metric by version; empty to go on.

    A value counts as progress when it is better than the best before by more than
    `minimum_change`.
    """
    if stop is None or not values:
        return ""
    sign = 1 if stop.mode == "max" else -1
    best, best_at = sign * values[0], 0
    for at, value in enumerate(values):
        if sign * value > best + stop.minimum_change:
            best, best_at = sign * value, at
    without_progress = len(values) - 1 - best_at
    if without_progress < stop.patience:
        return ""
    return f"{stop.metric} has not improved on {sign * best:.6g} for {without_progress} evaluations"
