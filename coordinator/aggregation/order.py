"""The canonical order of updates: the reason why the same set of updates gives the same bits.

Floating-point sums depend on the order of their terms. Arrival order, client names and row numbers
differ between two runs of a job; what the updates say does not, so the order is by that alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from headwater.updates import StoredUpdate


@dataclass(frozen=True)
class Contribution:
    """One accepted update: its digest (of the encoded blocks), its weight, and its values."""

    digest: str
    examples: int
    update: StoredUpdate


def canonical(contributions: Iterable[Contribution]) -> list[Contribution]:
    """The contributions by (digest, examples); equal keys have equal values."""
    return sorted(contributions, key=lambda one: (one.digest, one.examples))
