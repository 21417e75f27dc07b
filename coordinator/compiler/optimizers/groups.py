"""Parameter groups: parts of a model that the optimizer treats in their own way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from coordinator.compiler.optimizers.optimizer import Optimizer
from headwater.errors import CompileError


@dataclass(frozen=True)
class GroupRule:
    """What holds for the parameters whose names match a pattern, such as `*.bias`.

    `weight_decay` replaces the optimizer's, `learning_rate_scale` multiplies the learning rate.

    Raises:
        CompileError: a value is negative or not finite.
    """

    parameters: str
    weight_decay: float | None = None
    learning_rate_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (
            ("weight_decay", self.weight_decay),
            ("learning_rate_scale", self.learning_rate_scale),
        ):
            if value is not None and not 0 <= value < float("inf"):
                raise CompileError(
                    f"group {self.parameters!r}: {name} is {value}; expected a number of at least 0"
                )


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters by name, with the optimizer that updates them; never empty."""

    optimizer: Optimizer
    learning_rate_scale: float
    names: tuple[str, ...]

    def scaled(self, learning_rate: Tensor) -> Tensor:
        """This group's own learning rate."""
        scale = self.learning_rate_scale
        return learning_rate if scale == 1.0 else learning_rate * scale

    def update(
        self,
        name: str,
        gradient: Tensor,
        tensors: Mapping[str, Tensor],
        shared: Sequence[Tensor],
        learning_rate: Tensor,
    ) -> dict[str, Tensor]:
        """`new.p.` and `new.o.` of one parameter from `p.` and `o.`; the rate is a scaled one."""
        rule = self.optimizer
        slots = [tensors[f"o.{slot}.{name}"] for slot in rule.slots]
        parameter, new = rule.update(tensors[f"p.{name}"], gradient, slots, shared, learning_rate)
        results = {f"new.p.{name}": parameter}
        for slot, value in zip(rule.slots, new, strict=True):
            results[f"new.o.{slot}.{name}"] = value
        return results

    def eager(self, parameters: Mapping[str, nn.Parameter], learning_rate: float) -> dict[str, Any]:
        """This group as torch.optim takes it."""
        return {
            "params": [parameters[name] for name in self.names],
            "lr": learning_rate * self.learning_rate_scale,
            "weight_decay": self.optimizer.weight_decay,
        }


def parameter_groups(
    optimizer: Optimizer, rules: Sequence[GroupRule], names: Sequence[str]
) -> tuple[ParameterGroup, ...]:
    """Each name in the group of the first rule that matches it; the others in one group at last.

    Patterns are those of a shell: `*` any characters, `?` one, `[ab]` one of them.

    Raises:
        CompileError: a rule matches no parameter that an earlier one left.
    """
    left = list(names)
    groups = []
    for rule in rules:
        matched = [name for name in left if fnmatchcase(name, rule.parameters)]
        if not matched:
            shown = ", ".join(left[:10]) or "none"
            raise CompileError(
                f"group {rule.parameters!r} matches no trainable parameter that an earlier group "
                f"left; those left are: {shown}{', …' if len(left) > 10 else ''}"
            )
        left = [name for name in left if name not in set(matched)]
        decay = optimizer.weight_decay if rule.weight_decay is None else rule.weight_decay
        own = replace(optimizer, weight_decay=decay)  # type: ignore[type-var]
        groups.append(ParameterGroup(own, rule.learning_rate_scale, tuple(matched)))
    if left:
        groups.append(ParameterGroup(optimizer, 1.0, tuple(left)))
    return tuple(groups)
