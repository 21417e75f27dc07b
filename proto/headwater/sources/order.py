"""The order of examples: permutations in memory, a bounded shuffle of a stream, batches of both."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from headwater.batch import Array, Batch
from headwater.errors import UsageError
from headwater.sources.fields import Chunk, Fields


def seeded(seed: int) -> np.random.Generator:
    """The generator of a seed: any integer, of which 64 bits count."""
    return np.random.default_rng(int(seed) & (2**64 - 1))


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch size below 1.

    Raises:
        UsageError: it is.
    """
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} must be at least 1")


def example_order(count: int, seed: int | None) -> NDArray[np.int64]:
    """A permutation of `count` examples by seed; stored order for None."""
    return np.arange(count) if seed is None else seeded(seed).permutation(count)


def regroup(chunks: Iterable[Chunk], batch_size: int) -> Iterator[Chunk]:
    """Chunks of any sizes as chunks of `batch_size` examples, the last one smaller."""
    waiting: list[Chunk] = []
    count = 0
    for chunk in chunks:
        position, length = 0, len(chunk[0])
        while position < length:
            piece = tuple(part[position : position + batch_size - count] for part in chunk)
            waiting.append(piece)
            position += len(piece[0])
            count += len(piece[0])
            if count == batch_size:
                yield _joined(waiting)
                waiting, count = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    return tuple(np.concatenate(parts) for parts in zip(*chunks, strict=True))


def shuffle_stream(
    chunks: Iterable[Chunk], capacity: int, generator: np.random.Generator
) -> Iterator[Chunk]:
    """Shuffle a stream through a pool of at most `capacity` examples.

    The pool fills first; then every incoming example takes the place of one drawn from the pool at
    random, which is passed on; the rest leaves in random order. Held at any time: the pool, one
    incoming and one leaving chunk; an incoming one must not be longer than the pool. A stream that
    fits the pool is permuted uniformly; of a longer one, no example leaves more than the pool's
    length ahead of its place.
    """
    pool: list[Array] = []
    held = 0
    for chunk in chunks:
        if not pool:
            pool = [np.empty((capacity, *part.shape[1:]), part.dtype) for part in chunk]
        room = min(capacity - held, len(chunk[0]))
        for place, part in zip(pool, chunk, strict=True):
            place[held : held + room] = part[:room]
        held += room
        if room < len(chunk[0]):
            arriving = tuple(part[room:] for part in chunk)
            leaving = generator.choice(capacity, size=len(arriving[0]), replace=False)
            yield tuple(place[leaving] for place in pool)
            for place, part in zip(pool, arriving, strict=True):
                place[leaving] = part
    order = generator.permutation(held)
    step = slice_rows(capacity)
    for start in range(0, held, step):
        yield tuple(place[order[start : start + step]] for place in pool)


def slice_rows(capacity: int) -> int:
    """How many examples move at once where `capacity` may be held: a quarter, at most 1,024."""
    return max(1, min(1024, capacity // 4))


class ArraySource:
    """Examples held in memory in compact form, permuted as a whole for each seed."""

    def __init__(self, name: str, fields: Fields, chunk: Chunk) -> None:
        self.name = name
        self._fields = fields
        self._chunk = chunk

    def example_count(self) -> int:
        """The number of examples."""
        return len(self._chunk[0])

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        """One pass over the examples; see `DataSource`."""
        check_batch_size(batch_size)
        order = example_order(self.example_count(), seed)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield self._fields.batch(tuple(part[rows] for part in self._chunk))
