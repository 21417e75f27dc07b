"""The base install is the edge client: small, without torch, onnx or a database, and it trains."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plans import compiled

ROOT = Path(__file__).resolve().parents[2]
MAXIMUM_MEGABYTES = 250
BASE = {"backports-zstd", "numpy", "onnxruntime", "grpcio", "protobuf", "click"}
ABSENT = ("torch", "onnx", "onnxscript", "sqlalchemy", "alembic", "pyarrow", "PIL", "sklearn")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution, built as a release would be."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("headwater-*.whl"))


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment of its own with the wheel and nothing beside what it needs."""
    folder = tmp_path_factory.mktemp("base")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    command = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--prefer-binary"]
    command += ["-c", str(ROOT / "constraints.txt"), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "connection" in done.stderr.lower():
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    yield folder


def run(base: Path, *command: str) -> subprocess.CompletedProcess[str]:
    # From a folder of its own, so that the source tree cannot stand in for what is installed.
    return subprocess.run(
        [str(base / "bin" / command[0]), *command[1:]],
        capture_output=True, text=True, check=False, cwd=base,
    )  # fmt: skip


def test_the_wheel_holds_the_four_packages_and_the_demo_s_job(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert packages == {"coordinator", "edge_client", "storage", "headwater"}
    assert "storage/migrations/script.py.mako" in names
    assert "coordinator/demo/digits/job.toml" in names
    assert any(name.startswith("storage/migrations/versions/0001") for name in names)


def test_it_requires_these_packages_and_no_more(base):
    code = "import importlib.metadata as m, json; print(json.dumps(m.requires('headwater')))"
    requires = json.loads(run(base, "python", "-c", code).stdout)
    names = {one.split(">")[0].split("=")[0] for one in requires if "extra" not in one}
    assert names == BASE


def test_it_is_small(base, capsys):
    packages = next((base / "lib").glob("python*/site-packages"))
    ours = [path for path in packages.iterdir() if not path.name.startswith(("pip", "setuptools"))]
    size_bytes = sum(
        one.stat().st_size
        for path in ours
        for one in ([path] if path.is_file() else path.rglob("*"))
        if one.is_file()
    )
    with capsys.disabled():
        print(f"\nbase install: {size_bytes / 1e6:.0f} MB")
    assert size_bytes <= MAXIMUM_MEGABYTES * 1e6


@pytest.mark.parametrize("module", ABSENT)
def test_it_lacks_what_devices_do_not_need(base, module):
    assert "ModuleNotFoundError" in run(base, "python", "-c", f"import {module}").stderr


def test_it_trains(base, tmp_path):
    plan = tmp_path / "mlp.plan"
    compiled("mlp").write(plan)
    done = run(base, "headwater-client", "check", str(plan), "--json", "--trainer", "auto")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trainer"] == "onnxruntime"


def test_what_is_missing_is_named_with_its_extra(base):
    done = run(base, "headwater", "jobs", "list")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'headwater[coordinator]'" in done.stderr
    done = run(base, "headwater-client", "run", "--coordinator", "127.0.0.1:1",
               "--data", "d=/nowhere.npz", "--trainer", "torch", "--state", "state")  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'headwater[torch]'" in done.stderr
