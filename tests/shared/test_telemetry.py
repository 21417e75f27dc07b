"""onnxruntime does not report to its maker from our processes, and marks no device for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


MODULES = (
    "headwater.graph_runtime",
    "edge_client.trainers.onnx_trainer",
    "coordinator.compiler.compile",
)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_of_onnxruntime_s_telemetry_is_left_on_the_device(tmp_path, module):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ORT_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    environment.pop("XDG_CACHE_HOME", None)
    environment.pop("CI", None)  # onnxruntime is silent under continuous integration by itself
    code = f"import {module}, onnxruntime; onnxruntime.InferenceSession  # noqa"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not [path for path in tmp_path.rglob("*") if "Microsoft" in path.parts]
