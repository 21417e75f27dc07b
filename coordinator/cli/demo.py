"""`headwater demo`: see it work."""

import json
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from coordinator.cli import show
from coordinator.cli.options import json_option
from headwater.v1 import control_pb2

_WIDTHS = (5, 12, 8, 7, 8, 7, 8, 8)
_HEADINGS = ("round", "participants", "examples", "loss", "accuracy", "seconds", "down", "up")


@click.command()
@json_option
def demo(as_json: bool) -> None:
    """Train handwritten digits on this machine: a coordinator and four client processes.

    Two clients train with onnxruntime alone, two with torch, on parts that differ in their labels
    (Dirichlet 0.5). Every round is printed as it is committed, measured on held-out digits. The
    history stays in a database, which the last lines say how to query. With --json the last line is
    one JSON object.
    """
    from coordinator.demo.run import run_demo

    signal.signal(signal.SIGTERM, _stop)
    for module in ("torch", "sklearn"):
        from headwater.errors import require

        require(module, extra="author,digits", purpose="run the demo")
    table = _Table()
    result = run_demo(click.echo, table.show)
    click.echo(f"model     {result.model}")
    click.echo(f"history   {_program()} rounds list digits --database {result.database}")
    if as_json:
        click.echo(json.dumps(result.to_dict()))


class _Table:
    """Rows as they come: a live table on a terminal, plain lines in a log."""

    def __init__(self) -> None:
        self._begun = False

    def show(self, one: control_pb2.Round) -> None:
        if not self._begun:
            click.secho(_line(_HEADINGS), bold=True)
            self._begun = True
        if one.purpose == "evaluate":
            click.echo(
                f"the clients measure the last version on their own data: "
                f"{show.metrics_text(one.metrics_clients)}"
            )
            return
        measured = one.metrics_coordinator
        click.echo(
            _line(
                (
                    one.number,
                    f"{one.accepted} of {one.offered}",
                    one.examples,
                    show.metric(measured, "loss"),
                    show.metric(measured, "accuracy"),
                    f"{one.seconds:.2f}",
                    show.size(one.bytes_down),
                    show.size(one.bytes_up),
                )
            )
        )


def _line(cells: tuple[object, ...]) -> str:
    return "  ".join(str(cell).rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))


def _program() -> str:
    """How to call this command: by its name where that finds it, else by its path."""
    found, ours = shutil.which("headwater"), Path(sys.argv[0])
    same = found is not None and ours.exists() and Path(found).samefile(ours)
    return "headwater" if same or not ours.exists() else sys.argv[0]


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
