"""A plan of random weights for clients that do not train: no graph in it is ever run."""

import hashlib
import io
from pathlib import Path

import numpy as np

from headwater.batch import TensorSignature
from headwater.layout import Layout, Role, TensorSpec, Weights
from headwater.manifest import BatchCost, Manifest, Member, OptimizerSpec, ParameterGroup
from headwater.plan import WEIGHTS, Plan
from headwater.safetensors import write_weights

DATASET = "noise"
TENSORS = 10
GRAPHS = ("train.onnx", "evaluate.onnx")
JOB = """\
name = "no-op"
dataset = "{dataset}"
[model]
factory = "model:Net"
loss = "cross_entropy"
input = {{ shape = [1], dtype = "float32" }}
target = {{ shape = [], dtype = "int64" }}
[train]
optimizer = {{ name = "sgd", learning_rate = 0.1 }}
local_steps = 1
batch_size = 1
[rounds]
count = {rounds}
cohort = {clients}
deadline_seconds = 600
evaluate = {{ on = [] }}
"""


def random_plan(parameters: int) -> Plan:
    """A plan with `parameters` trainable float32 values in ten tensors, drawn from a fixed seed.

    Random, since some systems send or keep equal bytes once.
    """
    sizes = [len(part) for part in np.array_split(np.arange(parameters), TENSORS)]
    tensors = tuple(
        TensorSpec(f"layer{index}.weight", (size,), "float32", Role.TRAINABLE)
        for index, size in enumerate(sizes)
    )
    names = tuple(spec.name for spec in tensors)
    members = dict.fromkeys(GRAPHS, b"never run")
    members[WEIGHTS] = _random_weights(Layout(tensors))
    manifest = Manifest(
        name="no-op",
        versions={},
        opset=20,
        tensors=tensors,
        inputs=(TensorSignature("x", (1,), "float32"),),
        targets=(TensorSignature("y", (), "int64"),),
        metrics=(),
        optimizer=OptimizerSpec("sgd", (ParameterGroup({}, 1.0, names),), ()),
        hyperparameters={"learning_rate": 0.1},
        uses_seed=False,
        batch_size=1,
        graphs={},
        peak_memory_bytes=BatchCost(0, 0),
        operations=BatchCost(0, 0),
        parity={},
        members={name: Member(_digest(data), len(data)) for name, data in members.items()},
    )
    return Plan(manifest.to_bytes(), members.__getitem__)


def write_job(folder: Path, *, clients: int, rounds: int) -> Path:
    """The job file of that plan: every client in every round, nothing evaluated."""
    path = folder / "job.toml"
    path.write_text(JOB.format(dataset=DATASET, clients=clients, rounds=rounds))
    return path


def _random_weights(layout: Layout) -> bytes:
    floats = np.random.default_rng(1).standard_normal(layout.float_count, np.float32)
    file = io.BytesIO()
    write_weights(file, layout, Weights(floats, np.empty(0, np.int64)))
    return file.getvalue()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
