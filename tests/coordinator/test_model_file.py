"""What `models pull` writes: each format holds the model and gives what torch gives."""

import errno
import io
import json
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from coordinator import prediction_model as prediction
from coordinator.cli import models as commands
from coordinator.compiler.compile import compile_plan
from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.model_file import Format, is_weights_file, write_model
from coordinator.prediction_model import Origin, prediction_model
from edge_client.fit import generated_batch
from edge_client.trainers import open_trainer
from headwater.batch import Array, TensorSignature
from headwater.errors import MissingExtraError, PlanError, UnavailableError, UsageError
from headwater.graph_runtime import GraphRuntime
from headwater.preparation import Image, Text
from tests.plans import compiled, opened

ANIMALS = ("cat", "dog", "emu")
IMAGE = TensorSignature(
    "image", (3, 6, 6), "uint8",
    image=Image((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "horizontal", 1),
)  # fmt: skip
ANIMAL = TensorSignature("animal", (), "int64", 3, labels=ANIMALS)


class Everything(nn.Module):
    """Tensors of every kind: tied, frozen, running, constant, counted, and not persistent."""

    scale: Tensor
    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(108, 8, bias=False)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 108, bias=False)
        self.frozen = nn.Linear(108, 3)
        self.frozen.requires_grad_(False)
        self.last.weight = nn.Parameter(self.first.weight.detach().T.clone())
        self.again = self.last
        self.register_buffer("order", torch.arange(107, -1, -1))
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.first(images.flatten(1)[:, self.order]))
        scores: Tensor = self.frozen(self.again(hidden)) * self.scale
        return scores


@cache
def everything() -> tuple[CompiledPlan, dict[str, Array]]:
    """The plan, and the weights after three steps of a client."""
    torch.manual_seed(0)
    plan = compile_plan(
        Everything(), "cross_entropy", ["accuracy"], {"name": "sgd", "learning_rate": 0.1},
        [IMAGE], [ANIMAL], name="animals", batch_size=8, seed=1,
    )  # fmt: skip
    device = opened(plan)
    trainer = open_trainer(device, "onnxruntime", threads=1)
    trainer.set_weights(device.initial_weights())
    for step in range(3):
        trainer.train_step(generated_batch(plan.manifest, 8), {}, step)
    return plan, dict(plan.manifest.layout.unflatten(trainer.weights()))


def written(kind: Format) -> bytes:
    plan, weights = everything()
    file = io.BytesIO()
    write_model(file, kind, opened(plan), weights, Origin("animals-2", 3))
    return file.getvalue()


def pixels(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (count, 3, 6, 6), np.uint8)


def eager(state: dict[str, Tensor], images: Array) -> Array:
    """The author's own module with a pulled state_dict, and normalization by hand."""
    model = Everything()
    model.load_state_dict(state)
    model.eval()
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    prepared = (torch.from_numpy(images).float() / 255 - mean) / deviation
    return model(prepared).detach().numpy()


