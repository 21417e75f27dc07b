"""What `verify` finds wrong, and where."""

from dataclasses import dataclass

from storage.records import RoundPurpose
from storage.schema import Round


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `check` names the rule that it breaks; the rest says where.

    `job` is a reference, `round` and `purpose` name a round of it, `assignment` is an id.
    """

    check: str
    message: str
    job: str | None = None
    round: int | None = None
    purpose: str | None = None
    assignment: int | None = None
    digest: str | None = None

    def __str__(self) -> str:
        """One line: `job digits, round 3, assignment 7: it was accepted without examples`."""
        kind = "evaluation round" if self.purpose == RoundPurpose.EVALUATE else "round"
        places = (
            ("job", self.job),
            (kind, self.round),
            ("assignment", self.assignment),
            ("blob", self.digest),
        )
        where = ", ".join(f"{name} {place}" for name, place in places if place is not None)
        return f"{where}: {self.message}"


@dataclass(frozen=True, slots=True)
class Place:
    """A job, or one of its rounds or assignments, as a check sees it."""

    job: str
    round: int | None = None
    purpose: str | None = None
    assignment: int | None = None

    def finding(self, check: str, message: str, digest: str | None = None) -> Finding:
        """A finding here."""
        return Finding(check, message, self.job, self.round, self.purpose, self.assignment, digest)

    def of_round(self, step: Round, assignment_id: int | None = None) -> "Place":
        """A round of this place's job, or one of its assignments."""
        return Place(self.job, step.number, step.purpose, assignment_id)
