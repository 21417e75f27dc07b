"""The fault sweep: `python -m tests.faults.sweep [--write docs/reliability.md]`.

It trains a small real job once undisturbed, with every step recorded that the programs pass; then
once for each step, killing the program there the first time, in the middle and the last time; then
with two programs killed at random steps. Each run must end with the digests of the first and with a
whole ledger. A line is printed for each, and the exit code is 1 if any failed.
"""

import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

from coordinator.author import compile_job
from coordinator.compiler.compiled_plan import CompiledPlan
from tests.document import replaced
from tests.faults.faulty_fleet import JOB, Fault, FaultyFleet
from tests.postgresql import running_server
from tests.system.training import write_job

PROGRAMS = ("coordinator", "ann")
BEGIN = "<!-- python -m tests.faults.sweep --write docs/reliability.md -->"


@dataclass(frozen=True)
class Outcome:
    """A run with its faults: why it failed (empty when it did not), and whether each one struck."""

    faults: tuple[Fault, ...]
    failure: str
    restarts: int
    seconds: float


def undisturbed(
    folder: Path, plan: CompiledPlan, database: str = ""
) -> tuple[list[str], dict[str, Counter[str]]]:
    """The digests of the job's versions, and how often each program passed each step."""
    fleet = FaultyFleet(folder, plan, database=database)
    try:
        job = fleet.run_job()
        return fleet.digests(job), {name: fleet.passed(name) for name in PROGRAMS}
    finally:
        fleet.end()


def faults_of(passed: dict[str, Counter[str]]) -> Iterator[Fault]:
    """The first, the middle and the last time that a program passes each step."""
    for program, counts in passed.items():
        for label, count in counts.items():
            for occurrence in sorted({1, (count + 1) // 2, count}):
                yield Fault(program, label, occurrence)


def pairs_of(passed: dict[str, Counter[str]], number: int, seed: int) -> list[tuple[Fault, Fault]]:
    """Random pairs, one fault in each program."""
    draw = random.Random(seed)

    def one(program: str) -> Fault:
        label = draw.choice(sorted(passed[program]))
        return Fault(program, label, draw.randint(1, passed[program][label]))

    return [(one(PROGRAMS[0]), one(PROGRAMS[1])) for _ in range(number)]


def disturbed(
    folder: Path,
    plan: CompiledPlan,
    faults: Sequence[Fault],
    expected: list[str],
    database: str = "",
    blobs: str = "",
) -> Outcome:
    """Run the job once more, with these faults."""
    began = time.monotonic()
    fleet = FaultyFleet(folder, plan, *faults, database=database, blobs=blobs)
    failure = ""
    try:
        fleet.check(fleet.run_job(), expected)
    except AssertionError as error:
        failure = str(error)
    finally:
        fleet.end()
    restarts = fleet.restarts.total()
    return Outcome(tuple(faults), failure, restarts, time.monotonic() - began)


@click.command()
@click.option("--pairs", default=30, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--only", help="Only faults whose name has this in it.")
@click.option("--postgresql", is_flag=True, help="With PostgreSQL instead of SQLite.")
@click.option("--write", "document", type=click.Path(path_type=Path, exists=True))
def main(pairs: int, seed: int, only: str | None, postgresql: bool, document: Path | None) -> None:
    """Kill every program at every step, one at a time and in pairs."""
    with ExitStack() as stack:
        server = stack.enter_context(running_server()) if postgresql else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-sweep-")))
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        plan = compile_job(write_job(folder / "job", **JOB))

        def database() -> str:
            return server.create_database() if server else ""

        expected, passed = undisturbed(made(folder / "undisturbed"), plan, database())
        cases: list[tuple[Fault, ...]] = [(fault,) for fault in faults_of(passed)]
        cases += pairs_of(passed, pairs, seed)
        outcomes = []
        for number, faults in enumerate(cases):
            if only and not any(only in str(fault) for fault in faults):
                continue
            place = made(folder / str(number))
            outcome = disturbed(place, plan, faults, expected, database())
            outcomes.append(outcome)
            print(line_of(outcome), flush=True)
    failed = [one for one in outcomes if one.failure]
    print(
        f"{len(outcomes)} runs, {sum(one.restarts for one in outcomes)} kills, {len(failed)} failed"
    )
    if document is not None:
        document.write_text(replaced(document.read_text(), BEGIN, table(passed, outcomes)))
    sys.exit(1 if failed else 0)


def made(folder: Path) -> Path:
    """A new folder."""
    folder.mkdir(parents=True)
    return folder


def line_of(outcome: Outcome) -> str:
    """One run in a line, and why it failed below."""
    verdict = "FAILED" if outcome.failure else "ok"
    missed = "" if outcome.restarts == len(outcome.faults) else f", {outcome.restarts} struck"
    faults = " and ".join(map(str, outcome.faults))
    return f"{verdict} {outcome.seconds:.1f} s{missed}: {faults}\n{outcome.failure}".rstrip()


def table(passed: dict[str, Counter[str]], outcomes: Sequence[Outcome]) -> str:
    """The steps with how often they were passed and killed at, and the pairs in one row."""
    lines = [
        "| program | step | passed | killed at | failed |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for program, counts in passed.items():
        for label, count in sorted(counts.items()):
            runs = [
                one for one in outcomes
                if len(one.faults) == 1 and one.faults[0].label == label
                and one.faults[0].program == program
            ]  # fmt: skip
            kills, failed = (
                sum(one.restarts for one in runs),
                sum(bool(one.failure) for one in runs),
            )
            lines.append(f"| {program_name(program)} | {label} | {count} | {kills} | {failed} |")
    pairs = [one for one in outcomes if len(one.faults) > 1]
    kills, failed = sum(one.restarts for one in pairs), sum(bool(one.failure) for one in pairs)
    lines.append(f"| both | {len(pairs)} random pairs | | {kills} | {failed} |")
    return "\n".join(lines) + "\n"


def program_name(program: str) -> str:
    """Which program a process is."""
    return "coordinator" if program == "coordinator" else "client"


if __name__ == "__main__":
    main()