def session(data: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def test_onnx_predicts_what_the_plan_and_the_author_s_module_predict() -> None:
    plan, weights = everything()
    images = pixels(5)
    data = written("onnx")
    onnx.checker.check_model(data, full_check=True)
    (found,) = session(data).run(["output"], {"image": images})
    device = opened(plan)
    values = {f"p.{name}": array for name, array in weights.items()}
    values |= {f"f.{name}": array for name, array in device.frozen_tensors().items()}
    graph = GraphRuntime(device, "predict.onnx", threads=1)
    np.testing.assert_array_equal(found, graph.run({**values, "x0": images})["output"])
    state = torch.load(io.BytesIO(written("torch")), weights_only=True)
    np.testing.assert_allclose(found, eager(state, images), rtol=1e-5, atol=1e-6)


def test_onnx_takes_and_gives_readable_names_and_any_batch() -> None:
    model = session(written("onnx"))
    (taken,), (given,) = model.get_inputs(), model.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("image", "tensor(uint8)", [3, 6, 6])
    assert (given.name, given.type, given.shape[1:]) == ("output", "tensor(float)", [3])
    for size in (1, 4):
        assert model.run(None, {"image": pixels(size)})[0].shape == (size, 3)


def test_onnx_says_where_it_is_from_and_what_its_numbers_mean() -> None:
    plan, _ = everything()
    found = session(written("onnx")).get_modelmeta().custom_metadata_map
    assert found["headwater.job"] == "animals-2"
    assert found["headwater.version"] == "3"
    assert found["headwater.plan"] == plan.digest
    assert json.loads(found["headwater.labels"]) == list(ANIMALS)
    (image,) = json.loads(found["headwater.inputs"])
    assert image["name"] == "image"
    assert image["image"]["mean"] == [0.5, 0.4, 0.3]


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_state_dict_has_the_module_s_keys_shapes_and_dtypes(kind: Format) -> None:
    data = written(kind)
    state = (
        load_safetensors(data)
        if kind == "safetensors"
        else torch.load(io.BytesIO(data), weights_only=True)
    )
    wanted = Everything().state_dict()
    assert {n: (t.shape, t.dtype) for n, t in state.items()} == {
        n: (t.shape, t.dtype) for n, t in wanted.items()
    }
    assert "scale" not in state
    assert torch.equal(state["again.weight"], state["last.weight"])
    assert state["norm.num_batches_tracked"] == 3
    _, weights = everything()
    np.testing.assert_array_equal(state["first.weight"].numpy(), weights["first.weight"])
    eager(state, pixels(2))


def test_plain_weights_are_a_whole_state_dict() -> None:
    assert is_weights_file(compiled("resnet").manifest)
    assert not is_weights_file(everything()[0].manifest)


def test_without_torch_only_the_torch_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    written("onnx")
    written("safetensors")
    with pytest.raises(
        MissingExtraError, match=r"needed to write a torch file.*headwater\[torch\]"
    ):
        written("torch")


def texts(name: str) -> CompiledPlan:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(3, 4), nn.Flatten(), nn.Linear(16, 3))
    return compile_plan(
        model, "cross_entropy", [], {"name": "sgd", "learning_rate": 0.1},
        [TensorSignature(name, (4,), "int64", text=Text("ab\n", padding="a"))], [ANIMAL],
        name="texts", batch_size=4, seed=1,
    )  # fmt: skip


def test_a_name_that_the_graph_uses_already_is_told_apart_and_the_table_is_inside() -> None:
    plan = opened(texts("v1"))
    weights = plan.layout.unflatten(plan.initial_weights())
    model = session(prediction_model(plan, weights, Origin("texts", 0)))
    (taken,) = model.get_inputs()
    assert taken.name == "v1_"
    assert model.run(None, {"v1_": np.zeros((2, 4), np.int64)})[0].shape == (2, 3)
    (text,) = json.loads(model.get_modelmeta().custom_metadata_map["headwater.inputs"])
    assert text["text"] == {"characters": "ab\n", "unknown": None, "padding": "a", "skip": 0}


def test_a_tensor_that_is_missing_is_the_plan_s_fault() -> None:
    plan, weights = everything()
    with pytest.raises(PlanError, match=r"wants 'f\.frozen\.bias'|wants 'f\.\w"):
        prediction_model(opened(plan), weights, Origin("animals", 0))


def test_what_onnx_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, weights = everything()
    monkeypatch.setattr(prediction, "MAXIMUM_BYTES", 100)
    with pytest.raises(UsageError, match="holds at most 2 GiB: use --format safetensors or torch"):
        prediction_model(opened(plan), weights, Origin("animals", 0))


class Stopped:
    """A coordinator whose answer ends after the first bytes, for a reason of the test's."""

    def __init__(self, reason: BaseException) -> None:
        self.reason = reason

    def __enter__(self) -> "Stopped":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def pull(self, job: str, version: int, file: BinaryIO) -> None:
        file.write(b"half")
        raise self.reason


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "torch"])
@pytest.mark.parametrize(
    "reason",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
        UnavailableError("gone"),
    ],
    ids=["full disk", "interrupted", "lost"],
)
def test_a_pull_that_fails_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, reason: BaseException
) -> None:
    monkeypatch.setattr(commands, "ControlClient", lambda address: Stopped(reason))
    path = tmp_path / "model"
    path.write_bytes(b"the one before")
    done = CliRunner().invoke(
        commands.models, ["pull", "tiny@1", "--format", kind, "-o", str(path)]
    )
    assert done.exit_code != 0
    if isinstance(reason, OSError):
        assert f"{path}: No space left on device" in str(done.exception)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"the one before"
