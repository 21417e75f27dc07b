"""The canonical order of updates: the reason why the same set of updates gives the same bits.

Floating-point sums depend on the order of their terms. Arrival order, client names and row numbers
differ between two runs of a job; what the updates say does not, so the order is by that alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from headwater.updates import StoredUpdate


@dataclass(frozen=True)
class Contribution:
    """One update to fold: its digest (of the encoded blocks), its weight, and its values.

    The weight is the number of its examples, discounted where it is stale.
    """

    digest: str
    weight: float
    update: StoredUpdate


def canonical(contributions: Iterable[Contribution]) -> list[Contribution]:
    """The contributions by (digest, weight); equal keys have equal values."""
    return sorted(contributions, key=lambda one: (one.digest, one.weight))
