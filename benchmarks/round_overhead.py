"""What a round costs when no one computes: a small model, and clients that return at once.

Everything else is the product: a coordinator process with SQLite and blobs on disk, clients as
processes with their journals, every write synced. Seconds are taken from the rounds' rows in the
database, from one round's opening to the next one's. The floor is a bare gRPC exchange of the same
bytes between as many processes; and a round makes that many small files and commits durable, so
the price of one synced write stands beside it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.deployment import Deployment, periods
from benchmarks.exchange import grpc_seconds, write_seconds
from benchmarks.random_plan import random_plan, write_job
from benchmarks.report import Report, median, percentile_95
from headwater.v1 import control_pb2

PARAMETERS = 60_000
WARM_UP = 3
CLIENT = [sys.executable, str(Path(__file__).with_name("no_op_client.py"))]
COLUMNS = {
    "clients": "clients",
    "median_seconds": "median s",
    "p95_seconds": "p95 s",
    "floor_median_seconds": "bare gRPC, median s",
    "floor_p95_seconds": "bare gRPC, p95 s",
    "times_floor": "× floor",
    "sync_seconds": "one synced write, s",
}


@click.command(help=__doc__)
@click.option("--clients", type=int, multiple=True, default=(2, 10), show_default=True)
@click.option("--rounds", default=60, show_default=True, help="Rounds that count.")
@click.option("--parameters", default=PARAMETERS, show_default=True, help="Float32 values.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each case.")
def main(clients: Sequence[int], rounds: int, parameters: int, as_json: bool) -> None:
    report = Report("round_overhead", COLUMNS, as_json=as_json)
    sync = median(write_seconds(4 * parameters, 50))
    for count in clients:
        floor = grpc_seconds(count, 4 * parameters, rounds)
        seconds = round_seconds(count, rounds, parameters)
        report.add(
            {
                "clients": count,
                "parameters": parameters,
                "rounds": len(seconds),
                "median_seconds": median(seconds),
                "p95_seconds": percentile_95(seconds),
                "floor_median_seconds": median(floor),
                "floor_p95_seconds": percentile_95(floor),
                "times_floor": median(seconds) / median(floor),
                "sync_seconds": sync,
            }
        )


def round_seconds(clients: int, rounds: int, parameters: int) -> list[float]:
    """Seconds of each round, after a warm-up in which clients fetch and open the plan."""
    with Deployment() as deployment:
        for number in range(clients):
            deployment.start_client(f"no-op-{number}", CLIENT, ())
        job_file = write_job(deployment.folder, clients=clients, rounds=rounds + WARM_UP + 1)
        made = deployment.run(job_file, random_plan(parameters))
    _check(made, clients)
    return periods(made)[WARM_UP:]


def _check(rounds: Sequence[control_pb2.Round], clients: int) -> None:
    """A round that some client took no part in would not be the work that is claimed."""
    short = [one.number for one in rounds if one.accepted != clients or one.version < 0]
    if short:
        raise click.ClickException(f"rounds {short} were not committed with {clients} updates")


if __name__ == "__main__":
    main()
