"""The one table of server optimizers: what a job file can name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from coordinator.aggregation.momentum import Momentum
from coordinator.aggregation.server_optimizer import ServerOptimizer

SERVER_OPTIMIZERS: Mapping[str, Callable[..., ServerOptimizer]] = MappingProxyType(
    {"momentum": Momentum}
)
"""What makes each from its settings, which are given by name."""
