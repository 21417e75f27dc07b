"""What a round with a 100 MB model costs, in seconds and in memory, when no one computes.

The deployment is that of round_overhead. The floors have the same number of client processes and
move the same bytes: gRPC alone, plain TCP alone, and one write with sync of that size for each
update and for the new weights, one after another. Peak memory is the most that was resident, as the
operating system counts it (VmHWM), pages of mapped files included.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.deployment import COORDINATOR, Deployment, periods
from benchmarks.exchange import grpc_seconds, tcp_seconds, write_seconds
from benchmarks.random_plan import random_plan, write_job
from benchmarks.report import Report, median, percentile_95

PARAMETERS = 25_000_000
WARM_UP = 1
CLIENT = [sys.executable, str(Path(__file__).with_name("no_op_client.py"))]
COLUMNS = {
    "clients": "clients",
    "median_seconds": "median s",
    "p95_seconds": "p95 s",
    "coordinator_mib": "coordinator, MiB",
    "client_mib": "client, MiB",
    "grpc_seconds": "bare gRPC, s",
    "tcp_seconds": "plain TCP, s",
    "write_seconds": "synced writes, s",
    "times_grpc": "× gRPC",
}


@click.command(help=__doc__)
@click.option("--clients", type=int, multiple=True, default=(2, 4), show_default=True)
@click.option("--rounds", default=10, show_default=True, help="Rounds that count.")
@click.option("--parameters", default=PARAMETERS, show_default=True, help="Float32 values.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each case.")
def main(clients: Sequence[int], rounds: int, parameters: int, as_json: bool) -> None:
    report = Report("large_model", COLUMNS, as_json=as_json)
    size_bytes = 4 * parameters
    write = median(write_seconds(size_bytes, rounds))
    for count in clients:
        exchange = median(grpc_seconds(count, size_bytes, rounds))
        tcp = median(tcp_seconds(count, size_bytes, rounds))
        seconds, coordinator_mib, client_mib = measure(count, rounds, parameters)
        report.add(
            {
                "clients": count,
                "parameters": parameters,
                "rounds": len(seconds),
                "median_seconds": median(seconds),
                "p95_seconds": percentile_95(seconds),
                "coordinator_mib": coordinator_mib,
                "client_mib": client_mib,
                "grpc_seconds": exchange,
                "tcp_seconds": tcp,
                "write_seconds": write * (count + 1),
                "times_grpc": median(seconds) / exchange,
            }
        )


def measure(clients: int, rounds: int, parameters: int) -> tuple[list[float], float, float]:
    """Seconds of each round; the coordinator's peak memory, and the largest client's, in MiB."""
    with Deployment() as deployment:
        names = [f"no-op-{number}" for number in range(clients)]
        for name in names:
            deployment.start_client(name, CLIENT, ())
        job_file = write_job(deployment.folder, clients=clients, rounds=rounds + WARM_UP + 1)
        made = deployment.run(job_file, random_plan(parameters))
        coordinator_mib = deployment.peak_memory_mib(COORDINATOR)
        client_mib = max(map(deployment.peak_memory_mib, names))
    return periods(made)[WARM_UP:], coordinator_mib, client_mib


if __name__ == "__main__":
    main()
