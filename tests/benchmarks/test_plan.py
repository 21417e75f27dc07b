"""The benchmark of whole models measures both sides, and says what explains a miss."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.plan import MARK, missed, written
from benchmarks.plan_step import LEAST, profile, step_milliseconds
from benchmarks.report import Value
from tests.document import END
from tests.models import MODELS
from tests.plans import compiled, opened
from tests.zoo import ZOO

ROOT = Path(__file__).parents[2]
REACHED: dict[str, Value] = {
    "model": "A", "ratio_1": 0.9, "onnxruntime_mib": 110.0, "torch_mib": 200.0,
    "estimated_mib": 200.0, "activations_mib": 150.0, "profile": "Gemm 70%",
}  # fmt: skip


def test_both_take_the_same_number_of_steps() -> None:
    figures = step_milliseconds(ZOO["mlp"], opened(compiled("mlp")), 8, 1, 0.0)
    assert figures["pairs"] == LEAST
    assert min(figures["onnxruntime_ms"], figures["eager_ms"], figures["ratio"]) > 0


def test_a_profile_names_the_operators_of_the_step() -> None:
    text = profile(opened(compiled("mlp")), 8)
    assert re.fullmatch(r"([A-Z]\w+ \d+%(, |$)){5}", text)


def test_the_client_measures_its_memory_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "mlp.plan"
    compiled("mlp").write(path)
    program = (
        "import runpy, sys; "
        "runpy.run_module('benchmarks.plan_client', run_name='__main__'); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), "onnxruntime", "8", "2"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_mib"] > 10


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""),
        ({"ratio_1": 1.8}, "slow: Gemm 70%"),
        ({"onnxruntime_mib": 250.0}, "memory: a step's tensors need 200 MiB by estimate"),
        ({"activations_mib": 50.0}, "memory: a step's tensors need 200 MiB by estimate"),
    ],
)
def test_a_miss_is_told_with_what_explains_it(changed: dict[str, float], words: str) -> None:
    assert missed({**REACHED, **changed}) == words


def test_a_row_is_written_and_the_others_stay() -> None:
    text = f"before\n{MARK}\n{END}\nafter"
    for name, ratio in (("LeNet", 1.25), ("VAE", 0.75), ("LeNet", 0.5)):
        text = written(text, {"model": name, "ratio_1": ratio})
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:2] == "| "}
    assert list(rows)[2:] == list(MODELS)
    assert "0.5" in rows["LeNet"]
    assert "0.75" in rows["VAE"]
    assert "–" in rows["GPT, 10M parameters"]
    assert text.startswith("before\n")
    assert text.endswith("after")
