"""The command line: what it prints and what it ends with."""

import io
import json
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client import cli, fit
from edge_client.state import StateDirectory
from headwater.errors import DataError, PlanError
from headwater.layout import Layout, Weights
from headwater.manifest import BatchCost, Member
from headwater.plan import write_plan
from headwater.safetensors import write_weights
from tests.client.fake_fleet import sha256
from tests.client.fakes import AddingTrainer, Ones, tiny_manifest


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["headwater-client", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    return write_tiny(tmp_path)


def write_tiny(folder: Path, **changes: Any) -> Path:
    manifest, members = tiny_manifest(**changes)
    file = io.BytesIO()
    write_weights(
        file, Layout(manifest.tensors), Weights(np.zeros(4, np.float32), np.zeros(1, np.int64))
    )
    members["weights.safetensors"] = file.getvalue()
    entries = {name: Member(sha256(data), len(data)) for name, data in members.items()}
    manifest, _ = tiny_manifest(**(changes | {"members": entries}))
    path = folder / "tiny.plan"
    write_plan(path, manifest, members)
    return path


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> AddingTrainer:
    trainer = AddingTrainer()
    monkeypatch.setattr(cli, "trainer_opener", lambda *_, **__: trainer.open)
    monkeypatch.setattr(cli, "open_source", lambda binding, inputs, targets: Ones())
    monkeypatch.setattr(cli, "choose_backend", lambda trainer: "onnxruntime")
    return trainer


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["check", "-h"], ["status", "-h"]]
)
def test_help_tells_the_exit_codes(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments, monkeypatch) == 0
    assert "Exit codes: 0 success, 1 a defect" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "no coordinator is given"),
        (["run", "--coordinator", "x"], "the coordinator 'x' is not HOST:PORT"),
        (["run", "--colour"], "No such option"),
        (["run", "--coordinator", "a:1", "--data", "x"], "data binding 'x' is not NAME=PATH"),
        (["run", "--coordinator", "a:1", "--cache-bytes", "x"], "'x' is not a size"),
        (["run", "--config", "/none.toml"], "/none.toml: cannot be read"),
        (["run", "--coordinator", "a:1", "--device", "cuda", "--state", "{tmp}"],
         "--device cuda needs --trainer torch"),
        (["check", "/none.plan"], "/none.plan: cannot be read"),
        (["status", "--state", "/none"], "no client has run with the state directory /none"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line_and_code_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    monkeypatch.setattr("edge_client.session.choose_backend", lambda trainer: "onnxruntime")
    assert run(arguments, monkeypatch) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_defect_is_code_1_and_ctrl_c_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def raising(error: BaseException) -> Any:
        def raise_it(path: Path) -> None:
            raise error

        return raise_it

    monkeypatch.setattr(cli, "read_status", raising(ZeroDivisionError()))
    assert run(["status"], monkeypatch) == 1
    monkeypatch.setattr(cli, "read_status", raising(KeyboardInterrupt()))
    assert run(["status"], monkeypatch) == 130


def test_options_win_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text('coordinator = "a:1"\nname = "file"\nthreads = 3\n[data]\nx = "x.npz"\n')
    seen: list[Any] = []
    monkeypatch.setattr(cli, "run_client", lambda settings, verbose: seen.append(settings))
    monkeypatch.setattr(cli, "end_process", lambda code: None)
    arguments = ["run", "--config", str(path), "--name", "option", "--data", "y=y.npz"]
    assert run([*arguments, "--tag", "site=north"], monkeypatch) == 0
    settings = seen[0]
    assert (settings.coordinator, settings.name, settings.threads) == ("a:1", "option", 3)
    assert (settings.data, settings.tag) == ({"y": "y.npz"}, {"site": "north"})


def test_check_says_that_a_plan_fits(
    plan_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", str(plan_file)], monkeypatch) == 0
    out = capsys.readouterr().out
    assert "tiny fits this device (onnxruntime on cpu)" in out
    assert "an epoch" not in out
    assert run(["check", str(plan_file), "--data", "ones=ones:", "--json"], monkeypatch) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["fits"] is True
    assert (figures["parameters"], figures["examples"], figures["batch_size"]) == (4, 10, 4)
    assert figures["epoch_seconds"] > 0


def test_check_says_why_a_plan_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    fakes: AddingTrainer,
) -> None:  # fmt: skip
    big = write_tiny(tmp_path, peak_memory_bytes=BatchCost(2**50, 0))
    assert run(["check", str(big)], monkeypatch) == 2
    assert "MiB of memory; this device has" in capsys.readouterr().err
    plan = write_tiny(tmp_path)
    fakes.loss = float("inf")
    assert run(["check", str(plan)], monkeypatch) == 2
    assert "the loss became inf" in capsys.readouterr().err

    def refuse(error: Exception) -> Any:
        def refuse_it(*_: Any) -> None:
            raise error

        return refuse_it

    monkeypatch.setattr(cli, "open_source", refuse(DataError("no column 'pixels'")))
    assert run(["check", str(plan), "--data", "x.csv"], monkeypatch) == 2
    assert "no column 'pixels'" in capsys.readouterr().err
    monkeypatch.setattr(cli, "trainer_opener", lambda *_, **__: refuse(PlanError("node Loop")))
    assert run(["check", str(plan)], monkeypatch) == 2
    assert "node Loop" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("work", "steps"), [(["--epochs", "4"], 12), (["--steps", "5"], 5)], ids=["epochs", "steps"]
)
def test_check_says_whether_an_assignment_is_in_time(
    work: list[str], steps: int, plan_file: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Ten examples in batches of four, each of the timed steps taking half a second."""
    monkeypatch.setattr(cli, "measure_fit", partial(fit.measure_fit, timer=count(0, 1.5).__next__))
    command = ["check", str(plan_file), "--data", "ones=ones:", "--json", *work]
    for deadline, code, in_time in ((steps / 2, 0, True), (steps / 2 - 0.1, 2, False)):
        assert run([*command, "--deadline", str(deadline)], monkeypatch) == code
        printed = capsys.readouterr()
        figures = json.loads(printed.out)
        assert (figures["fits"], figures["in_time"]) == (True, in_time)
        assert figures["assignment_seconds"] == pytest.approx(steps / 2)
        assert ("the deadline is" in printed.err) is not in_time
    assert figures["peak_memory_bytes"] > 2**20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--deadline", "3"], "--deadline needs --epochs or --steps"),
        (["--epochs", "3"], "--epochs needs --data"),
        (["--epochs", "3", "--steps", "3"], "give one of them"),
    ],
)
def test_check_needs_to_know_the_work(
    options: list[str], message: str, plan_file: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(["check", str(plan_file), *options], monkeypatch) == 2
    assert message in capsys.readouterr().err


def test_check_tells_programs_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    big = write_tiny(tmp_path, peak_memory_bytes=BatchCost(2**50, 0))
    assert run(["check", str(big), "--json"], monkeypatch) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["fits"] is False
    assert "this device has" in document["reason"]


def test_status_of_a_stopped_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {
        "client_id": "ab", "instance_id": "cd", "name": "n", "coordinator": "a:1",
        "trainer": "torch", "device": "cuda", "data": {"x": "x.npz"}, "process_id": 1,
        "written_at": "2026-01-01T00:00:00+00:00", "connected_since": None,
        "assignment": {"assignment_id": 1, "job": "j", "round": 2, "phase": "training",
                       "fraction": 0.5},
        "cache": {"used_bytes": 2048, "budget_bytes": 2**30},
        "recent": [{"assignment_id": 1, "job": "j", "round": 1, "outcome": "accepted",
                    "reason": "", "ended_at": "then",
                    "fate": {"state": "accepted", "folded": True, "reason": ""}}],
    }  # fmt: skip
    StateDirectory(tmp_path).status.write_text(json.dumps(document))
    assert run(["status", "--state", str(tmp_path)], monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stopped     last seen 2026-01-01T00:00:00+00:00"
    assert "cache       2 KiB of 1 GiB" in lines
    assert "working on  nothing" in lines
    assert lines[-1] == "  then  j round 1: accepted, then accepted, folded"
    assert run(["status", "--state", str(tmp_path), "--json"], monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["running"] is False


def test_a_damaged_status_file_is_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    StateDirectory(tmp_path).status.write_text("{")
    assert run(["status", "--state", str(tmp_path)], monkeypatch) == 3
    assert "status.json is damaged" in capsys.readouterr().err
