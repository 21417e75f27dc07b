"""A benchmark's results: one table for people, or one line of JSON for each case."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import numpy as np

PACKAGES = ("headwater", "grpcio", "protobuf", "numpy", "sqlalchemy", "onnxruntime", "torch")
"""The packages whose versions stand beside the figures."""

Value = str | int | float | None


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return float(np.median(values))


def percentile_95(values: Sequence[float]) -> float:
    """The value that one in twenty exceeds, interpolated linearly."""
    return float(np.percentile(values, 95))


def environment() -> dict[str, Value]:
    """The machine, its load as the run begins, the versions and the commit."""
    facts: dict[str, Value] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_1_minute": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }
    return facts | {name: _version(name) for name in PACKAGES} | {"commit": _commit()}


class Report:
    """Prints the environment once and then a case at a time, in a table or as JSON lines."""

    def __init__(self, name: str, columns: Mapping[str, str], *, as_json: bool) -> None:
        """`columns` maps the fields of a case to their headings, in order."""
        self._name = name
        self._columns = columns
        self._as_json = as_json
        self._environment = environment()
        if as_json:
            return
        click.echo(
            f"{name}: " + ", ".join(f"{key} {one}" for key, one in self._environment.items())
        )
        click.echo("")
        for line in table_head(columns):
            click.echo(line)

    def add(self, case: Mapping[str, Value]) -> None:
        """Print one case; a field that is no column is shown in the JSON alone."""
        if self._as_json:
            line = {"benchmark": self._name, **case, "environment": self._environment}
            click.echo(json.dumps(line))
        else:
            click.echo(table_row(self._columns, case))

    def say(self, text: str) -> None:
        """A word for people; nothing in JSON."""
        if not self._as_json:
            click.echo(text, err=True)


def table_head(columns: Mapping[str, str]) -> list[str]:
    """The headings, and the line that aligns the figures."""
    return [
        "| " + " | ".join(columns.values()) + " |",
        "| " + " | ".join("---:" for _ in columns) + " |",
    ]


def table_row(columns: Mapping[str, str], case: Mapping[str, Value]) -> str:
    """One case as a line of the table."""
    return "| " + " | ".join(_shown(case.get(key)) for key in columns) + " |"


def _shown(value: Value) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The source's commit, with a plus where files differ from it; None outside of a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root)]
    commit = subprocess.run(
        [*command, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    changed = subprocess.run([*command, "diff", "--quiet", "HEAD"], capture_output=True)
    return commit.stdout.strip() + ("+" if changed.returncode else "")
