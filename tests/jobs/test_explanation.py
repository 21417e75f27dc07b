"""`headwater compile --explain`: what a plan holds and costs."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from coordinator.cli import run
from coordinator.cli.commands import headwater
from coordinator.explanation import explain
from tests.plans import compiled, opened
from tests.zoo import ZOO, batch


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "resnet.plan"
    compiled("resnet").write(path)
    return path


@pytest.mark.parametrize("name", ["lenet", "transformer"])
def test_operations_are_those_that_torch_counts(name: str) -> None:
    """A forward and backward pass of eager torch, with its own convolutions and attention."""
    case, size = ZOO[name], 6
    examples = batch(case, size, 0)
    model, counter = case.build(), FlopCounterMode(display=False)
    with counter:
        output = model(torch.from_numpy(examples.inputs[0]))
        output.square().mean().backward()
    wanted = counter.get_total_flops()
    found = compiled(name).manifest.operations.total(size)
    assert 0.9 * wanted <= found <= 1.3 * wanted


def test_a_plan_explains_itself() -> None:
    tables = explain(opened(compiled("resnet")))
    forms = {(one["form"], one["operator"]): one["count"] for one in tables["operators"]}
    assert forms["onnx", "Conv"] >= 4
    assert sum(count for (form, _), count in forms.items() if form == "onnx") == next(
        one["nodes"] for one in tables["members"] if one["member"] == "train.onnx"
    )
    assert any(form == "torch" for form, _ in forms)
    roles = {one["role"]: one for one in tables["parameters"]}
    parameters = sum(one.numel() for one in ZOO["resnet"].build().parameters())
    assert roles["trainable"]["count"] == parameters
    assert roles["optimizer state"]["size_bytes"] == 4 * parameters
    assert [one["batch_size"] for one in tables["costs"]] == [1, 8, 32, 128]
    assert [one["is_the_jobs"] for one in tables["costs"]] == [False, True, False, False]
    costs = [one["operations"] for one in tables["costs"]]
    assert costs == sorted(costs)
    assert all(one["graphs"] <= one["limit"] for one in tables["parity"])


def test_the_command_prints_the_tables(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(headwater, ["compile", str(plan_file), "--explain"]) == 0
    printed = capsys.readouterr().out
    for text in ("OPERATOR", "train.onnx", "averaged_buffer", "BATCH SIZE", "the job's", "LIMIT"):
        assert text in printed


def test_the_command_gives_the_tables_as_data(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(headwater, ["compile", str(plan_file), "--explain", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["explanation"] == json.loads(json.dumps(explain(opened(compiled("resnet")))))


def test_a_plan_is_not_compiled_again(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(headwater, ["compile", str(plan_file), "-o", "x.plan"]) == 2
    assert "only --explain takes a .plan file" in capsys.readouterr().err
