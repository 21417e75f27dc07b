"""Ways to run the torch form faster: compiled, and in bfloat16."""

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from edge_client.settings import PRECISIONS
from edge_client.trainers import Precision, open_trainer
from edge_client.trainers.torch_step import kernels
from edge_client.trainers.torch_trainer import TorchTrainer
from headwater.errors import UsageError
from headwater.plan import Plan
from tests.zoo import ZOO, batch

PlanOf = Callable[[str], Plan]


def trained(plan: Plan, name: str, **options: Any) -> tuple[list[float], np.ndarray]:
    """Losses of three steps, the last of a smaller batch, and of an evaluation; the weights."""
    trainer = TorchTrainer(plan, threads=1, device="cpu", **options)
    trainer.set_weights(plan.initial_weights())
    batches = [batch(ZOO[name], size, 0) for size in (6, 6, 5)]
    losses = [trainer.train_step(one, {}, step)["loss"] for step, one in enumerate(batches)]
    losses.append(trainer.evaluate_step(batches[0])["loss"])
    return losses, trainer.weights().floats


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler, and this machine has none",
)
def test_a_compiled_step_computes_the_same_and_draws_the_same_masks(plan_of: PlanOf) -> None:
    losses, weights = trained(plan_of("dropout"), "dropout", compile=True)
    expected, exact = trained(plan_of("dropout"), "dropout")
    assert losses == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(weights, exact, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_the_user_is_told_before_the_first_step(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match="--compile needs a C\\+\\+ compiler"):
        TorchTrainer(plan_of("dropout"), threads=1, device="cpu", compile=True)


def test_bfloat16_is_near_and_keeps_the_state_in_float32(plan_of: PlanOf) -> None:
    losses, weights = trained(plan_of("dropout"), "dropout", precision="bfloat16")
    expected, exact = trained(plan_of("dropout"), "dropout")
    assert losses == pytest.approx(expected, rel=0.05)
    assert losses != expected
    assert weights.dtype == np.float32
    assert 0 < np.abs(weights - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_a_gpu_may_round_products_to_tf32(precision: Precision, device: str) -> None:
    before = torch.get_float32_matmul_precision()
    with kernels(precision, torch.device(device)):
        may_round = precision != "float32" and device == "cuda"
        assert torch.backends.cudnn.allow_tf32 is may_round
        assert torch.get_float32_matmul_precision() == ("high" if may_round else "highest")
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("option", [{"compile": True}, {"precision": "bfloat16"}])
def test_both_concern_torch(plan_of: PlanOf, option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="need --trainer torch"):
        open_trainer(plan_of("dropout"), "onnxruntime", threads=1, **option)
