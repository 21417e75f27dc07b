"""Who may take part in a round, and who does."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.engine.seeds import derived_seed
from coordinator.jobs.job_spec import AUTO
from coordinator.jobs.where import Where
from headwater.encodings.names import parts_of


@dataclass(frozen=True)
class Candidate:
    """What selection knows of an attending client.

    `busy_with` names the job that it works for now; `barred` is why this job leaves it out for a
    while (it declined or failed).
    """

    client_id: str
    name: str
    attributes: Mapping[str, Any]
    example_counts: Mapping[str, int]
    encodings: frozenset[str]
    busy_with: str = ""
    barred: str = ""


def ineligibility(candidate: Candidate, dataset: str, where: Where, encoding: str) -> str:
    """Why the client cannot take part in a round of such a job; empty when it can."""
    if dataset not in candidate.example_counts:
        bound = ", ".join(sorted(candidate.example_counts)) or "none"
        return f"it has no data set {dataset!r} (bound: {bound})"
    if candidate.example_counts[dataset] == 0:
        return f"its data set {dataset!r} is empty"
    needed = parts_of("fp32" if encoding == AUTO else encoding)
    if unknown := needed - candidate.encodings:
        return f"it does not know the update encoding {encoding}: no {', '.join(sorted(unknown))}"
    matches, reason = where.matches(candidate.attributes)
    if not matches:
        return f"where: {reason}"
    if candidate.barred:
        return candidate.barred
    return f"it works for job {candidate.busy_with}" if candidate.busy_with else ""


def select(eligible: Sequence[Candidate], count: int, seed: int, number: int) -> list[Candidate]:
    """`count` of the eligible clients (or all), drawn by the job's seed and the round's number.

    The draw depends on the set of names, not on the order in which clients came.
    """
    ordered = sorted(eligible, key=lambda one: (one.name, one.client_id))
    generator = random.Random(derived_seed(seed, "cohort", number))
    return generator.sample(ordered, min(count, len(ordered)))
