"""`headwater rounds`: a job's rounds and their ledgers."""

import click

from coordinator.cli import show
from coordinator.cli.options import open_reader, reading
from headwater.v1 import control_pb2

ROUND_COLUMNS = (
    ("round", "right"),
    ("state", "left"),
    ("clients", "right"),
    ("examples", "right"),
    ("loss", "right"),
    ("accuracy", "right"),
    ("seconds", "right"),
    ("down", "right"),
    ("up", "right"),
    ("reason", "left"),
)


ENCODING_COLUMNS = (
    ("client", "left"),
    ("encoding", "left"),
    ("as fp32", "right"),
    ("sent", "right"),
    ("of it", "right"),
    ("left out", "right"),
    ("brought", "right"),
    ("from", "left"),
)


@click.group()
def rounds() -> None:
    """List a job's rounds, and show one with its ledger."""


@rounds.command("list")
@click.argument("job")
@click.option(
    "--limit", type=click.IntRange(0), default=0, help="Only the latest so many; 0 for all."
)
@reading
def list_rounds(
    job: str, limit: int, coordinator: str, database: str | None, as_json: bool
) -> None:
    """A job's rounds, by number.

    Loss and accuracy are those of the round's version on held-out data; where there is none, those
    of the version that the round started from, on the clients' data.
    """
    with open_reader(coordinator, database) as reader:
        found = reader.list_rounds(job, limit)
    if as_json:
        show.print_json([show.plain(one) for one in found.rounds])
        return
    show.print_table(ROUND_COLUMNS, map(round_row, found.rounds), f"job {job} had no round yet")


def round_row(one: control_pb2.Round) -> tuple[object, ...]:
    """A round under `ROUND_COLUMNS`; held-out metrics where there are any, else the clients'."""
    measured = one.metrics_coordinator or one.metrics_clients or one.metrics_train
    return (
        f"{one.number}" + (" eval" if one.purpose == "evaluate" else ""),
        one.state,
        f"{one.accepted}/{one.offered}",
        one.examples,
        show.metric(measured, "loss"),
        show.metric(measured, "accuracy"),
        f"{one.seconds:.2f}",
        show.size(one.bytes_down),
        show.size(one.bytes_up),
        one.reason,
    )


@rounds.command("show")
@click.argument("job")
@click.argument("number", type=click.IntRange(1))
@reading
def show_round(
    job: str, number: int, coordinator: str, database: str | None, as_json: bool
) -> None:
    """One round and its ledger: each client's part, how it ended, and why."""
    with open_reader(coordinator, database) as reader:
        found = reader.show_round(job, number)
    if as_json:
        show.print_json(
            show.plain(found.round)
            | {"assignments": [show.plain(x) for x in found.assignments]}
            | {"late": [show.plain(x) for x in found.late]}
        )
        return
    one = found.round
    produced = "none" if one.version < 0 else one.version
    show.print_fields(
        (
            ("round", f"{one.number} of {one.job} ({one.purpose})"),
            ("state", f"{one.state}: {one.reason}"),
            ("version", f"{produced}, from {one.base_version}"),
            ("opened", show.moment(one.opened_at, known=True)),
            ("seconds", show.number(one.seconds, 2)),
            ("held-out", show.metrics_text(one.metrics_coordinator)),
            ("clients before", show.metrics_text(one.metrics_clients)),
            ("clients training", show.metrics_text(one.metrics_train)),
            ("not selected", ", ".join(f"{k}: {v}" for k, v in sorted(one.not_selected.items()))),
        )
    )
    columns = (
        ("client", "left"),
        ("state", "left"),
        ("share", "right"),
        ("examples", "right"),
        ("loss before", "right"),
        ("after", "right"),
        ("norm", "right"),
        ("fetch s", "right"),
        ("train s", "right"),
        ("upload s", "right"),
        ("down", "right"),
        ("up", "right"),
        ("reason", "left"),
    )
    rows = (*found.assignments, *_late_of_others(found))
    show.print_table(columns, map(_ledger_row, rows), "no client was assigned")
    if encoded := [one for one in rows if one.encoding not in ("", "fp32")]:
        show.print_table(ENCODING_COLUMNS, map(_encoding_row, encoded), "")


def _late_of_others(found: control_pb2.ShowRoundResponse) -> list[control_pb2.LedgerRow]:
    """The late updates of earlier rounds; one that was late in this round is there already."""
    return [one for one in found.late if one.round_number != found.round.number]


def _encoding_row(one: control_pb2.LedgerRow) -> tuple[object, ...]:
    """What an update's encoding saved and left out, and what it brought of earlier ones."""
    size, whole = one.update_size_bytes, one.unencoded_size_bytes
    return (
        one.client,
        one.encoding,
        show.size(whole),
        show.size(size),
        f"{size / whole:.2%}" if whole else "",
        f"{one.encoding_error:.2%}",
        show.number(one.residual_norm),
        f"{one.residual_age_rounds} rounds ago" if one.residual_norm else "",
    )


def _ledger_row(one: control_pb2.LedgerRow) -> tuple[object, ...]:
    return (
        one.client,
        one.state,
        show.number(one.fold_weight, 3),
        one.examples,
        show.metric(one.metrics_before, "loss"),
        show.metric(one.metrics_after, "loss"),
        show.number(one.norm),
        show.number(one.fetch_seconds, 2),
        show.number(one.train_seconds, 2),
        show.number(one.upload_seconds, 2),
        show.size(one.bytes_down),
        show.size(one.bytes_up),
        one.reason,
    )
