"""Some of the sweep's kills, and that the sweep knows of every step there is.

The whole is `make chaos`; its table is in docs/reliability.md.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.author import compile_job
from coordinator.compiler.compiled_plan import CompiledPlan
from tests.faults.faulty_fleet import JOB, Fault
from tests.faults.sweep import disturbed, made, program_name, undisturbed
from tests.postgresql import PostgresqlServer
from tests.s3 import S3Server
from tests.system.training import write_job

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "reliability.md"

pytestmark = pytest.mark.slow

KILLS = [
    ("coordinator", "committed: coordinator.engine.opening._write_opening"),
    ("coordinator", "rename: storage.blob_directory.BlobDirectory.adopt"),
    ("coordinator", "commit: storage.rounds.accept_update"),
    ("coordinator", "send: receipt"),
    ("coordinator", "commit: coordinator.engine.closing._write_commit"),
    ("coordinator", "committed: coordinator.engine.closing._write_commit"),
    ("ann", "move: edge_client.cache.BlobCache.admit"),
    ("ann", "rename: edge_client.journal.Journal.store"),
    ("ann", "received: receipt"),
    ("ann", "rename: edge_client.residuals.Residuals.proposal"),
    ("ann", "rename: edge_client.residuals.Residuals.settle"),
]
"""One of each kind: between files, commits and messages of the two programs."""

ELSEWHERE = {
    "coordinator.cli.replay._write": "an operator's replay",
    "coordinator.services.control.ControlService._receive": "passed in a worker thread",
    "coordinator.services.quarantine.quarantine": "an update that is refused",
    "coordinator.services.quarantine._forget_oldest": "many updates that are refused",
    "coordinator.services.spool._remove": "a part of an upload that nobody finishes",
    "coordinator.services.upload.Upload.discard": "a round that needs an upload no more",
    "coordinator.services.write_behind.WriteBehind.wrote": "an update of 8 MiB and more",
    "coordinator.engine.closing._keep_blobs": "a disk that fails before the commit",
    "coordinator.engine.closing._abandon_model": "a model that must not be committed",
    "coordinator.engine.version_files.prepared": "a disk that fails before the commit",
    "edge_client.cache.BlobCache.remove": "a cache that is full",
    "edge_client.checkpoints.Checkpoints.save_when_due": "training longer than a checkpoint's time",
    "edge_client.checkpoints.Checkpoints.restore": "a checkpoint that is damaged",
    "edge_client.checkpoints.Checkpoints._record": "a record that is damaged",
    "edge_client.journal.Journal._set_aside": "a journal that is damaged",
    "edge_client.residuals.Residuals._forget_oldest": "more jobs than are kept",
    "edge_client.residuals.Residuals.load": "a residual that is damaged",
    "headwater.plan.write_plan": "an author's machine",
    "storage.backup._copied": "a backup",
    "storage.backup._link_or_copy": "a backup",
    "storage.backup._empty": "a backup",
    "storage.backup._gather": "a backup",
    "storage.backup.back_up": "a backup",
    "storage.backup.take_snapshot": "a backup",
    "storage.blob_bucket.BlobBucket.write": "a file that a bucket does not take",
    "storage.blob_cache.BlobCache._obtain": "a bucket, and no copy of a blob",
    "storage.blob_directory.BlobDirectory.delete": "the collection of old updates",
    "storage.blob_directory.BlobDirectory.remove_temporary": "the collection of old files",
}
"""Functions with steps that the sweep's job does not pass, and what passes them."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> CompiledPlan:
    return compile_job(write_job(tmp_path_factory.mktemp("job"), **JOB))


@pytest.fixture(scope="module")
def calm(
    plan: CompiledPlan, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], dict[str, Counter[str]]]:
    """The digests of a run that nothing disturbs, and the steps that each program passed."""
    return undisturbed(tmp_path_factory.mktemp("calm"), plan)


@pytest.mark.parametrize(("program", "label"), KILLS)
def test_a_job_goes_on_to_the_same_model(
    plan: CompiledPlan,
    calm: tuple[list[str], dict[str, Counter[str]]],
    tmp_path: Path,
    program: str,
    label: str,
) -> None:
    expected, passed = calm
    fault = Fault(program, label, passed[program][label])
    outcome = disturbed(made(tmp_path / "fleet"), plan, [fault], expected)
    assert not outcome.failure, outcome.failure
    assert outcome.restarts == 1


@pytest.mark.parametrize(
    "label", ["committed: storage.rounds.accept_update", "commit: storage.rounds.close"]
)
def test_a_job_goes_on_with_postgresql(
    plan: CompiledPlan,
    calm: tuple[list[str], dict[str, Counter[str]]],
    tmp_path: Path,
    postgresql_server: PostgresqlServer,
    label: str,
) -> None:
    """The same model as with SQLite: the database has no part in it."""
    database = postgresql_server.create_database()
    fault = Fault("coordinator", label, 2)
    outcome = disturbed(made(tmp_path / "fleet"), plan, [fault], calm[0], database)
    assert not outcome.failure, outcome.failure
    assert outcome.restarts == 1


@pytest.mark.parametrize(("step", "before_last"), [("put", 0), ("stored", 1)])
def test_a_job_goes_on_with_a_bucket(
    plan: CompiledPlan,
    calm: tuple[list[str], dict[str, Counter[str]]],
    tmp_path: Path,
    s3_server: S3Server,
    step: str,
    before_last: int,
) -> None:
    """The same model as with a directory: killed before the last weights are in the bucket, and
    after the last update is there and before the database says so."""
    expected, passed = calm
    puts = passed["coordinator"]["rename: storage.blob_directory.BlobDirectory.adopt"]
    label = f"{step}: storage.blob_bucket.BlobBucket.adopt"
    fault = Fault("coordinator", label, puts - before_last)
    place, blobs = made(tmp_path / "fleet"), s3_server.new_bucket()
    outcome = disturbed(place, plan, [fault], expected, blobs=blobs)
    assert not outcome.failure, outcome.failure
    assert outcome.restarts == 1


def test_every_step_of_a_job_is_in_the_table(
    calm: tuple[list[str], dict[str, Counter[str]]],
) -> None:
    rows = TABLE.read_text()
    missing = [
        f"{program_name(program)}: {label}"
        for program, counts in calm[1].items()
        for label in counts
        if f"| {program_name(program)} | {label} |" not in rows
    ]
    assert not missing, "run `make chaos`: docs/reliability.md lacks these steps"


def test_no_function_with_a_step_is_forgotten(
    calm: tuple[list[str], dict[str, Counter[str]]],
) -> None:
    passed = {label.partition(": ")[2] for counts in calm[1].values() for label in counts}
    found = set(functions_with_steps())
    assert found - passed - ELSEWHERE.keys() == set(), "the sweep does not kill these"
    assert ELSEWHERE.keys() - found == set(), "these are gone"


def functions_with_steps() -> Iterator[str]:
    """Every function of ours that works on durable files, as the sweep labels it."""
    for folder in ("coordinator", "edge_client", "storage", "proto"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("proto.")
            if module not in ("headwater.durable_files", "headwater.steps"):
                yield from _functions(ast.parse(path.read_text()), module)


def _functions(tree: ast.AST, name: str) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        inner = name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{name}.{node.name}"
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "durable_files"
            and node.attr != "disk_errors"
        ):
            yield name
        yield from _functions(node, inner)
