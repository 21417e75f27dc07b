"""The one table of rules: what a job file, a fold and a replay can name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from coordinator.aggregation.order_statistics import Median, TrimmedMean
from coordinator.aggregation.rule import Rule
from coordinator.aggregation.weighted_mean import WeightedMean


@dataclass(frozen=True)
class Kind:
    """A kind of rule: `make` takes its settings by name, `settings` has their defaults."""

    make: Callable[..., Rule]
    settings: Mapping[str, float] = field(default_factory=dict)


RULES: Mapping[str, Kind] = MappingProxyType(
    {
        "weighted_mean": Kind(WeightedMean),
        "median": Kind(Median),
        "trimmed_mean": Kind(TrimmedMean, {"trim": 0.1}),
    }
)
"""The rules by the names that people write."""
