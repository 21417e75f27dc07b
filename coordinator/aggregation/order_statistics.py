"""Robust rules: the median and the trimmed mean of the updates, coordinate by coordinate.

Yin, Chen, Kannan, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates", ICML 2018 (Definitions 1 and 2). A minority of clients that send anything whatever moves no
coordinate beyond what honest clients sent: fewer than half of the updates for the median, no more
than are cut at each end for the trimmed mean.

Both ignore example counts, as the paper does: a count is a client's own claim, and one that lies
about its update would claim as many examples as it likes and be the majority alone. So each update
counts once. We depart in two points: the values are changes after local training, not gradients;
and integer buffers, which the paper has none of, take the lower middle value of what the clients
sent: a mean of counters counts nothing, and a maximum is whatever the worst client claims.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.order import Contribution

TILE_BYTES = 64 * 2**20
"""The most that a thread holds of all updates at once. A whole block of 64 updates; with more of
them a block is read again for each of its tiles."""

COLUMNS = 1024
"""Elements that are sorted at once. So few stay in the cache while they are turned to lie beside
each other, which makes sorting 64 updates six times as fast."""


class OrderStatistic(ABC):
    """What the robust rules share; see `Rule`."""

    @abstractmethod
    def refusal(self, updates: int) -> str:
        """See `Rule.refusal`."""

    @abstractmethod
    def centre(self, columns: NDArray[np.float32]) -> NDArray[np.float64]:
        """One value for each element, float64 of shape [elements].

        `columns` has shape [elements, updates]; the values of an element ascend.
        """

    def shares(self, weights: Sequence[float]) -> list[float]:
        """The same for each update, whatever it claims."""
        return [1 / len(weights)] * len(weights)

    def change(
        self, index: int, count: int, ordered: Sequence[Contribution]
    ) -> NDArray[np.float64]:
        """The centre of the changes, element by element; see `Rule.change`."""
        result = np.empty(count, np.float64)
        changes = sorted_columns(ordered, lambda one: one.update.change(index), count, np.float32)
        for place, columns in changes:
            result[place] = self.centre(columns)
        return result

    def integers(
        self, index: int, base: NDArray[np.int64], ordered: Sequence[Contribution]
    ) -> NDArray[np.int64]:
        """The lower middle of the updates' values, element by element; see `Rule.integers`."""
        result = np.empty_like(base)
        values = sorted_columns(
            ordered, lambda one: one.update.integers(index), base.size, np.int64
        )
        for place, columns in values:
            result[place] = columns[:, (len(ordered) - 1) // 2]
        return result


@dataclass(frozen=True)
class Median(OrderStatistic):
    """The rule `median`: the middle value, or the mean of the two in the middle."""

    def refusal(self, updates: int) -> str:
        """Nothing: any number of updates has a median."""
        return ""

    def centre(self, columns: NDArray[np.float32]) -> NDArray[np.float64]:
        """See `OrderStatistic.centre`."""
        updates = columns.shape[1]
        middle = columns[:, (updates - 1) // 2].astype(np.float64)
        middle += columns[:, updates // 2]
        middle /= 2
        return middle


@dataclass(frozen=True)
class TrimmedMean(OrderStatistic):
    """The rule `trimmed_mean`: the mean without the smallest and largest ⌊trim × n⌋ of n values.

    `trim` lies in 0 < trim < 0.5, so something is always left. Fewer than 1 / trim updates would
    lose none, and the rule would be a mean that any client can move: `refusal` says so.
    """

    trim: float

    def cut(self, updates: int) -> int:
        """How many values are cut at each end."""
        return floor(self._exact * updates)

    def refusal(self, updates: int) -> str:
        """See `Rule.refusal`."""
        if self.cut(updates):
            return ""
        return (
            f"{self.trim:g} of {updates} update{'s' if updates > 1 else ''} cuts none: take a "
            f"larger trim, or at least {ceil(1 / self._exact)} updates"
        )

    def centre(self, columns: NDArray[np.float32]) -> NDArray[np.float64]:
        """See `OrderStatistic.centre`; the values that are left are added up as they ascend."""
        elements, updates = columns.shape
        cut = self.cut(updates)
        mean = np.zeros(elements, np.float64)
        for at in range(cut, updates - cut):
            mean += columns[:, at]
        mean /= np.float64(updates - 2 * cut)
        return mean

    @property
    def _exact(self) -> Fraction:
        # As it is written: in binary, 0.29 of 100 updates would be 28.
        return Fraction(repr(self.trim))


def sorted_columns(
    ordered: Sequence[Contribution],
    read: Callable[[Contribution], NDArray[Any]],
    count: int,
    dtype: type[np.float32] | type[np.int64],
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """A block of `count` elements as sorted columns, in pieces: (place in the block, columns).

    `read` gives an update's values of the block, of `dtype`. Columns have shape [elements,
    updates]; each row of them ascends.
    """
    most = max(1, TILE_BYTES // (np.dtype(dtype).itemsize * len(ordered)))
    for start in range(0, count, most):
        tile = np.empty((len(ordered), min(most, count - start)), dtype)
        for row, one in zip(tile, ordered, strict=True):
            # Adding 0 makes -0.0 to 0.0: the two are equal to a sort, which may leave either first.
            np.add(read(one)[start : start + row.size], 0, out=row)
        for at in range(0, tile.shape[1], COLUMNS):
            columns = np.ascontiguousarray(tile[:, at : at + COLUMNS].T)
            columns.sort(axis=1)
            yield slice(start + at, start + at + len(columns)), columns
