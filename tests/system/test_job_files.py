"""Job files and plans that are wrong, as their author meets them."""

import json
import zipfile
from pathlib import Path

import pytest

from tests.system.fleet import Fleet
from tests.system.processes import Output, run
from tests.system.training import job_text, write_job


def compiled(folder: Path, path: Path) -> Output:
    return run("compile", str(path), "-o", str(folder / "out.plan"))


def refused(done: Output, *words: str) -> None:
    """Exit code 2, no traceback, and the words in the last lines."""
    assert done.code == 2, done
    assert "Traceback" not in done.err
    assert all(word in done.err for word in words), done.err


FAULTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown key": (
        job_text().replace("batch_size = 8", "batch_sise = 8"),
        ("job.toml:15:", "batch_sise", "batch_size"),
    ),
    "wrong type": (job_text(count="many"), ("job.toml:17:", "count")),
    "quorum above cohort": (job_text(quorum=9), ("job.toml:19:", "at most the cohort (2)")),
    "no TOML": ("name = \n", ("job.toml:1:", "not valid TOML")),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_wrong_job_file(shared_fleet: Fleet, tmp_path: Path, case: str) -> None:
    """Unknown keys, types and values: the line and what is allowed, through `compile` and
    `submit` alike; exit code 2."""
    text, words = FAULTS[case]
    path = write_job(tmp_path)
    path.write_text(text)
    refused(compiled(tmp_path, path), *words)
    assert not (tmp_path / "out.plan").exists()
    refused(shared_fleet.cli("submit", str(path), code=2), *words)
    assert shared_fleet.json("jobs", "list") == []


@pytest.mark.parametrize("name", ["other", "model.py", "notes.txt", "folder.plan"])
def test_a_plan_is_not_written_over_what_is_none(tmp_path: Path, name: str) -> None:
    """`-o` with a folder of other files, another ending, or a folder for a file."""
    path = write_job(tmp_path / "job")
    for folder in ("other", "folder.plan"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weights.safetensors").write_text("mine")
    (tmp_path / "model.py").write_text("mine")
    refused(run("compile", str(path), "-o", str(tmp_path / name)), name, ".plan")
    assert (tmp_path / "other" / "weights.safetensors").read_text() == "mine"
    assert (tmp_path / "model.py").read_text() == "mine"


def test_what_the_author_prints_is_no_part_of_the_answer(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    model = tmp_path / "model.py"
    model.write_text(model.read_text().replace(
        "super().__init__(", "print('hello from the model')\n        super().__init__(", 1
    ))  # fmt: skip
    done = run("compile", str(path), "--no-cache", "--json")
    assert done.code == 0, done
    assert "digest" in json.loads(done.out)
    assert "hello from the model" in done.err


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, ("model:Net", "model.py")),
        ("import nothing_like_this\n", ("nothing_like_this", "model.py")),
        ("def Net(:\n", ("model:Net", "model.py:1")),
        ("Network = 1\n", ("Net", "model")),
        ("def Net():\n    raise RuntimeError('boom')\n", ("boom", "model:Net")),
        ("def Net():\n    return 3\n", ("model:Net", "nn.Module")),
    ],
)
def test_a_factory_that_does_not_work(
    tmp_path: Path, code: str | None, words: tuple[str, ...]
) -> None:
    """A factory that does not import, or gives no module: what and where."""
    path = write_job(tmp_path)
    (tmp_path / "model.py").unlink()
    if code is not None:
        (tmp_path / "model.py").write_text(code)
    refused(compiled(tmp_path, path), *words)


def test_a_model_that_does_not_compile(tmp_path: Path) -> None:
    """An operator that no plan can have: its name and the path of the module that calls it."""
    path = write_job(tmp_path)
    (tmp_path / "model.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Inner(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.lgamma(x.abs() + 1)\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Linear(6, 6), Inner())\n"
        "        self.head = nn.Linear(6, 3)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.body(x))\n"
    )
    refused(compiled(tmp_path, path), "lgamma", "body.1")


def test_a_plan_of_a_newer_schema(tmp_path: Path) -> None:
    """A plan of a newer schema: refused by `headwater-client check` with what to do."""
    path = write_job(tmp_path)
    assert compiled(tmp_path, path).code == 0
    newer = tmp_path / "newer.plan"
    with zipfile.ZipFile(tmp_path / "out.plan") as old, zipfile.ZipFile(newer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "manifest.json":
                content = json.dumps(json.loads(content) | {"schema": 99}).encode()
            new.writestr(name, content)
    refused(run("check", str(newer), package="edge_client"), "99", "pgrade")
    fine = run(
        *("check", str(tmp_path / "out.plan"), "--json", "--trainer", "onnxruntime"),
        package="edge_client",
    )
    assert (fine.code, json.loads(fine.out)["fits"]) == (0, True)
