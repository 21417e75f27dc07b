"""Compiling again what did not change takes the plan from the cache, and nothing else does."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from coordinator.author import compile_job
from coordinator.compiler import compile as compiler
from coordinator.compiler.plan_cache import PlanCache
from coordinator.jobs.aggregation_spec import Aggregation
from coordinator.jobs.job_file import read_job
from tests.jobs.test_author import JOB, MODEL
from tests.plans import compiled

LINES = """
from pathlib import Path
TABLE = Path(__file__).with_name("table.txt").read_text()

def lazily():
    import later
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL + LINES)
    (tmp_path / "scaling.py").write_text("FACTOR = 2.0\n")
    (tmp_path / "later.py").write_text("ONE = 1\n")
    (tmp_path / "table.txt").write_text("1 2 3\n")
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that were compiled rather than taken from the cache. Only the first is compiled
    for real; the plan of another is that one under another name, which is quicker.
    """
    done: list[Any] = []
    honest = compiler.compile_plan

    def counting(*arguments: Any, **named: Any) -> Any:
        plan = done[0] if done else honest(*arguments, **named)
        plan = replace(plan, manifest=replace(plan.manifest, name=f"plan-{len(done)}"))
        done.append(plan)
        return plan

    monkeypatch.setattr(compiler, "compile_plan", counting)
    return done


def digest(job: Path, cache: PlanCache, **changed: Any) -> str:
    return compile_job(replace(read_job(job), **changed), folder=job.parent, cache=cache).digest


def test_hits_and_misses(job: Path, compiles: list[str], tmp_path: Path) -> None:
    """One walk through every reason to compile again, each followed by a hit."""
    cache = PlanCache(tmp_path / "cache")
    spec = read_job(job)

    def edit(name: str, text: str) -> Callable[[], dict[str, Any]]:
        def change() -> dict[str, Any]:
            (job.parent / name).write_text(text)
            return {}

        return change

    changes: list[Callable[[], dict[str, Any]]] = [
        dict,
        lambda: {"seed": 9},
        lambda: {"name": "another"},
        lambda: {"train": replace(spec.train, batch_size=3)},
        edit("model.py", MODEL + LINES + "# edited\n"),
        edit("scaling.py", "FACTOR = 3.0\n"),
        edit("later.py", "ONE = 2\n"),
        edit("table.txt", "1 2 4\n"),
    ]
    for number, change in enumerate(changes, start=1):
        changed = change()
        first = digest(job, cache, **changed)
        assert len(compiles) == number
        assert digest(job, cache, **changed) == first
        assert len(compiles) == number
    # what only the coordinator reads, and a file that nothing of the author's opens
    (job.parent / "notes.txt").write_text("x")
    assert digest(job, cache, dataset="other", rounds=replace(spec.rounds, count=9)) == first
    assert digest(job, cache, aggregation=Aggregation(rule="median")) == first
    assert len(compiles) == len(changes)


def test_another_environment_is_another_key(
    job: Path, compiles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PlanCache(tmp_path / "cache")
    digest(job, cache)
    monkeypatch.setattr("importlib.metadata.distributions", list)
    digest(job, cache)
    assert len(compiles) == 2


def test_a_damaged_entry_is_written_anew(job: Path, compiles: list[str], tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "cache")
    digest(job, cache)
    (entry,) = (tmp_path / "cache").glob("*.plan")
    whole = entry.read_bytes()
    damages = [b"", whole[: len(whole) // 2], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]]
    for number, damaged in enumerate(damages, start=2):
        entry.write_bytes(damaged)
        second = digest(job, cache)
        assert len(compiles) == number
        assert digest(job, cache) == second
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_it_is_bounded_and_the_oldest_go_first(
    job: Path, compiles: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    digest(job, PlanCache(folder))
    (entry,) = folder.glob("*.plan")
    cache = PlanCache(folder, limit_bytes=int(2.5 * entry.stat().st_size))
    for seed in (1, 2):
        for number, path in enumerate(sorted(folder.glob("*.plan"), key=os.path.getmtime)):
            os.utime(path, ns=(number, number))
        digest(job, cache, seed=seed)
    assert len(list(folder.glob("*.plan"))) == 2
    assert not entry.exists()


def test_a_folder_that_cannot_be_written_costs_nothing(job: Path, compiles: list[str]) -> None:
    cache = PlanCache(job / "no folder")
    assert digest(job, cache) != digest(job, cache)
    assert len(compiles) == 2


def test_without_a_cache_every_call_compiles(job: Path, compiles: list[str]) -> None:
    compile_job(job)
    compile_job(job)
    assert len(compiles) == 2


WRITER = """
import sys
from pathlib import Path
from coordinator.compiler.plan_cache import PlanCache
from headwater.plan import Plan

plan = Plan.open(sys.argv[2])
members = {name: plan.read(name) for name in plan.manifest.members}
cache = PlanCache(Path(sys.argv[1]), limit_bytes=int(sys.argv[3]))
print("ready", flush=True)
sys.stdin.readline()
for turn in range(30):
    cache.write(f"key{turn % 3}", plan.manifest, members)
    for key in range(3):
        found = cache.read(f"key{key}")
        assert found is None or found == (plan.manifest, members)
"""


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    """Both write, read and let go of the same entries: each read gives a whole plan or none."""
    file = tmp_path / "mlp.plan"
    compiled("mlp").write(file)
    limit = 2 * file.stat().st_size + 1
    command = [sys.executable, "-c", WRITER, str(tmp_path / "cache"), str(file), str(limit)]
    writers = [
        subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.communicate("go\n", timeout=120) == ("", "")
        assert writer.returncode == 0
    entries = list((tmp_path / "cache").iterdir())
    assert 1 <= len(entries) <= 3
    assert all(entry.suffix == ".plan" for entry in entries)
