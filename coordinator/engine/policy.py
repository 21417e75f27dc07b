"""When a round opens and closes, and when a job ends: pure decisions, each with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

from coordinator.jobs.job_spec import Rounds, Stop

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
    ABANDON = "abandon"


@dataclass(frozen=True)
class Closing:
    """What to do with an open round, and why."""

    action: Action
    reason: str


def closing(policy: Rounds, accepted: int, pending: int, deadline_passed: bool) -> Closing:
    """A round closes with its cohort, when nothing more can come, or at its deadline.

    `pending` counts assignments that may still bring an update. With fewer than `quorum` updates
    the round is abandoned, which changes no weights.
    """
    if accepted >= policy.cohort:
        return Closing(Action.CLOSE, f"the cohort of {policy.cohort} is complete")
    if pending and not deadline_passed:
        return Closing(Action.WAIT, f"{accepted} accepted, {pending} pending")
    ended = "at the deadline" if pending else "and no more can come"
    if accepted >= policy.quorum:
        return Closing(Action.CLOSE, f"{accepted} accepted {ended}")
    return Closing(
        Action.ABANDON, f"{accepted} accepted {ended}, fewer than the quorum of {policy.quorum}"
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
