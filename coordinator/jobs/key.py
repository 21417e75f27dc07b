"""What one key of a job file means and allows, declared beside the field that holds it."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field
from typing import Any

_METADATA = "headwater.key"


@dataclass(frozen=True)
class Pattern:
    """A text that must match `expression` wholly; `allowed` says so in words."""

    expression: str
    allowed: str

    def matches(self, text: str) -> bool:
        """Whether the whole text matches."""
        return re.fullmatch(self.expression, text) is not None


@dataclass(frozen=True, kw_only=True)
class Key:
    """The rule of one key.

    `minimum`, `maximum`, `above` and `below` bound numbers, and each number of a list; `choices`
    and `pattern` bound texts, and each text of a list. `check` returns what is allowed when a value
    of the right type is wrong for another reason, else None. `infer` computes a missing value from
    the other values of its table, and `default` says in words how.
    """

    about: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    pattern: Pattern | None = None
    check: Callable[[Any], str | None] | None = None
    infer: Callable[[Mapping[str, Any]], Any] | None = None
    default: str = ""

    def range(self) -> str:
        """What is allowed beyond the type, in words; empty when all values are."""
        if self.choices:
            return "one of " + ", ".join(f'"{choice}"' for choice in self.choices)
        if self.pattern is not None:
            return self.pattern.allowed
        bounds = (
            ("at least", self.minimum),
            ("above", self.above),
            ("at most", self.maximum),
            ("below", self.below),
        )
        return " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)

    def allows(self, value: Any) -> bool:
        """Whether a single text or number lies within the bounds."""
        if isinstance(value, str):
            if self.choices:
                return value in self.choices
            return self.pattern is None or self.pattern.matches(value)
        if isinstance(value, bool):
            return True
        return self._allows_number(value)

    def _allows_number(self, value: float) -> bool:
        is_64_bit = -(2**63) <= value < 2**63 if isinstance(value, int) else math.isfinite(value)
        return is_64_bit and (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )


def key(about: str, *, value: Any = MISSING, factory: Any = MISSING, **rule: Any) -> Any:
    """A dataclass field with its rule: `value` or `factory` as default, `rule` as in `Key`."""
    metadata = {_METADATA: Key(about=about, **rule)}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    if value is not MISSING:
        return field(default=value, metadata=metadata)
    return field(metadata=metadata)


def key_of(one: "Field[Any]") -> Key:
    """The rule that `key` attached to a field."""
    rule: Key = one.metadata[_METADATA]
    return rule
