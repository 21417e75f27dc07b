"""What the system tests train: a tiny network with all three kinds of blocks, on easy data."""

import re
from pathlib import Path

import numpy as np

CLASSES, FEATURES, EXAMPLES = 3, 6, 48

MODEL = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3)
        )


class Wider(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3)
        )
"""

JOB = """
name = "tiny"
dataset = "clusters"
seed = 7
[model]
factory = "model:Net"
loss = "cross_entropy"
metrics = ["accuracy"]
input = { shape = [6], dtype = "float32" }
target = { shape = [], dtype = "int64", maximum = 3 }
[train]
optimizer = { name = "sgd", learning_rate = 0.05 }
local_epochs = 2
optimizer_state = "reset"
batch_size = 8
[rounds]
count = 3
cohort = 2
quorum = 2
deadline_seconds = 120
evaluate = { every = 1, on = ["clients", "coordinator"] }
"""


def write_job(folder: Path, **changes: object) -> Path:
    """A job file beside its model; `changes` replaces the values of keys (or adds `[rounds]`)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(MODEL)
    path = folder / "job.toml"
    path.write_text(job_text(**changes))
    return path


def job_text(**changes: object) -> str:
    """The job file with the values of some keys replaced; a new key goes to the last table.

    `updates` and `aggregation` are tables of their own, after that.
    """
    text, tables = JOB, ""
    for name in ("updates", "aggregation"):
        if name in changes:
            values = changes.pop(name)
            assert isinstance(values, dict)
            tables += f"[{name}]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in values.items())
    for key, value in changes.items():
        line = f"{key} = {toml(value)}"
        text, count = re.subn(rf"^{key} = .*$", lambda _, line=line: line, text, flags=re.M)
        if not count:
            text += line + "\n"
    return text + tables


def toml(value: object) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def write_examples(path: Path, seed: int, count: int = EXAMPLES) -> Path:
    """Points around three centres; the part of each client is drawn by its seed."""
    centres = np.random.default_rng(0).normal(0, 2, (CLASSES, FEATURES))
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, count)
    points = centres[labels] + draw.normal(0, 1, (count, FEATURES))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=points.astype(np.float32), y=labels.astype(np.int64))
    return path
