"""A step over a batch that is computed in parts: how it is cut, and how the results are added.

The gradient of a mean is the mean of the parts' gradients, weighted by what each part counts for:
its examples, or the sum of their weights. So the result is that of the whole batch, but for layers
that look at the batch as a whole (BatchNorm takes its statistics from each part in turn) and for
losses that are no mean over examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any, TypeVar

from edge_client.seeds import seed_of_part
from headwater.batch import Batch

Value = TypeVar("Value", bound=Any)
"""An array of NumPy or of torch, or a number."""


@dataclass(frozen=True)
class MicroBatch:
    """A part of a batch, its share of the whole (all add up to 1), and its own seed."""

    batch: Batch
    share: float
    seed: int


def micro_batches(batch: Batch, size: int | None, seed: int) -> list[MicroBatch]:
    """Parts of at most `size` examples, as even as can be; one part where `size` is None.

    The first part keeps the seed, so that a batch in one part is as if it were not cut. Parts
    whose weights are all zero are left out, since they add nothing.
    """
    count = ceil(batch.size / (size or batch.size))
    bounds = [batch.size * index // count for index in range(count + 1)]
    parts = [batch.part(*pair) for pair in pairwise(bounds)]
    return [
        MicroBatch(part, part.mass / batch.mass, seed_of_part(seed, index))
        for index, part in enumerate(parts)
        if part.mass > 0
    ]


def add_shares(total: dict[str, Value], results: Mapping[str, Value], share: float) -> None:
    """Add each result, times its part's share, to the running total by name."""
    for name, value in results.items():
        part = value * share
        if name in total:
            part += total[name]
        total[name] = part
