"""A whole model as an author brings it, at its usual size and small enough for every test run."""

from dataclasses import dataclass

from tests.zoo import Case


@dataclass(frozen=True)
class Whole:
    """One architecture twice: `full` is measured, `tiny` keeps every kind of layer of it.

    `batch_size` is that of the measurements.
    """

    full: Case
    tiny: Case
    batch_size: int = 32
