"""The reference of the job file in Markdown, from the rules that check it."""

import json
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from coordinator.jobs.builder import allowed, is_required, type_words
from coordinator.jobs.job_spec import JobSpec
from coordinator.jobs.key import key_of

BEGIN = "<!-- From the rules in"
END = "<!-- The end of the tables."
HEADER = "| key | type and range | default | meaning |\n| --- | --- | --- | --- |"


def reference() -> str:
    """A table for each table of the job file, the outermost first."""
    return "\n\n".join(
        f"### {title}\n\n{HEADER}\n" + "\n".join(_rows(kind)) for title, kind in _tables()
    )


def _tables() -> Iterator[tuple[str, type]]:
    yield "At the top", JobSpec
    for section, hint in get_type_hints(JobSpec).items():
        if (kind := _table_kind(hint)) is not None:
            yield f"`[{section}]`", kind
            yield from _inner(f"`[{section}]`", kind)


def _inner(title: str, kind: Any) -> Iterator[tuple[str, type]]:
    """The tables within a section; keys that hold the same kind of table share one."""
    names: dict[type, list[str]] = {}
    for name, hint in get_type_hints(kind).items():
        if (inner := _table_kind(hint)) is not None:
            names.setdefault(inner, []).append(name)
    for inner, keys in names.items():
        deeper = f"{title} " + ", ".join(f"`{name}`" for name in keys)
        yield deeper, inner
        yield from _inner(deeper, inner)


def _table_kind(hint: Any) -> type | None:
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    return next((found for one in get_args(hint) if (found := _table_kind(one))), None)


def _rows(kind: Any) -> Iterator[str]:
    hints = get_type_hints(kind)
    for one in fields(kind):
        hint = hints[one.name]
        words = type_words(hint) if _table_kind(hint) else allowed(hint, key_of(one))
        yield f"| `{one.name}` | {words} | {_default(one)} | {key_of(one).about} |"


def _default(one: "Field[Any]") -> str:
    rule = key_of(one)
    if rule.default:
        return rule.default
    if is_required(one):
        return "required"
    if one.default_factory is not MISSING:
        return "its defaults"
    value = list(one.default) if isinstance(one.default, tuple) else one.default
    return f"`{json.dumps(value)}`"


def with_reference(document: str) -> str:
    """A document whose part between the two marks is this reference."""
    before, _, rest = document.partition(BEGIN)
    mark, _, _ = rest.partition("\n")
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{mark}\n\n{reference()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_reference(path.read_text(encoding="utf-8")), encoding="utf-8")
