"""`headwater clients`: the devices that attended."""

import click

from coordinator.cli import show
from coordinator.cli.options import open_reader, reading
from headwater.v1 import control_pb2

_EXAMPLES = "examples."


@click.group()
def clients() -> None:
    """List the clients, and show one with its latest assignments."""


@clients.command("list")
@reading
def list_clients(coordinator: str, database: str | None, as_json: bool) -> None:
    """The clients by name: who attends, and why one is not used."""
    with open_reader(coordinator, database) as reader:
        found = reader.list_clients()
    if as_json:
        show.print_json([show.plain(one) for one in found.clients])
        return
    columns = (
        ("client", "left"),
        ("attends", "left"),
        ("runtime", "left"),
        ("device", "left"),
        ("data sets", "left"),
        ("tags", "left"),
        ("last seen", "left"),
        ("notes", "left"),
    )
    rows = (
        (
            one.name,
            "yes" if one.attending else "",
            one.profile.get("runtime", ""),
            one.profile.get("device", ""),
            _datasets(one),
            _pairs(one.tags),
            show.moment(one.last_seen_at, known=one.HasField("last_seen_at")),
            _notes(one),
        )
        for one in found.clients
    )
    show.print_table(columns, rows, "no client has attended yet: headwater-client run")


@clients.command("show")
@click.argument("client")
@reading
def show_client(client: str, coordinator: str, database: str | None, as_json: bool) -> None:
    """One client and its latest assignments."""
    with open_reader(coordinator, database) as reader:
        found = reader.show_client(client)
    if as_json:
        show.print_json(
            show.plain(found.client) | {"assignments": [show.plain(x) for x in found.assignments]}
        )
        return
    one = found.client
    show.print_fields(
        (
            ("client", one.name),
            ("identity", one.client_id),
            ("host", one.hostname),
            ("attends", "yes" if one.attending else "no"),
            ("data sets", _datasets(one)),
            ("tags", _pairs(one.tags)),
            *_profile(one),
            ("notes", _notes(one)),
            ("last seen", show.moment(one.last_seen_at, known=one.HasField("last_seen_at"))),
        )
    )
    columns = (
        ("job", "left"),
        ("round", "right"),
        ("state", "left"),
        ("examples", "right"),
        ("train s", "right"),
        ("up", "right"),
        ("reason", "left"),
    )
    rows = (
        (
            x.job,
            x.round_number,
            x.state,
            x.examples,
            show.number(x.train_seconds, 2),
            show.size(x.bytes_up),
            x.reason,
        )
        for x in found.assignments
    )
    show.print_table(columns, rows, "it was never assigned")


def _profile(one: control_pb2.Client) -> list[tuple[str, str]]:
    """The device profile, without the data sets, which have a line of their own."""
    return sorted(pair for pair in one.profile.items() if not pair[0].startswith(_EXAMPLES))


def _datasets(one: control_pb2.Client) -> str:
    return ", ".join(
        key.removeprefix(_EXAMPLES) + (f" ({value})" if int(value) >= 0 else "")
        for key, value in sorted(one.profile.items())
        if key.startswith(_EXAMPLES)
    )


def _pairs(pairs: object) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(dict(pairs).items()))  # type: ignore[call-overload]


def _notes(one: control_pb2.Client) -> str:
    notes = [one.ineligible_reason] if one.ineligible_reason else []
    if one.insecure:
        notes.append("INSECURE: attends over an open network without enrollment")
    if one.displaced_count:
        notes.append(f"another device was seen under its identity {one.displaced_count} times")
    return "; ".join(notes)
