"""The legal changes of state of jobs, rounds and assignments, and the one guard that writes use.

job         queued -> running <-> paused -> completed | failed | cancelled
round       open -> closing -> committed | abandoned
assignment  offered -> training -> uploading -> accepted | late | rejected | failed | expired
                                              | declined | released
"""

from collections.abc import Mapping
from enum import StrEnum

from headwater.errors import ConflictError
from storage.records import AssignmentState as A
from storage.records import JobState as J
from storage.records import RoundState as R

_ENDS = frozenset({A.LATE, A.REJECTED, A.FAILED, A.EXPIRED, A.RELEASED})

TRANSITIONS: Mapping[str, Mapping[StrEnum, frozenset[StrEnum]]] = {
    "job": {
        # A queued job may be paused before it starts; a paused one may complete, because the
        # round under way when it was paused is finished, and it can be the last.
        J.QUEUED: frozenset({J.RUNNING, J.PAUSED, J.FAILED, J.CANCELLED}),
        J.RUNNING: frozenset({J.PAUSED, J.COMPLETED, J.FAILED, J.CANCELLED}),
        J.PAUSED: frozenset({J.RUNNING, J.COMPLETED, J.FAILED, J.CANCELLED}),
        J.COMPLETED: frozenset(),
        J.FAILED: frozenset(),
        J.CANCELLED: frozenset(),
    },
    "round": {
        R.OPEN: frozenset({R.CLOSING, R.ABANDONED}),
        R.CLOSING: frozenset({R.COMMITTED, R.ABANDONED}),
        R.COMMITTED: frozenset(),
        R.ABANDONED: frozenset(),
    },
    "assignment": {
        # A client's progress messages may be lost, so each later state is reachable from each
        # earlier one. A client that tells of its progress while it fetches may decline after that.
        A.OFFERED: frozenset({A.TRAINING, A.UPLOADING, A.ACCEPTED, A.DECLINED}) | _ENDS,
        A.TRAINING: frozenset({A.UPLOADING, A.ACCEPTED, A.DECLINED}) | _ENDS,
        A.UPLOADING: frozenset({A.ACCEPTED}) | _ENDS,
        # The fold may find what acceptance could not see.
        A.ACCEPTED: frozenset({A.REJECTED}),
        # An update that comes after all, when its client had been given up on.
        A.EXPIRED: frozenset({A.LATE, A.REJECTED}),
        A.LATE: frozenset({A.REJECTED}),
        A.REJECTED: frozenset(),
        A.FAILED: frozenset(),
        A.DECLINED: frozenset(),
        A.RELEASED: frozenset(),
    },
}

UNFINISHED_JOBS = (J.QUEUED, J.RUNNING, J.PAUSED)
UNFINISHED_ROUNDS = (R.OPEN, R.CLOSING)
UNFINISHED_ASSIGNMENTS = (A.OFFERED, A.TRAINING, A.UPLOADING)


def check_transition(kind: str, old: StrEnum, new: StrEnum, subject: str = "") -> None:
    """Refuse a change of state that the table does not list.

    Raises:
        ConflictError: `old` may not become `new`; the message lists what it may become.
    """
    allowed = TRANSITIONS[kind][old]
    if new in allowed:
        return
    name = f"{kind} {subject}".rstrip()
    if old is new:
        raise ConflictError(f"{name} is {old} already")
    if not allowed:
        raise ConflictError(f"{name} has ended ({old}) and cannot become {new}")
    choices = ", ".join(sorted(allowed))
    raise ConflictError(f"{name} is {old} and cannot become {new} (it may become {choices})")
