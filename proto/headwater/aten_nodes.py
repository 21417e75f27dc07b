"""The parts of a torch step: calls and their arguments, free of torch."""

from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class Reference:
    """The value with this number."""

    index: int


@dataclass(frozen=True)
class Symbol:
    """A torch constant: `kind` is dtype, memory_format or layout."""

    kind: str
    name: str


@dataclass(frozen=True)
class Device:
    """Whichever device runs the step."""


Argument: TypeAlias = (
    "bool | int | float | str | Reference | Symbol | Device | tuple[Argument, ...] | None"
)


@dataclass(frozen=True)
class AtenNode:
    """One call: its result is the next value."""

    operator: str
    arguments: tuple[Argument, ...]
    keywords: dict[str, Argument] = field(default_factory=dict)
