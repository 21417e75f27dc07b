from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from coordinator.author import compile_job, optimizer_settings
from coordinator.compiler.optimizers import OPTIMIZERS, optimizer_from
from coordinator.jobs.job_file import read_job
from coordinator.jobs.train_spec import OPTIMIZER_SETTINGS, Optimizer
from coordinator.services.submission import mismatch
from headwater.errors import CompileError, JobFileError
from headwater.manifest import StepSpec
from headwater.plan import Plan
from headwater.safetensors import write_tensors

MODEL = """\
import torch
from torch import nn
from scaling import FACTOR

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("shift", torch.zeros(2))
    def forward(self, x):
        import scaling
        return self.layer(x) * scaling.FACTOR + self.shift

def loss(output, target):
    return ((output - target) ** 2).mean()

def error(output, target):
    return (output - target).abs().mean()
"""

JOB = """\
name = "line"
dataset = "line"
seed = 7
[model]
factory = "model:Net"
loss = "model:loss"
metrics = ["model:error"]
input = { shape = [4], dtype = "float32" }
target = { shape = [2], dtype = "float32" }
[train]
optimizer = { name = "adam", learning_rate = 0.01, betas = [0.8, 0.9] }
local_steps = 1
batch_size = 8
[rounds]
count = 1
cohort = 1
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "scaling.py").write_text("FACTOR = 2.0\n")
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


def test_a_job_becomes_a_plan(job: Path, tmp_path: Path) -> None:
    said: list[str] = []
    compiled = compile_job(job, tmp_path / "line.plan", said.append)
    plan = Plan.open(tmp_path / "line.plan")
    assert plan.digest == compiled.digest
    assert plan.manifest.name == "line"
    assert plan.manifest.metrics == ("error",)
    assert plan.manifest.optimizer.name == "adam"
    assert plan.manifest.batch_size == 8
    assert said


def test_the_same_job_gives_the_same_plan_and_another_seed_another(job: Path) -> None:
    first = compile_job(job)
    spec = read_job(job)
    assert compile_job(spec, folder=job.parent).members == first.members
    assert compile_job(spec, folder=job.parent).digest == first.digest
    other = compile_job(replace(spec, seed=8), folder=job.parent)
    assert other.members["weights.safetensors"] != first.members["weights.safetensors"]


def tensors(path: Path, **arrays: np.ndarray) -> None:
    buffer = BytesIO()
    write_tensors(buffer, {name.replace("__", "."): array for name, array in arrays.items()})
    path.write_bytes(buffer.getvalue())


def with_start(job: Path, start: str) -> Path:
    job.write_text(JOB.replace("[train]", f'start = "{start}"\n[train]'))
    return job


def test_it_starts_from_a_file(job: Path) -> None:
    weight = np.arange(8, dtype=np.float32).reshape(2, 4)
    tensors(job.parent / "old.safetensors", layer__weight=weight, layer__bias=weight[:, 0])
    compiled = compile_job(with_start(job, "old.safetensors"))
    assert weight.tobytes() in compiled.members["weights.safetensors"]


def test_a_start_that_does_not_fit(job: Path) -> None:
    with pytest.raises(CompileError, match=r"start: there is no file .*gone\.safetensors"):
        compile_job(with_start(job, "gone.safetensors"))
    tensors(
        job.parent / "old.safetensors",
        layer__weight=np.zeros((3, 4), np.float32),
        head=np.zeros(1, np.float32),
    )
    with pytest.raises(CompileError) as caught:
        compile_job(with_start(job, "old.safetensors"))
    assert str(caught.value).endswith(
        "does not fit the model: layer.bias is missing; head is not of this model; "
        "layer.weight has shape [3, 4], the model [2, 4]"
    )


def test_a_wrong_spec_from_python(job: Path) -> None:
    spec = read_job(job)
    wrong = replace(spec, rounds=replace(spec.rounds, quorum=2))
    with pytest.raises(JobFileError, match=r"\[rounds\] quorum = 2: at most the cohort \(1\)"):
        compile_job(wrong, folder=job.parent)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (Optimizer(name="sgd", learning_rate=0.1, nesterov=True, momentum=0.9),
         {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "dampening": 0.0, "nesterov": True,
          "weight_decay": 0.0}),
        (Optimizer(name="adamw", learning_rate=0.1, betas=(0.5, 0.6)),
         {"name": "adamw", "learning_rate": 0.1, "beta1": 0.5, "beta2": 0.6, "epsilon": 1e-8,
          "weight_decay": 0.01, "amsgrad": False}),
    ],
)  # fmt: skip
def test_the_optimizer_as_the_compiler_takes_it(optimizer: Optimizer, expected: object) -> None:
    assert optimizer_settings(optimizer) == expected


@pytest.mark.parametrize("name", OPTIMIZER_SETTINGS)
def test_the_job_files_optimizers_are_the_compilers(name: str) -> None:
    optimizer, _ = optimizer_from(optimizer_settings(Optimizer(name=name, learning_rate=0.1)))
    defaults, _ = optimizer_from({"name": name, "learning_rate": 0.1})
    assert optimizer == defaults
    assert set(OPTIMIZER_SETTINGS) == set(OPTIMIZERS)


OPTIONS = """
proximal = 0.01
clip_norm = 2.0
micro_batch_size = 4
groups = [{ parameters = "*.bias", weight_decay = 0, learning_rate_scale = 2.0 }]
[rounds]"""


def test_what_a_job_asks_of_the_step_is_in_its_plan(job: Path) -> None:
    code = MODEL.replace("output, target)", "output, target, weight)").replace(
        "forward(self, x)", "forward(self, *, x)"
    )
    (job.parent / "model.py").write_text(code)
    text = JOB.replace("\n[rounds]", OPTIONS).replace(
        "[train]", 'weight = "importance"\ncall = "keywords"\n[train]'
    )
    job.write_text(text)
    manifest = compile_job(job).manifest
    assert manifest.step == StepSpec(clip_norm=2.0, micro_batch_size=4)
    assert manifest.hyperparameters == {"learning_rate": 0.01, "proximal": 0.01}
    assert manifest.targets[-1].name == "importance"
    assert manifest.weighted
    bias, rest = manifest.optimizer.groups
    assert (bias.tensors, bias.learning_rate_scale) == (("layer.bias",), 2.0)
    assert (bias.settings["weight_decay"], rest.tensors) == (0.0, ("layer.weight",))

    spec = read_job(job)
    assert mismatch(spec, manifest) == ""
    for changed, fault in (
        (replace(spec.train, clip_norm=None), "with clip_norm = 2.0"),
        (replace(spec.train, micro_batch_size=8), "with micro_batch_size = 4"),
        (replace(spec.train, proximal=None), "with proximal = 0.01"),
    ):
        found = mismatch(replace(spec, train=changed), manifest)
        assert found == f"the plan was compiled {fault}"
    unweighted = replace(spec, model=replace(spec.model, weight=None))
    assert mismatch(unweighted, manifest) == "the plan was compiled with weight = importance"


def test_a_named_loss_takes_settings(job: Path) -> None:
    def evaluation(settings: str) -> bytes:
        named = 'loss = "huber_loss"' + settings
        job.write_text(JOB.replace('loss = "model:loss"', named))
        return compile_job(job).members["evaluate.onnx"]

    plain = evaluation("")
    assert evaluation("\nloss_settings = { delta = 0.5 }") != plain
    assert evaluation("\nloss_settings = { delta = 1.0 }") == plain
    with pytest.raises(CompileError, match="huber_loss has no setting 'beta'; it has reduction"):
        evaluation("\nloss_settings = { beta = 0.5 }")
