"""Split a data set into files, one a client: `headwater data split` without its command line."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headwater.errors import ConflictError, StorageError, UsageError
from headwater.partitioning.decisions import (
    Rows,
    dirichlet_parts,
    held_out,
    iid_parts,
    label_counts,
    shard_parts,
    value_parts,
)
from headwater.partitioning.tables import Table, open_table
from headwater.sources.columns import TARGET_NAMES

Rule = Literal["iid", "dirichlet", "shards", "column"]


@dataclass(frozen=True)
class SplitRequest:
    """What to split and how. `parts` is not used by rule `column`, which makes one a value."""

    source: str
    output: Path
    rule: Rule = "iid"
    parts: int | None = None
    alpha: float = 0.5
    shards_per_part: int = 2
    column: str | None = None
    target: str | None = None
    holdout: float | None = None
    seed: int = 0
    force: bool = False


@dataclass(frozen=True)
class PartReport:
    """One written file: its examples, and how many have each label (empty without labels)."""

    file: str
    examples: int
    labels: dict[str, int]


@dataclass(frozen=True)
class SplitReport:
    """What was written, `holdout` apart from the parts."""

    parts: tuple[PartReport, ...]
    holdout: PartReport | None


def split(request: SplitRequest) -> SplitReport:
    """Write `part-*` files, and `holdout.*` where a fraction is held out, into the output folder.

    Every row of the source goes to exactly one file; the same request writes the same rows.

    Raises:
        UsageError: options that don't go together, or too few examples.
        DataError: the source cannot be read.
        ConflictError: the folder holds parts already, and `force` is not set.
        StorageError: the folder cannot be written.
    """
    table = open_table(request.source)
    labels = _labels(table, request)
    rest, held = _held_out(table.count(), labels, request)
    parts = {
        f"part-{name}{table.ending}": rest[rows]
        for name, rows in _parts(table, labels, rest, request).items()
    }
    files = {**parts, **({f"holdout{table.ending}": held} if held is not None else {})}
    _write(table, request, files)
    reports = {name: _report(name, rows, labels) for name, rows in files.items()}
    holdout = reports.pop(f"holdout{table.ending}") if held is not None else None
    return SplitReport(tuple(reports.values()), holdout)


def _labels(table: Table, request: SplitRequest) -> NDArray[Any] | None:
    """The label of each row: by `target`, or by a usual name; None where there is none."""
    if request.target is not None:
        return table.values(request.target)
    name = next((name for name in TARGET_NAMES if name in table.names), None)
    if name is not None:
        return table.values(name)
    if request.rule in ("dirichlet", "shards"):
        raise UsageError(
            f"{request.source}: --by {request.rule} needs labels: name their column with --target "
            f"(columns there are: {', '.join(table.names)})"
        )
    return None


def _held_out(
    count: int, labels: NDArray[Any] | None, request: SplitRequest
) -> tuple[Rows, Rows | None]:
    every = np.arange(count, dtype=np.int64)
    if request.holdout is None:
        return every, None
    held = held_out(count if labels is None else labels, request.holdout, request.seed)
    return np.setdiff1d(every, held), held


def _parts(
    table: Table, labels: NDArray[Any] | None, rest: Rows, request: SplitRequest
) -> dict[str, Rows]:
    """The parts by the name that their file gets, as positions in `rest`."""
    if request.rule == "column":
        if request.column is None or request.parts is not None:
            raise UsageError("--by column needs --column, and makes one part a value: no --parts")
        by_value = value_parts(table.values(request.column)[rest])
        return dict(zip(safe_names(by_value), by_value.values(), strict=True))
    if request.parts is None or request.column is not None:
        raise UsageError(f"--by {request.rule} needs --parts; --column goes with --by column")
    if request.rule == "iid" or labels is None:
        numbered = iid_parts(len(rest), request.parts, request.seed)
    elif request.rule == "dirichlet":
        numbered = dirichlet_parts(labels[rest], request.parts, request.alpha, request.seed)
    else:
        numbered = shard_parts(labels[rest], request.parts, request.shards_per_part, request.seed)
    return {f"{index:05d}": rows for index, rows in enumerate(numbered)}


def safe_names(values: Iterable[str]) -> list[str]:
    """Distinct file names for values, in order: letters, digits, `.`, `_` and `-` stay.

    A name that was taken, in any case of letters, gets a number.
    """
    names: list[str] = []
    taken: set[str] = set()
    for value in values:
        base = re.sub(r"[^A-Za-z0-9._-]+", "_", value).strip("._")[:80] or "value"
        name, number = base, 1
        while name.lower() in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def _write(table: Table, request: SplitRequest, files: dict[str, Rows]) -> None:
    output = request.output
    try:
        output.mkdir(parents=True, exist_ok=True)
        earlier = sorted([*output.glob("part-*"), *output.glob("holdout.*")])
        if earlier and not request.force:
            raise ConflictError(
                f"{output}: holds {earlier[0].name} already; --force removes all part-* and "
                "holdout.* files there first"
            )
        source = Path(request.source).resolve()
        if any(path.resolve() == source for path in earlier) or output.resolve() == source:
            raise ConflictError(f"{output}: holds the source itself; write to another folder")
        for path in earlier:
            path.unlink()
        table.write({output / name: rows for name, rows in files.items()})
    except OSError as error:
        raise StorageError(f"{output}: cannot write the parts ({error})") from error


def _report(name: str, rows: Rows, labels: NDArray[Any] | None) -> PartReport:
    return PartReport(name, len(rows), {} if labels is None else label_counts(labels[rows]))
