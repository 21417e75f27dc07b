"""Seeds of steps and epochs, as a function of the assignment's seed.

The hash is the output function of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014) over `seed + (2 * counter + stream + 1) * golden`, modulo 2**64,
with the top bit dropped because graphs take signed 64-bit seeds. Steps and epochs are two streams,
so that no step draws the numbers that ordered an epoch.
"""

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def seed_of_epoch(seed: int, epoch: int) -> int:
    """The seed of the order of examples in one pass over the data, from 0 to 2**63 - 1."""
    return _mixed(seed, 2 * epoch)


def seed_of_step(seed: int, step: int) -> int:
    """The seed of dropout in one step, counted over the assignment, from 0 to 2**63 - 1."""
    return _mixed(seed, 2 * step + 1)


def seed_of_part(seed: int, part: int) -> int:
    """The seed of dropout in one part of a step's batch: the step's own for the first part."""
    return _mixed(seed, part) if part else seed


def seed_of_rounding(seed: int) -> int:
    """The seed of an update's stochastic rounding, from 0 to 2**63 - 1: of a stream of its own."""
    return _mixed(seed ^ 0x726F756E64, 0)


def _mixed(seed: int, counter: int) -> int:
    value = (seed + (counter + 1) * _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return (value ^ (value >> 31)) >> 1
