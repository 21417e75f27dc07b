"""Synchronous data-parallel training is a special case of a federated round.

With one local step of plain SGD and equal example counts, the mean of the changes is minus the
learning rate times the mean of the gradients, which is what DistributedDataParallel (and Horovod)
apply after their all-reduce. Both sides run as real processes: a coordinator with one onnxruntime
and one torch client here, two gloo ranks there.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from coordinator.control_client import ControlClient
from coordinator.demo.processes import Processes
from tests.plans import compile_case
from tests.zoo import ZOO, batch

ROOT = Path(__file__).resolve().parents[2]
RATE = 0.1
EXAMPLES = 8
JOB = f"""
name = "step"
dataset = "parts"
seed = 3
[model]
factory = "model:Net"
loss = "cross_entropy"
metrics = ["accuracy"]
input = {{ name = "image", shape = [3, 16, 16], dtype = "float32" }}
target = {{ name = "label", shape = [], dtype = "int64" }}
[train]
optimizer = {{ name = "sgd", learning_rate = {RATE} }}
local_steps = 1
batch_size = {EXAMPLES}
[rounds]
count = 1
cohort = 2
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Two clients' data: one batch each."""
    case, paths = ZOO["smooth"], []
    for number in range(2):
        examples = batch(case, EXAMPLES, number)
        paths.append(tmp_path / f"part-{number}.npz")
        np.savez(paths[-1], x=examples.inputs[0], y=examples.targets[0])
    return paths


def federated_round(folder: Path, parts: list[Path]) -> tuple[Path, Path]:
    """The weights before and after one round over two client processes."""
    case = ZOO["smooth"]
    shape = list(case.inputs[0].shape)
    job_file = folder / "job.toml"
    job_file.write_text(JOB.replace("[1, 8, 8]", str(shape)))
    plan = compile_case(case, "step", optimizer={"name": "sgd", "learning_rate": RATE})
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    with Processes(folder) as processes:
        command = [sys.executable, "-m", "coordinator", "serve", "--listen", "127.0.0.1:0"]
        data = folder / "data"
        processes.start("serve", [*command, "--data-directory", str(data)], environment)
        address = processes.wait_for(data / "address")
        for part, trainer in zip(parts, ("onnxruntime", "torch"), strict=True):
            command = [sys.executable, "-m", "edge_client", "run", "--coordinator", address]
            command += ["--name", trainer, "--trainer", trainer, "--threads", "1"]
            command += ["--data", f"parts={part}", "--state", str(folder / trainer)]
            processes.start(trainer, command, environment)
        with ControlClient(address) as control:
            job = control.submit(job_file, plan)
            states = (one.job.job.state for one in control.follow(job.reference))
            ended = next(state for state in states if state in ("completed", "paused", "failed"))
            assert ended == "completed", processes.log("serve").read_text()
            for version in (0, 1):
                with (folder / f"{version}.safetensors").open("wb") as file:
                    control.pull(job.reference, version, file)
    return folder / "0.safetensors", folder / "1.safetensors"


def data_parallel_step(folder: Path, parts: list[Path], before: Path) -> Path:
    """The weights after one step of two gloo ranks with the same batches."""
    output = folder / "parallel.safetensors"
    command = [sys.executable, "-m", "tests.theory.data_parallel_step"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "2", str(folder / "store"), str(before), str(part), str(RATE),
             str(output)],
            cwd=ROOT, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "PATH": "/usr/bin:/bin"},
        )
        for rank, part in enumerate(parts)
    ]  # fmt: skip
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    return output


def test_a_round_of_one_local_step_is_a_data_parallel_step(tmp_path, parts):
    before, after = federated_round(tmp_path, parts)
    parallel = load_file(data_parallel_step(tmp_path, parts, before))
    first, federated = load_file(before), load_file(after)
    assert federated.keys() == parallel.keys()
    for name, value in federated.items():
        change = np.abs(value - first[name]).max()
        assert change > 0, f"{name} was not trained"
        # Rounding of a float32 step: some units in the last place of the largest weight.
        tolerance = 8 * np.finfo(np.float32).eps * max(np.abs(value).max(), change)
        assert np.abs(value - parallel[name]).max() <= tolerance, name
