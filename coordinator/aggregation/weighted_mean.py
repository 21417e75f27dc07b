"""Federated averaging: the mean of the updates, weighted by their examples.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017. We average changes instead of weights, which is the same in
exact arithmetic and lets updates be encoded. We depart in two points: integer buffers take the
maximum, since a mean of counters counts nothing; and sums run in float64 in canonical order, so
that the result is a function of the set of updates and of nothing else.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.order import Contribution, canonical
from headwater.errors import UpdateError
from headwater.layout import Layout, Weights
from headwater.updates import Block, Section, blocks_of


def fold(
    base: Weights, contributions: Sequence[Contribution], layout: Layout, threads: int
) -> Weights:
    """The new weights: `base` plus the weighted mean of the changes.

    Blocks are independent and each is written once, so `threads` changes the speed and no bit.

    Raises:
        UpdateError: there is nothing to fold, or the weights do not sum to more than 0.
    """
    ordered = canonical(contributions)
    total = sum(one.examples for one in ordered)
    if not ordered or total <= 0:
        raise UpdateError("there is no update with examples to fold")
    result = Weights(np.empty_like(base.floats), base.integers.copy())
    with ThreadPoolExecutor(threads, thread_name_prefix="fold") as pool:
        folded = pool.map(
            lambda item: fold_block(item[0], item[1], base, ordered, total, result),
            enumerate(blocks_of(layout)),
        )
        for _ in folded:
            pass
    return result


def fold_block(
    index: int,
    block: Block,
    base: Weights,
    ordered: Sequence[Contribution],
    total: int,
    result: Weights,
) -> None:
    """Fold one block of all updates, in the order given, into its place in `result`."""
    if block.section is Section.INTEGERS:
        place = result.integers[block.place]
        for one in ordered:
            np.maximum(place, one.update.integers(index), out=place)
        return
    mean = weighted_sum(index, block.count, ordered)
    mean /= np.float64(total)
    mean += base.floats[block.place]
    with np.errstate(over="ignore"):  # an overflow shows as infinity, which the round refuses
        result.floats[block.place] = mean


def weighted_sum(index: int, count: int, ordered: Sequence[Contribution]) -> NDArray[np.float64]:
    """The sum of a block's changes times their examples, added up in float64 in the order given."""
    total = np.zeros(count, np.float64)
    term = np.empty(count, np.float64)
    for one in ordered:
        np.multiply(one.update.change(index), np.float64(one.examples), out=term)
        total += term
    return total
