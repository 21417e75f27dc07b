"""The tables of `headwater compile --explain`."""

from typing import Any

import click

from coordinator.cli import show

_Tables = dict[str, Any]


def print_explanation(tables: _Tables) -> None:
    """Print what `coordinator.explanation.explain` found, one table after the other."""
    for title, columns, rows in (
        ("operators of the training step", _OPERATORS, _operators(tables)),
        ("members", _MEMBERS, _members(tables)),
        ("tensors", _PARAMETERS, _parameters(tables)),
        ("a training step, estimated", _COSTS, _costs(tables)),
        ("distance from float64 torch", _PARITY, _parity(tables)),
    ):
        click.echo(f"\n{title}")
        show.print_table(columns, rows, "none")


_OPERATORS = (("FORM", "left"), ("OPERATOR", "left"), ("NODES", "right"))
_MEMBERS = (("MEMBER", "left"), ("NODES", "right"), ("SIZE", "right"))
_PARAMETERS = (("ROLE", "left"), ("TENSORS", "right"), ("NUMBERS", "right"), ("SIZE", "right"))
_COSTS = (("BATCH SIZE", "right"), ("PEAK MEMORY", "right"), ("OPERATIONS", "right"), ("", "left"))
_PARITY = (
    ("QUANTITY", "left"), ("GRAPHS", "right"), ("TORCH FLOAT32", "right"), ("LIMIT", "right"),
)  # fmt: skip


def _operators(tables: _Tables) -> list[tuple[object, ...]]:
    return [(one["form"], one["operator"], one["count"]) for one in tables["operators"]]


def _members(tables: _Tables) -> list[tuple[object, ...]]:
    return [
        (one["member"], "" if one["nodes"] is None else one["nodes"], show.size(one["size_bytes"]))
        for one in tables["members"]
    ]


def _parameters(tables: _Tables) -> list[tuple[object, ...]]:
    return [
        (one["role"], one["tensors"], f"{one['count']:,}", show.size(one["size_bytes"]))
        for one in tables["parameters"]
    ]


def _costs(tables: _Tables) -> list[tuple[object, ...]]:
    return [
        (
            one["batch_size"],
            show.size(one["peak_memory_bytes"]),
            f"{one['operations'] / 1e6:,.1f} million",
            "the job's" if one["is_the_jobs"] else "",
        )
        for one in tables["costs"]
    ]


def _parity(tables: _Tables) -> list[tuple[object, ...]]:
    return [
        (one["quantity"], *(f"{one[key]:.1e}" for key in ("graphs", "torch_float32", "limit")))
        for one in tables["parity"]
    ]
