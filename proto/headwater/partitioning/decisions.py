"""Which example goes to which part: pure functions of labels, counts and a seed.

Every function returns one sorted int64 array of row numbers for each part; together they hold every
row exactly once, and no part is empty. The same arguments give the same parts.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.errors import UsageError

Rows = NDArray[np.int64]


def iid_parts(count: int, parts: int, seed: int) -> list[Rows]:
    """Parts of equal size (within one) drawn at random.

    Raises:
        UsageError: there are fewer examples than parts.
    """
    _check(count, parts, "examples")
    return _sorted(np.array_split(_generator(seed).permutation(count), parts))


def dirichlet_parts(labels: NDArray[Any], parts: int, alpha: float, seed: int) -> list[Rows]:
    """Parts of equal size (within one) whose label mixtures are drawn from a Dirichlet.

    After Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", 2019: each part draws its mixture of labels, then its examples by it
    without replacement. Small alpha: few labels a part; large alpha: IID. We depart in the scale:
    the paper's alpha is shared out among the labels by their frequency, ours is what a label of
    average frequency gets, as most experiments quote it since (theirs is ours times the number of
    labels). When a label runs out, its probability goes to the part's other labels in
    proportion; where only labels of probability zero are left, to those by what is left of them.
    Equal sizes are the paper's rule and mean that no part is empty. Parts are filled in a random
    order, since the last ones get what is left.

    Raises:
        UsageError: alpha is not positive, or there are fewer examples than parts.
    """
    _check(len(labels), parts, "examples")
    if not 0 < alpha < np.inf:
        raise UsageError(f"alpha {alpha} must be a positive number")
    generator = _generator(seed)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    waiting = [generator.permutation(np.flatnonzero(inverse == k)) for k in range(len(counts))]
    mixtures = generator.dirichlet(alpha * counts / counts.mean(), size=parts)
    sizes = [len(part) for part in np.array_split(np.arange(len(labels)), parts)]
    result: list[Rows] = [np.empty(0, np.int64)] * parts
    left = counts.copy()
    for part in generator.permutation(parts):
        taken = _draw(mixtures[part], left, sizes[part], generator)
        result[part] = np.concatenate(
            [waiting[k][left[k] - taken[k] : left[k]] for k in range(len(counts))]
        )
        left = left - taken
    return _sorted(result)


def _draw(
    mixture: NDArray[np.float64],
    left: NDArray[np.int64],
    size: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """How many examples of each label a part takes: `size` in all, at most what is left."""
    taken = np.zeros_like(left)
    while (missing := size - int(taken.sum())) > 0:
        remaining = left - taken
        chances = np.where(remaining > 0, np.nan_to_num(mixture), 0.0)
        if chances.sum() <= 0:
            chances = remaining.astype(np.float64)
        drawn = generator.multinomial(missing, chances / chances.sum())
        taken = taken + np.minimum(drawn, remaining)
    return taken


def shard_parts(labels: NDArray[Any], parts: int, shards_per_part: int, seed: int) -> list[Rows]:
    """Examples sorted by label, cut into shards of equal size (within one), dealt at random.

    After McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep
    Networks from Decentralized Data", AISTATS, 2017, which deals 2 shards to each part. Within a
    label the order is random.

    Raises:
        UsageError: there are fewer examples than shards.
    """
    if shards_per_part < 1:
        raise UsageError(f"shards per part {shards_per_part} must be at least 1")
    _check(len(labels), parts, "examples")
    shards = parts * shards_per_part
    _check(len(labels), shards, "examples", "shards")
    generator = _generator(seed)
    _, inverse = np.unique(labels, return_inverse=True)
    shuffled = generator.permutation(len(labels))
    by_label = shuffled[np.argsort(inverse[shuffled], kind="stable")]
    cut = np.array_split(by_label, shards)
    dealt = generator.permutation(shards).reshape(parts, shards_per_part)
    return _sorted([np.concatenate([cut[shard] for shard in hand]) for hand in dealt])


def value_parts(values: NDArray[Any]) -> dict[str, Rows]:
    """One part for each value, by the value as text, in the order of the values.

    Raises:
        UsageError: there are no values.
    """
    _check(len(values), 1, "examples")
    distinct, inverse = np.unique(values, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(np.bincount(inverse, minlength=len(distinct)))
    parts = np.split(order, ends[:-1])
    return {str(value): np.sort(part) for value, part in zip(distinct, parts, strict=True)}


def held_out(labels: NDArray[Any] | int, fraction: float, seed: int) -> Rows:
    """The rows of a stratified held-out set: about this fraction of each label, sorted.

    Each label gives its share rounded down; the rows that are missing to the rounded share of the
    whole come from the labels with the largest remainders. A number instead of labels: any rows.

    Raises:
        UsageError: the fraction is not between 0 and 1, or leaves one of the two sides empty.
    """
    values = np.zeros(labels, np.int64) if isinstance(labels, int) else labels
    total = round(len(values) * fraction)
    if not 0 < fraction < 1 or not 0 < total < len(values):
        raise UsageError(
            f"a held-out fraction of {fraction} of {len(values)} examples leaves one side empty"
        )
    generator = _generator(seed)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    exact = counts * (total / len(values))
    shares = np.floor(exact).astype(np.int64)
    largest = np.argsort(-(exact - shares), kind="stable")
    shares[largest[: total - int(shares.sum())]] += 1
    chosen = [
        generator.permutation(np.flatnonzero(inverse == k))[:share]
        for k, share in enumerate(shares)
    ]
    return np.sort(np.concatenate(chosen))


def label_counts(labels: NDArray[Any]) -> dict[str, int]:
    """How often each label occurs, by the label as text, in the order of the labels."""
    values, counts = np.unique(labels, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed & (2**64 - 1))


def _check(count: int, parts: int, what: str, into: str = "parts") -> None:
    if parts < 1:
        raise UsageError(f"the number of {into} {parts} must be at least 1")
    if count < parts:
        raise UsageError(f"{count} {what} cannot fill {parts} {into}")


def _sorted(parts: list[Rows]) -> list[Rows]:
    return [np.sort(part).astype(np.int64) for part in parts]
