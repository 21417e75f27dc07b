"""The mean of what batches measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from headwater.batch import Batch


@dataclass
class MetricMean:
    """A mean over batches, weighted by their examples or by these examples' weights.

    `mass` is the sum of the weights, and `sums` that of each metric times them.
    """

    examples: int = 0
    mass: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, float], batch: Batch) -> None:
        """Take in the means of one batch."""
        self.examples += batch.size
        self.mass += batch.mass
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value) * batch.mass

    def result(self) -> dict[str, float]:
        """The means; empty before the first batch."""
        return {name: total / self.mass for name, total in self.sums.items()}
