"""How models are called, what they give back, and adapters: only what trains travels."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coordinator.compiler.compile import compile_plan
from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.compiler.options import StepOptions
from headwater.batch import Array, TensorSignature
from headwater.errors import CompileError
from headwater.graph_runtime import GraphRuntime
from headwater.layout import Role
from headwater.plan import FROZEN
from tests.plans import opened

FEATURES = TensorSignature("features", (6,), "float32")
EXTRA = TensorSignature("extra", (4,), "float32")
LABEL = TensorSignature("label", (), "int64", 3)
SIZE = TensorSignature("size", (), "float32")


def compile_model(model: nn.Module, **changed: Any) -> CompiledPlan:
    arguments: dict[str, Any] = {
        "loss": "cross_entropy", "metrics": ["accuracy"],
        "optimizer": {"name": "sgd", "learning_rate": 0.1}, "inputs": [FEATURES],
        "targets": [LABEL], "name": "model", "batch_size": 4, "seed": 1,
    }  # fmt: skip
    return compile_plan(model, **{**arguments, **changed})


def predicted(compiled: CompiledPlan, **inputs: Array) -> dict[str, Array]:
    plan = opened(compiled)
    state = {f"p.{n}": a for n, a in plan.layout.unflatten(plan.initial_weights()).items()}
    state |= {f"f.{n}": a for n, a in plan.frozen_tensors().items()}
    return GraphRuntime(plan, "predict.onnx", threads=1).run({**state, **inputs})


class Batched(nn.Module):
    """Takes a whole batch as one dictionary and gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 3), nn.Linear(4, 3)

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        hidden = self.first(batch["features"])
        return hidden + self.second(batch["extra"]), [hidden]


def two_targets(output: Any, label: Tensor, size: Tensor) -> Tensor:
    logits, (hidden,) = output
    error = (hidden.sum(1) - size).square().mean()
    return nn.functional.cross_entropy(logits, label) + 0.1 * error


def test_a_dictionary_goes_in_and_a_tuple_comes_out() -> None:
    torch.manual_seed(0)
    model = Batched()
    compiled = compile_model(
        model, loss=two_targets, metrics={}, inputs=[FEATURES, EXTRA], targets=[LABEL, SIZE],
        options=StepOptions(call="dictionary"),
    )  # fmt: skip
    draw = np.random.default_rng(0)
    values = {"x0": draw.random((5, 6), np.float32), "x1": draw.random((5, 4), np.float32)}
    found = predicted(compiled, **values)
    logits, (hidden,) = model(
        {"features": torch.from_numpy(values["x0"]), "extra": torch.from_numpy(values["x1"])}
    )
    assert set(found) == {"output.0", "output.1.0"}
    np.testing.assert_allclose(found["output.0"], logits.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(found["output.1.0"], hidden.detach().numpy(), rtol=1e-5)


def test_a_call_that_the_model_does_not_take_is_told_with_its_words() -> None:
    with pytest.raises(CompileError, match=r"unexpected keyword argument 'features'"):
        compile_model(nn.Linear(6, 3), options=StepOptions(call="keywords"))


def test_an_output_without_a_tensor_is_refused() -> None:
    class Silent(nn.Linear):
        def forward(self, features: Tensor) -> Any:
            return {"nothing": None}

    with pytest.raises(CompileError, match="output holds no tensor: return a tensor from forward"):
        compile_model(Silent(6, 3), loss=lambda output, label: label.float().mean(), metrics={})


def test_a_loss_by_name_needs_one_tensor() -> None:
    class Two(nn.Linear):
        def forward(self, features: Tensor) -> Any:
            return {"logits": super().forward(features)}

    with pytest.raises(CompileError, match="the model's output is dict"):
        compile_model(Two(6, 3), metrics={})


@pytest.mark.parametrize(
    ("loss", "target"),
    [("cross_entropy", LABEL), ("mse_loss", TensorSignature("target", (3,), "float32"))],
)
def test_a_loss_by_name_is_weighted(loss: str, target: TensorSignature) -> None:
    """And so is the accuracy; through the gate, and against the plain formula."""
    metrics = ["accuracy"] if loss == "cross_entropy" else []
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    compiled = compile_model(
        model, loss=loss, targets=[target], metrics=metrics,
        options=StepOptions(weight="importance"),
    )  # fmt: skip
    plan, draw = opened(compiled), np.random.default_rng(0)
    x, w = draw.standard_normal((5, 6), np.float32), np.array([0, 1, 2, 0.5, 0], np.float32)
    y = draw.integers(0, 3, 5) if metrics else draw.standard_normal((5, 3), np.float32)
    state = {f"p.{n}": a for n, a in plan.layout.unflatten(plan.initial_weights()).items()}
    found = GraphRuntime(plan, "evaluate.onnx", threads=1).run({**state, "x0": x, "y0": y, "w": w})

    with torch.no_grad():
        output, target_tensor = model(torch.from_numpy(x)), torch.from_numpy(np.asarray(y))
    each = getattr(nn.functional, loss)(output, target_tensor, reduction="none").reshape(5, -1)
    expected = float((each.mean(1) * torch.from_numpy(w)).sum() / w.sum())
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-5)
    if metrics:
        hits = (output.argmax(1) == target_tensor).numpy()
        assert float(found["m.accuracy"]) == pytest.approx((hits * w).sum() / w.sum(), rel=1e-5)


class Lora(nn.Module):
    """A frozen linear layer with a trainable update of low rank.

    Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: Low-Rank Adaptation of Large Language
    Models", ICLR 2022.
    """

    def __init__(self, inner: nn.Linear, rank: int) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, inner.in_features) / rank)
        self.up = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.inner(features) + features @ self.down.T @ self.up.T
        return output


def test_only_adapters_travel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Lora(nn.Linear(6, 16), 2), nn.Tanh(), nn.Linear(16, 3))
    compiled = compile_model(model, optimizer={"name": "adamw", "learning_rate": 0.01})
    layout = compiled.manifest.layout
    assert [spec.name for spec in layout.trainable] == ["0.down", "0.up", "2.bias", "2.weight"]
    frozen = {spec.name for spec in layout.tensors if spec.role is Role.FROZEN}
    assert frozen == {"0.inner.weight", "0.inner.bias"}
    assert layout.float_count == layout.trainable_count == 2 * 6 + 16 * 2 + 3 + 16 * 3
    assert FROZEN in compiled.members
    slots = {slot.tensor for slot in compiled.manifest.optimizer.slots if slot.tensor}
    assert not slots & frozen
    np.testing.assert_array_equal(
        opened(compiled).frozen_tensors()["0.inner.weight"], model[0].inner.weight.numpy()
    )


@pytest.mark.skipif(
    importlib.util.find_spec("peft") is None,
    reason="peft is not installed: pip install 'headwater[zoo]'",
)
@pytest.mark.filterwarnings("default")
def test_adapters_of_peft() -> None:
    import peft

    torch.manual_seed(0)
    model = peft.get_peft_model(
        nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)),
        peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["2"]),
    )
    compiled = compile_model(model)
    trainable = {spec.name: spec.shape for spec in compiled.manifest.layout.trainable}
    assert {name.split(".0.")[-1] for name in trainable if ".0." in name} == {
        "lora_A.default.weight", "lora_B.default.weight",
    }  # fmt: skip
    assert sum("modules_to_save" in name for name in trainable) == 2
    assert len(trainable) == 4
    assert FROZEN in compiled.members
