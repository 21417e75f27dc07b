"""Nested mappings to dataclasses, by the types and the `key` rules of their fields.

All faults are found in one pass: a wrong key never hides another.
"""

import difflib
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Protocol, TypeVar, cast, get_args, get_origin, get_type_hints

from coordinator.jobs.key import Key, key_of

Path = tuple[str | int, ...]
Built = TypeVar("Built")

_WRONG = object()
_SCALARS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}


@dataclass(frozen=True)
class Fault:
    """Something wrong at `path`: `message` says what is allowed there."""

    path: Path
    message: str

    def under(self, parent: Path) -> "Fault":
        """The same fault seen from an outer table."""
        return Fault((*parent, *self.path), self.message)

    def describe(self, values: Mapping[str, Any]) -> str:
        """`[rounds] quorum = 9: at most the cohort (4)`; `values` is what was built from."""
        value = _at(values, self.path)
        place = f"[{self.path[0]}]" if _is_section(self.path, value) else _place(self.path)
        return f"{place}{_shown(value)}: {self.message}"


class _Checked(Protocol):
    def faults(self) -> Iterator[Fault]: ...


def build(kind: type[Built], values: Mapping[str, Any]) -> tuple[Built | None, list[Fault]]:
    """The dataclass of `values` and every fault in them; None where it could not be built."""
    faults: list[Fault] = []
    built = _table(kind, values, (), faults)
    return (None if built is _WRONG else cast(Built, built)), faults


def _table(kind: type, values: Mapping[str, Any], path: Path, faults: list[Fault]) -> Any:
    members = {one.name: one for one in fields(kind)}
    faults.extend(_unknown(name, list(members), path) for name in values if name not in members)
    hints = get_type_hints(kind)
    built = {
        name: _member(one, hints[name], values, (*path, name), faults)
        for name, one in members.items()
    }
    if any(value is _WRONG for value in built.values()):
        return _WRONG
    given = {name: value for name, value in built.items() if value is not MISSING}
    inferred = {
        name: rule(given)
        for name, one in members.items()
        if name not in given and (rule := key_of(one).infer) is not None
    }
    result = kind(**given, **inferred)
    if hasattr(result, "faults"):
        faults.extend(one.under(path) for one in cast(_Checked, result).faults())
    return result


def _member(
    one: "Field[Any]", hint: Any, values: Mapping[str, Any], path: Path, faults: list[Fault]
) -> Any:
    rule = key_of(one)
    if one.name not in values:
        if is_required(one):
            faults.append(Fault(path, f"missing; {allowed(hint, rule)}"))
            return _WRONG
        return MISSING
    value = _value(hint, rule, values[one.name], path, faults)
    if value is not _WRONG and rule.check is not None and (message := rule.check(value)):
        faults.append(Fault(path, message))
        return _WRONG
    return value


def is_required(one: "Field[Any]") -> bool:
    """Whether a field must be given: it has no default and none is inferred."""
    return one.default is MISSING and one.default_factory is MISSING and key_of(one).infer is None


_OTHER_NAMES = {
    "lr": "learning_rate", "epochs": "local_epochs", "steps": "local_steps", "wd": "weight_decay",
    "rounds": "count", "clients": "cohort", "bs": "batch_size",
}  # fmt: skip
"""What other programs call some keys."""


def _unknown(name: str, known: list[str], path: Path) -> Fault:
    other = _OTHER_NAMES.get(name)
    near = [other] if other in known else difflib.get_close_matches(name, known, 1)
    question = f'did you mean "{near[0]}"? ' if near else ""
    return Fault((*path, name), f"unknown key; {question}allowed: {', '.join(known)}")


def _value(hint: Any, rule: Key, value: Any, path: Path, faults: list[Fault]) -> Any:
    kind = _bare(hint)
    if is_dataclass(kind):
        if isinstance(value, Mapping):
            return _table(cast(type, kind), value, path, faults)
    elif get_origin(kind) is tuple:
        if isinstance(value, list | tuple):
            return _list(kind, rule, value, path, faults)
    elif _is_scalar(kind, value):
        if rule.allows(value):
            return kind(value)
        faults.append(Fault(path, rule.range() or "a finite number of 64 bits"))
        return _WRONG
    faults.append(Fault(path, f"{allowed(hint, rule)}, not {_type_name(value)}"))
    return _WRONG


def _list(kind: Any, rule: Key, values: Any, path: Path, faults: list[Fault]) -> Any:
    arguments = get_args(kind)
    open_ended = arguments[-1] is Ellipsis
    if not open_ended and len(values) != len(arguments):
        faults.append(Fault(path, f"exactly {len(arguments)} values"))
        return _WRONG
    built = tuple(
        _value(arguments[0], rule, value, (*path, index), faults)
        for index, value in enumerate(values)
    )
    return _WRONG if any(value is _WRONG for value in built) else built


def _is_scalar(kind: Any, value: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _bare(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(one for one in get_args(hint) if one is not type(None))
    return hint


def type_words(hint: Any) -> str:
    """The type of a field in an author's words."""
    kind = _bare(hint)
    if is_dataclass(kind):
        return "a table"
    if get_origin(kind) is tuple:
        inner = type_words(get_args(kind)[0]).split(" ", 1)[1]
        count = "" if get_args(kind)[-1] is Ellipsis else f"{len(get_args(kind))} "
        return f"a list of {count}{inner}s"
    return _SCALARS[kind]


def allowed(hint: Any, rule: Key) -> str:
    """The type and the range of a field in an author's words."""
    if is_dataclass(_bare(hint)):
        names = ", ".join(one.name for one in fields(_bare(hint)))
        return f"a table with {names}"
    words, bounds = type_words(hint), rule.range()
    each = "each " if get_origin(_bare(hint)) is tuple else ""
    return f"{words}, {each}{bounds}" if bounds else words


def _type_name(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    return _SCALARS.get(type(value), f"a {type(value).__name__}")


def _place(path: Path) -> str:
    """`[rounds] evaluate.every`: the table of the job file, then the key in it."""
    section, rest = (path[:1], path[1:]) if len(path) > 1 else ((), path)
    header = f"[{section[0]}] " if section else ""
    dotted = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in rest)
    return header + dotted.lstrip(".")


def _at(values: Any, path: Path) -> Any:
    """What lies at a path, or MISSING."""
    for step in path:
        try:
            values = values[step]
        except (KeyError, IndexError, TypeError):
            return MISSING
    return values


def _is_section(path: Path, value: Any) -> bool:
    return len(path) == 1 and isinstance(value, Mapping)


def _shown(value: Any) -> str:
    """` = 9` for a single value or a list of them."""
    if value is MISSING or isinstance(value, Mapping):
        return ""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return f" = {text if len(text) <= 60 else text[:57] + '...'}"
