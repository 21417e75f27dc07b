from enum import StrEnum

import pytest

from headwater.errors import ConflictError
from storage.records import AssignmentState, JobState, RoundState
from storage.transitions import (
    TRANSITIONS,
    UNFINISHED_ASSIGNMENTS,
    UNFINISHED_JOBS,
    UNFINISHED_ROUNDS,
    check_transition,
)

LEGAL = {
    "job": """queued: cancelled failed paused running
              running: cancelled completed failed paused
              paused: cancelled completed failed running""",
    "round": """open: abandoned closing
                closing: abandoned committed""",
    "assignment": """offered: accepted declined expired failed late rejected released training uploading
                     training: accepted declined expired failed late rejected released uploading
                     uploading: accepted expired failed late rejected released
                     accepted: rejected
                     expired: late rejected
                     late: rejected""",  # noqa: E501
}
KINDS: dict[str, type[StrEnum]] = {
    "job": JobState,
    "round": RoundState,
    "assignment": AssignmentState,
}


def pairs() -> list[tuple[str, StrEnum, StrEnum]]:
    return [(kind, old, new) for kind, states in KINDS.items() for old in states for new in states]


def legal(kind: str, old: str) -> list[str]:
    lines = (line.split(":") for line in LEGAL[kind].splitlines())
    return next((new.split() for name, new in lines if name.strip() == old), [])


@pytest.mark.parametrize(("kind", "old", "new"), pairs())
def test_only_the_listed_changes_are_legal(kind: str, old: StrEnum, new: StrEnum) -> None:
    if new in legal(kind, old):
        check_transition(kind, old, new)
    else:
        words = rf"{kind} 7 (is {old} already|has ended|is {old} and cannot become {new})"
        with pytest.raises(ConflictError, match=words):
            check_transition(kind, old, new, "7")


def test_the_refusal_lists_what_is_possible() -> None:
    with pytest.raises(ConflictError) as refused:
        check_transition("round", RoundState.OPEN, RoundState.COMMITTED, "3")
    assert str(refused.value) == (
        "round 3 is open and cannot become committed (it may become abandoned, closing)"
    )
    with pytest.raises(ConflictError, match=r"^job has ended \(completed\) and cannot become run"):
        check_transition("job", JobState.COMPLETED, JobState.RUNNING)
    with pytest.raises(ConflictError, match=r"^job x is paused already$"):
        check_transition("job", JobState.PAUSED, JobState.PAUSED, "x")


@pytest.mark.parametrize(
    ("kind", "unfinished"),
    [
        ("job", UNFINISHED_JOBS),
        ("round", UNFINISHED_ROUNDS),
        ("assignment", UNFINISHED_ASSIGNMENTS),
    ],
)
def test_from_every_unfinished_state_a_final_one_can_be_reached(
    kind: str, unfinished: tuple[StrEnum, ...]
) -> None:
    for state in unfinished:
        assert any(new not in unfinished for new in TRANSITIONS[kind][state])
