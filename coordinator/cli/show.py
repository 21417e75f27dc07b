"""Messages for people and programs: tables and JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from math import isfinite
from typing import Any

import click
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Columns = Sequence[tuple[str, str]]


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON-able values: numbers stay numbers, times are ISO 8601 in UTC."""
    return {
        field.name: _value(message, field.name)
        for field in message.DESCRIPTOR.fields
        if field.message_type is None or field.is_repeated or message.HasField(field.name)
    }


def print_json(value: Message | Mapping[str, Any] | list[Any]) -> None:
    """One value as indented JSON."""
    document = plain(value) if isinstance(value, Message) else value
    click.echo(json.dumps(document, indent=2, default=str))


def print_table(columns: Columns, rows: Iterable[Sequence[object]], empty: str) -> None:
    """Rows under headings; `columns` are (heading, left or right). Text is shown as it is."""
    table = table_of(columns)
    for row in rows:
        table.add_row(*map(_cell, row))
    if not table.row_count:
        click.echo(empty)
        return
    Console(soft_wrap=False, width=None if _terminal() else 200).print(table)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Name and value, one a line; empty values are left out."""
    known = [(name, value) for name, value in fields if value not in ("", None)]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        click.echo(f"{name:{width}}  {printable(str(value))}")


def table_of(columns: Columns) -> Table:
    """An empty table with these (heading, left or right) columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, side in columns:
        table.add_column(heading, justify="right" if side == "right" else "left", no_wrap=True)
    return table


def size(size_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(size_bytes) < 1000 or unit == "GB":
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    raise AssertionError("unreachable")


def number(value: float | None, digits: int = 4) -> str:
    """A number for people; nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"


def metric(metrics: Mapping[str, float], name: str) -> str:
    """One metric for people; nothing where it was not measured."""
    return number(metrics[name]) if name in metrics else ""


def json_numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Named values for JSON, which has no NaN and no infinity: they become null."""
    return {name: _number(value) for name, value in metrics.items()}


def metrics_text(metrics: Mapping[str, float]) -> str:
    """All metrics on one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))


def moment(stamp: Timestamp, *, known: bool) -> str:
    """A time on this machine's clock; nothing where it is not known."""
    if not known:
        return ""
    return stamp.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def printable(text: str) -> str:
    """Text without control characters, which could steer a terminal."""
    return "".join(one if one.isprintable() else " " for one in text)


def _cell(value: object) -> Text:
    return Text(printable(str(value)))


def _terminal() -> bool:
    return Console().is_terminal


def _value(message: Message, name: str) -> Any:
    value = getattr(message, name)
    if isinstance(value, Timestamp):
        return value.ToDatetime(UTC).isoformat()
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, Mapping):
        return json_numbers(value)
    if isinstance(value, str | int | float | bool):
        return _number(value)
    return [plain(one) if isinstance(one, Message) else one for one in value]


def _number(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    return None if isinstance(value, float) and not isfinite(value) else value
