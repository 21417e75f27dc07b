"""What a rule is, and the fold that every rule shares.

A rule sees one block of the flat vector at a time, as the changes of all updates in canonical order
(`coordinator.aggregation.order`), and gives one change. Blocks are independent and each is written
once, so the result is a function of the set of updates and of nothing else: not of the order in
which they came, of threads, of restarts or of machines.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.order import Contribution, canonical
from coordinator.aggregation.server_optimizer import ServerStep
from headwater.errors import UpdateError
from headwater.layout import Layout, Weights
from headwater.updates import Block, Section, blocks_of


class Rule(Protocol):
    """How many updates become one. A rule holds settings and no state, and any thread may use it.

    Every rule keeps this:
    - It uses elementwise IEEE operations, sorting, and sums in a fixed order, in float64.
    - A single update gives its own change.
    - Each new value lies between the smallest and the largest that the updates alone would give.
      So updates that are sound one by one are sound together.
    - An integer is one that the base or an update holds: integers are never averaged.
    - Memory is bounded by a tile, whatever the number of updates and the size of the model.
    """

    def refusal(self, updates: int) -> str:
        """Why this rule means nothing for so many updates, and what to do; empty when it does."""

    def shares(self, weights: Sequence[float]) -> list[float]:
        """The weight of each update in the ledger (sum 1), from its contribution's own."""

    def change(
        self, index: int, count: int, ordered: Sequence[Contribution]
    ) -> NDArray[np.float64]:
        """The change of block `index` of the float vector, float64 of shape [count].

        Raises:
            UpdateError: an update is damaged on disk, or no update has a weight.
        """

    def integers(
        self, index: int, base: NDArray[np.int64], ordered: Sequence[Contribution]
    ) -> NDArray[np.int64]:
        """The new values of a block of the integer vector, from those of the base; same shape.

        Raises:
            UpdateError: an update is damaged on disk.
        """


def fold(
    rule: Rule,
    base: Weights,
    contributions: Sequence[Contribution],
    layout: Layout,
    threads: int,
    server: ServerStep | None = None,
) -> Weights:
    """The new weights: `base` plus the rule's change. `threads` changes the speed and no bit.

    With `server`, trainable elements move by its step instead, and `server.after` is whole then.

    Raises:
        UpdateError: there is nothing to fold, or an update is damaged on disk.
    """
    ordered = canonical(contributions)
    if not ordered:
        raise UpdateError("there is no update to fold")
    result = Weights(np.empty_like(base.floats), np.empty_like(base.integers))
    with ThreadPoolExecutor(threads, thread_name_prefix="fold") as pool:
        folded = pool.map(
            lambda item: fold_block(rule, item[0], item[1], base, ordered, result, server),
            enumerate(blocks_of(layout)),
        )
        for _ in folded:
            pass
    return result


def fold_block(
    rule: Rule,
    index: int,
    block: Block,
    base: Weights,
    ordered: Sequence[Contribution],
    result: Weights,
    server: ServerStep | None = None,
) -> None:
    """Fold one block of all updates, in the order given, into its place in `result`."""
    if block.section is Section.INTEGERS:
        result.integers[block.place] = rule.integers(index, base.integers[block.place], ordered)
        return
    values = rule.change(index, block.count, ordered)
    if server is not None and block.section is Section.TRAINABLE:
        values = server.step(values, block.place)
    values += base.floats[block.place]
    with np.errstate(over="ignore"):  # an overflow shows as infinity, which the round refuses
        result.floats[block.place] = values
