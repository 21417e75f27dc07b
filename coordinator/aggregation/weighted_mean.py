"""Federated averaging: the mean of the updates, weighted by their examples.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017. We average changes instead of weights, which is the same in
exact arithmetic and lets updates be encoded. We depart in two points: integer buffers take the
maximum, since a mean of counters counts nothing; and sums run in float64 in canonical order, so
that the result is a function of the set of updates and of nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.order import Contribution
from headwater.errors import UpdateError


@dataclass(frozen=True)
class WeightedMean:
    """The rule `weighted_mean`; see `Rule`."""

    def refusal(self, updates: int) -> str:
        """Nothing: a mean is one for any number of updates."""
        return ""

    def shares(self, weights: Sequence[float]) -> list[float]:
        """Each update's part of all weights, whose sum is above 0."""
        total = fsum(weights)  # exact, so that no order of the updates shows in the ledger
        return [weight / total for weight in weights]

    def change(
        self, index: int, count: int, ordered: Sequence[Contribution]
    ) -> NDArray[np.float64]:
        """The mean of the changes, by their weights; see `Rule.change`."""
        total = fsum(one.weight for one in ordered)
        if total <= 0:
            raise UpdateError("there is no update with examples to fold")
        mean = weighted_sum(index, count, ordered)
        mean /= np.float64(total)
        return mean

    def integers(
        self, index: int, base: NDArray[np.int64], ordered: Sequence[Contribution]
    ) -> NDArray[np.int64]:
        """The maximum of the base and all updates; see `Rule.integers`."""
        largest = base.copy()
        for one in ordered:
            np.maximum(largest, one.update.integers(index), out=largest)
        return largest


def weighted_sum(index: int, count: int, ordered: Sequence[Contribution]) -> NDArray[np.float64]:
    """The sum of a block's changes times their weights, added up in float64 in the order given."""
    total = np.zeros(count, np.float64)
    term = np.empty(count, np.float64)
    for one in ordered:
        np.multiply(one.update.change(index), np.float64(one.weight), out=term)
        total += term
    return total
