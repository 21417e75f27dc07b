"""A whole model as an author brings it, at its usual size and small enough for every test run."""

from dataclasses import dataclass

from tests.zoo import Case

SMALL_STEPS: dict[str, object] = {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9}
"""For deep networks with kinks: at five times this rate rounding alone throws units of a full-size
one across their kink within five steps, after which parity says nothing.
"""


@dataclass(frozen=True)
class Whole:
    """One architecture twice: `full` is measured, `tiny` keeps every kind of layer of it.

    `batch_size` is that of the measurements.
    """

    full: Case
    tiny: Case
    batch_size: int = 32
