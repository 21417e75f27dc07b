"""`[aggregation]` of a job file: how a round's updates become one model."""
# ruff: noqa: RUF009  (`key` returns a dataclass field, which is what belongs there)

from collections.abc import Iterator
from dataclasses import dataclass

from coordinator.aggregation.rule import Rule
from coordinator.aggregation.rules import RULES
from coordinator.aggregation.server_optimizer import ServerOptimizer
from coordinator.aggregation.server_optimizers import SERVER_OPTIMIZERS
from coordinator.jobs.builder import Fault
from coordinator.jobs.key import key


@dataclass(frozen=True, kw_only=True)
class ServerOptimizerSettings:
    """The optimizer that the mean change of each round goes through."""

    name: str = key("Which one.", choices=tuple(SERVER_OPTIMIZERS))
    learning_rate: float = key(
        "What its step is multiplied by; 1 takes the clients' mean change as it is.",
        value=1.0,
        above=0,
    )
    momentum: float = key(
        "How much of the momentum is left after each round.", value=0.9, minimum=0, below=1
    )
    nesterov: bool = key("Nesterov momentum; needs a momentum above 0.", value=False)

    def faults(self) -> Iterator[Fault]:
        """What is wrong between the keys."""
        if self.nesterov and not self.momentum:
            yield Fault(("nesterov",), "only with momentum above 0")

    @property
    def chosen(self) -> ServerOptimizer:
        """The optimizer itself."""
        settings = {name: value for name, value in vars(self).items() if name != "name"}
        return SERVER_OPTIMIZERS[self.name](**settings)


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """How a round's updates become one model."""

    rule: str = key(
        "The mean weighted by examples, or a robust rule in which each client counts once.",
        value="weighted_mean",
        choices=tuple(RULES),
    )
    trim: float | None = key(
        "For trimmed_mean: the share of the updates that is cut at each end, in each coordinate.",
        value=None,
        above=0,
        below=0.5,
        default="0.1",
    )
    server_optimizer: ServerOptimizerSettings | None = key(
        "With weighted_mean: an optimizer on the coordinator that makes the new model of the mean "
        "change.",
        value=None,
        default="the mean change is added",
    )

    def faults(self) -> Iterator[Fault]:
        """What is wrong between the keys."""
        if self.trim is not None and "trim" not in RULES[self.rule].settings:
            yield Fault(("trim",), f"only for trimmed_mean; the rule is {self.rule}")
        if self.server_optimizer is not None and self.rule != "weighted_mean":
            yield Fault(("server_optimizer",), f"only with weighted_mean; the rule is {self.rule}")

    @property
    def settings(self) -> dict[str, float]:
        """The settings of this rule, with the defaults filled in."""
        defaults = RULES[self.rule].settings
        given = {name: getattr(self, name) for name in defaults}
        return {**defaults, **{name: value for name, value in given.items() if value is not None}}

    @property
    def chosen(self) -> Rule:
        """The rule itself."""
        return RULES[self.rule].make(**self.settings)

    @property
    def optimizer(self) -> ServerOptimizer | None:
        """The server optimizer itself, where there is one."""
        return None if self.server_optimizer is None else self.server_optimizer.chosen
